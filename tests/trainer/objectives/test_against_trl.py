"""Twenty steps of SFT and of DPO give the same loss curves as TRL's trainers, from the same weights and batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, apply_chat_template

from cupola_platform.conversation import as_message
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import (
    BatchConfig,
    DpoData,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    SftData,
    TrainingData,
    TrainJob,
)
from cupola_trainer.conversion.exporting import export
from cupola_trainer.data.chat import encode_conversation
from cupola_trainer.data.conversations import load_preferences
from cupola_trainer.data.order import order
from cupola_trainer.objectives.sft import pack
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training import loop

STEPS, BATCH, LR, SEED = 20, 4, 2e-3, 5
MODEL = ModelConfig(
    vocab_size=1024, hidden_size=32, num_layers=2, num_attention_heads=2, num_query_groups=1, ffn_hidden_size=64,
    max_position_embeddings=192, rope_theta=10_000.0, init_std=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer_folder: Path) -> Path:
    """A checkpoint and the same weights for transformers."""
    folder = tmp_path_factory.mktemp("start")
    runtime.start(LayoutConfig(), seed=0)
    checkpoint.save(
        folder / "ours", models.build(MODEL, LayoutConfig(), seed=SEED), model=MODEL, layout=LayoutConfig(),
        step=0, consumed_samples=0, seed=SEED, objective="next_token", tokenizer=chat_tokenizer_folder,
    )  # fmt: skip
    runtime.stop()
    export(folder / "ours", folder / "theirs")
    return folder


def rows(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Is {number} a number?"}]
    return {"id": str(number), "messages": messages, "chosen": f"yes, {number} is one", "rejected": f"no, not {number}"}


TOOLS = [{"type": "function", "function": {"name": "check", "parameters": {"type": "object"}}}]
TRIMMING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that trims content, like those of Llama 3 and Gemma."""


def calling(number: int) -> dict[str, Any]:
    """A pair of tool calls, the rejected one with another argument."""

    def call(of: int) -> list[dict[str, Any]]:
        function = {"name": "check", "arguments": {"of": of}}
        return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]

    return {**rows(number), "tools": TOOLS, "chosen": call(number), "rejected": call(-number)}


def loose(number: int) -> dict[str, Any]:
    """A pair of responses with surrounding whitespace."""
    row = rows(number)
    return {**row, "chosen": f" {row['chosen']}\n", "rejected": f"\n\n{row['rejected']}  "}


def as_trl(row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """A pair as text, by TRL's own function, without the newline after <|im_end|>, which TRL would train on too."""
    sides = {side: row[side] if isinstance(row[side], list) else [{"role": "assistant", "content": row[side]}]
             for side in ("chosen", "rejected")}  # fmt: skip
    texts = apply_chat_template({"prompt": row["messages"], **sides}, tokenizer, tools=row.get("tools"))
    return {name: text.removesuffix("\n") if name in sides else text for name, text in texts.items()}


@pytest.mark.parametrize(
    ("make", "template"), [(rows, None), (calling, None), (loose, TRIMMING)], ids=["plain", "calls", "trimmed"]
)
def test_pairs_have_the_same_tokens_as_trls(
    chat_tokenizer_folder: Path, tmp_path: Path, make: Any, template: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer_folder)
    tokenizer.chat_template = template or tokenizer.chat_template
    made = [make(number) for number in range(1, 4)]
    samples, drops = load_preferences(write(tmp_path / "data", made) / "train.jsonl", tokenizer, 512)
    assert not drops
    for row, sample in zip(made, samples, strict=True):
        assert {name: tokenizer.decode(sample[name]) for name in ("prompt", "chosen", "rejected")} == as_trl(
            row, tokenizer
        )
        response = as_message(row["chosen"])
        tokens, mask = encode_conversation(tokenizer, [*row["messages"], response], row.get("tools"))
        assert sample["chosen"].tolist() == tokens[mask].tolist()  # what SFT trains on


def write(folder: Path, made: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for name in ("train", "heldout"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return folder


def ours(start: Path, output: Path, data: TrainingData) -> list[float]:
    output.mkdir()
    job = TrainJob(
        output=output,
        seed=SEED,
        parent=start / "ours",
        steps=STEPS,
        batch=BatchConfig(sequence_length=160, micro_batch_size=BATCH, global_batch_size=BATCH),
        optimizer=OptimizerConfig(lr=LR, min_lr_ratio=1.0, weight_decay=0.0, clip_grad=1.0, beta2=0.95),
        data=data,
    )
    assert loop.train(job, lambda: False)
    runtime.stop()
    return [line["loss"] for line in read_metrics(output / "metrics.jsonl") if line["event"] == "step"]


def settings(output: Path) -> dict[str, Any]:
    """The same as in our job: fp32, AdamW without weight decay, constant learning rate, unshuffled batches."""
    return {
        "output_dir": str(output), "max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": LR,
        "lr_scheduler_type": "constant", "optim": "adamw_torch", "adam_beta1": 0.9, "adam_beta2": 0.95,
        "adam_epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_steps": 1, "report_to": [],
        "use_cpu": True, "bf16": False, "fp16": False, "gradient_checkpointing": False, "save_strategy": "no",
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
    }  # fmt: skip


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def theirs(start: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(start / "theirs", dtype=torch.float32, attn_implementation="eager")
    return model, AutoTokenizer.from_pretrained(start / "theirs")


def in_our_order(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [made[order(index, len(made), SEED)] for index in range(STEPS * BATCH)]


def shuffled(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of SFT's packing, which applies even if each conversation has its own row."""
    return [made[place] for [place] in pack([1] * len(made), 0, SEED)]


@pytest.mark.slow
def test_sft_matches_trls_sft_trainer(start: Path, tmp_path: Path) -> None:
    made = [
        {**row, "messages": [*row["messages"], {"role": "assistant", "content": row["chosen"]}]}
        for row in map(rows, range(24))
    ]
    actual = ours(start, tmp_path / "ours", SftData(conversations=write(tmp_path / "data", made), pack=False))
    dataset = Dataset.from_list([{"messages": row["messages"]} for row in in_our_order(shuffled(made))])
    model, tokenizer = theirs(start)
    config = SFTConfig(**settings(tmp_path / "theirs"), max_length=192, assistant_only_loss=True, packing=False)
    expected = losses(SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer))
    assert len(actual) == len(expected) == STEPS
    assert actual[-1] < actual[0] - 1
    assert actual == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [rows, calling], ids=["plain", "calls"])
def test_dpo_matches_trls_dpo_trainer(start: Path, tmp_path: Path, make: Any) -> None:
    loss_type: Any = "sigmoid"
    made = [make(number) for number in range(1, 25)]
    data = DpoData(preferences=write(tmp_path / "data", made), beta=0.3, loss_type=loss_type)
    actual = ours(start, tmp_path / "ours", data)

    model, tokenizer = theirs(start)
    dataset = Dataset.from_list([as_trl(row, tokenizer) for row in in_our_order(made)])
    config = DPOConfig(**settings(tmp_path / "theirs"), beta=0.3, loss_type=loss_type, max_length=192)
    trainer = DPOTrainer(
        model=model, ref_model=theirs(start)[0], args=config, train_dataset=dataset, processing_class=tokenizer
    )
    expected = losses(trainer)
    assert actual[0] == pytest.approx(0.6931, abs=1e-3)
    assert actual[-1] < 0.5
    assert actual == pytest.approx(expected, abs=1e-4)
