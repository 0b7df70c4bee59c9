"""SFT and DPO jobs as launched: real processes, each starting from the previous checkpoint."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from cupola_trainer.config import (
    BatchConfig,
    DpoData,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    SftData,
    TrainJob,
    write_job,
)
from cupola_trainer.objectives.sft import SftObjective

MODEL = ModelConfig(
    vocab_size=1024,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=2,
    num_query_groups=1,
    ffn_hidden_size=64,
    max_position_embeddings=128,
)


def launch(torchrun: Callable[..., Any], job: TrainJob, ranks: int) -> list[dict[str, Any]]:
    """Run a job to its end and return its events."""
    job.output.mkdir()
    write_job(job, job.output / "job.json")
    torchrun(ranks, "-m", "cupola_trainer", job.output / "job.json")
    return [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]


def evaluations(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "evaluate"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations that ask to repeat a digit, and pairs that prefer the word to the digit."""
    folder = tmp_path_factory.mktemp("data")
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    prompts = [[{"role": "user", "content": f"Say {a}{b}"}] for a in range(10) for b in range(10)]
    conversations = [{"messages": [*p, {"role": "assistant", "content": p[0]["content"][4:]}]} for p in prompts]
    pairs = [{"messages": p, "chosen": words[n % 10], "rejected": str(n % 10)} for n, p in enumerate(prompts)]
    for name, rows in (("conversations", conversations), ("preferences", pairs)):
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:90]))
        (folder / name / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[90:]))
    return folder


@pytest.mark.slow  # half a minute; the lifecycle trains both
def test_sft_lowers_the_held_out_loss_and_dpo_flips_held_out_pairs(
    data: Path, chat_tokenizer_folder: Path, tmp_path: Path, torchrun: Callable[..., Any]
) -> None:
    shared: dict[str, Any] = {"optimizer": OptimizerConfig(lr=1e-2), "seed": 1, "log_every": 5}
    sft = TrainJob(
        output=tmp_path / "sft",
        model=MODEL,
        tokenizer=chat_tokenizer_folder,
        steps=0,
        layout=LayoutConfig(dp=2),
        batch=BatchConfig(sequence_length=64, micro_batch_size=4, global_batch_size=8),
        data=SftData(conversations=data / "conversations", epochs=9.5),
        **shared,
    )
    events = launch(torchrun, sft, ranks=2)
    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer_folder)
    rows = SftObjective(sft.data, tokenizer=tokenizer, sequence_length=64, seed=1).epoch  # type: ignore[arg-type]
    assert rows
    assert events[0]["steps"] == events[-1]["step"] == math.ceil(9.5 * rows / 8)
    before, after = evaluations(events)
    assert before["heldout_loss"] == pytest.approx(np.log(1024), rel=0.05)
    assert after["heldout_loss"] < 3.5
    checkpoint = sft.output / json.loads((sft.output / "result.json").read_text())["folder"]

    dpo = TrainJob(
        output=tmp_path / "dpo",
        parent=checkpoint,
        steps=12,
        batch=BatchConfig(sequence_length=32, micro_batch_size=8, global_batch_size=8),
        data=DpoData(preferences=data / "preferences", beta=0.2),
        **shared,
    )
    before, after = evaluations(launch(torchrun, dpo, ranks=1))
    assert before["heldout_loss"] == pytest.approx(np.log(2), rel=1e-5)  # the policy is the reference
    assert before["heldout_margin"] == pytest.approx(0, abs=1e-5)
    assert after["heldout_margin"] > 0.3
    assert after["heldout_accuracy"] > 0.8
    assert after["heldout_margin"] == pytest.approx(after["heldout_chosen_reward"] - after["heldout_rejected_reward"])
    assert np.load(dpo.output / "reference.npz")["reference"].shape == (100, 2)
