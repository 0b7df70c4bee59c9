"""SFT: what is in a batch, and that packing leaves the loss unchanged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from cupola_platform.errors import ConfigError
from cupola_trainer.config import SftData
from cupola_trainer.objectives.sft import SftObjective, pack

RESPONSES = [
    "4",
    "12, I think.",
    "for line in lines:",
    "no",
    "It returns the first match.",
    "42",
    "yes, always",
    "3 4 5",
]


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Eight short training conversations, two held out, and one row of each kind that is dropped."""

    def row(prompt: str, response: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]}

    train = [row(f"Question {number}?", response) for number, response in enumerate(RESPONSES)]
    bad = [row("q", "   "), row("q", "word " * 200), {"messages": [{"role": "user", "content": "q"}]}, {}]
    heldout = [row("Held out?", "Indeed."), row("Again?", "Indeed, again.")]
    for name, rows in (("train", train + bad), ("heldout", heldout)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path


def objective(conversations: Path, tokenizer: Any, *, packed: bool, length: int = 64, seed: int = 0) -> SftObjective:
    data = SftData(conversations=conversations, pack=packed)
    return SftObjective(data, tokenizer=tokenizer, sequence_length=length, seed=seed)


def test_bad_rows_are_dropped_and_counted(conversations: Path, chat_tokenizer: Any) -> None:
    sft = objective(conversations, chat_tokenizer, packed=True)
    assert sft.drops == {"empty_message": 1, "too_long": 1, "no_assistant_turn": 1, "malformed": 1}
    assert sft.heldout_drops == {}


def test_only_the_response_and_its_end_are_trained_on(conversations: Path, chat_tokenizer: Any) -> None:
    sft = objective(conversations, chat_tokenizer, packed=False)
    assert sft.heldout(2) is None
    samples = [sft.heldout(0), sft.heldout(1)]
    batch = sft.collate([sample for sample in samples if sample])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(
        ("tokens", "labels", "loss_mask", "position_ids"), (2, 64)
    )
    trained = {
        chat_tokenizer.decode(labels[mask > 0])
        for labels, mask in zip(batch["labels"], batch["loss_mask"], strict=True)
    }
    assert trained == {"Indeed.<|im_end|>", "Indeed, again.<|im_end|>"}
    assert torch.equal(batch["labels"][:, :-1], batch["tokens"][:, 1:])


def test_every_epoch_has_each_conversation_once_in_a_new_order(conversations: Path, chat_tokenizer: Any) -> None:
    sft = objective(conversations, chat_tokenizer, packed=False)
    epochs = [[sft.sample(index)["tokens"].tobytes() for index in range(8 * e, 8 * e + 8)] for e in range(3)]
    assert len(set(epochs[0])) == 8
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    again = objective(conversations, chat_tokenizer, packed=False)
    assert [again.sample(index)["tokens"].tobytes() for index in range(8, 16)] == epochs[1]


def test_packing_fills_rows_and_loses_nothing() -> None:
    lengths = np.random.default_rng(0).integers(20, 50, size=500).tolist()
    rows = pack(lengths, 129, seed=0)
    assert sorted(place for row in rows for place in row) == list(range(500))
    assert max(sum(lengths[place] for place in row) for row in rows) <= 129
    assert sum(lengths) / (129 * len(rows)) > 0.93
    assert pack(lengths, 0, seed=0) == [[place] for row in pack(lengths, 0, seed=0) for place in row]
    assert pack([], 129, seed=0) == []


def test_packed_conversations_have_the_same_losses_as_alone(conversations: Path, chat_tokenizer: Any) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=1024, num_key_value_heads=1, initializer_range=0.3, **shape)).eval()

    def losses(sft: SftObjective, rows: int) -> tuple[float, float]:
        batch = sft.collate([sft.sample(index) for index in range(rows)])
        mask = None
        if "segments" in batch:
            same = batch["segments"][:, :, None] == batch["segments"][:, None]
            mask = same.tril()[:, None]
        with torch.no_grad():
            logits = model(batch["tokens"], attention_mask=mask, position_ids=batch["position_ids"]).logits
        token_losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
        total, count, _ = sft.loss(token_losses, batch)
        return total.item(), count.item()

    alone = objective(conversations, chat_tokenizer, packed=False)
    packed = objective(conversations, chat_tokenizer, packed=True, length=128)
    assert len(packed._train) < 8
    assert losses(packed, len(packed._train)) == pytest.approx(losses(alone, 8), rel=1e-5)


def test_nothing_that_fits_is_refused_with_the_reasons(conversations: Path, chat_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"fits sequence_length=8; dropped: too_long 9 \(first train"):
        objective(conversations, chat_tokenizer, packed=True, length=8)


def test_a_truncated_file_is_refused_naming_the_line(conversations: Path, chat_tokenizer: Any) -> None:
    with (conversations / "train.jsonl").open("a") as file:
        file.write('{"messages": [')
    with pytest.raises(ConfigError, match=r"train\.jsonl, line 13: not JSON"):
        objective(conversations, chat_tokenizer, packed=True)
