"""Fixtures of the RL tests: a small checkpoint, prompts, and a simple reward."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.corpus.core.qwen_tokenizer import save_tokenizer
from cupola_platform.corpus.tokenizer.vocabulary import train_tokenizer
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, OptimizerConfig, TrainJob

HERE = Path(__file__).parent
MODEL = ModelConfig(
    vocab_size=512,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=2,
    num_query_groups=1,
    ffn_hidden_size=64,
    max_position_embeddings=64,
    init_std=0.1,
)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer`, `policy` (a checkpoint) and `conversations` (24 prompts, 8 held out)."""
    folder = tmp_path_factory.mktemp("reinforcement")
    text = Path(argparse_source()).read_text(encoding="utf-8")
    save_tokenizer(train_tokenizer([text], 512).to_str(), folder / "tokenizer")
    runtime.start(LayoutConfig(), seed=0)
    chunks = models.build(MODEL, LayoutConfig(), seed=1)
    checkpoint.save(
        folder / "policy", chunks, model=MODEL, layout=LayoutConfig(), step=1, consumed_samples=1, seed=1,
        objective="sft", tokenizer=folder / "tokenizer",
    )  # fmt: skip
    runtime.stop()
    (folder / "conversations").mkdir()
    for split, numbers in (("train", range(24)), ("heldout", range(24, 32))):
        rows = [{"id": f"q{n}", "messages": [{"role": "user", "content": f"Say {n}"}], "task": None} for n in numbers]
        (folder / "conversations" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def argparse_source() -> str:
    import argparse

    return str(argparse.__file__)


@pytest.fixture
def job(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TrainJob]]:
    """Creates jobs whose reward functions are those of `toy_rewards.py`."""
    monkeypatch.syspath_prepend(HERE)  # type: ignore[no-untyped-call]

    def make(name: str, data: Any, **changes: Any) -> TrainJob:
        settings: dict[str, Any] = {
            "steps": 4,
            "seed": 3,
            "optimizer": OptimizerConfig(lr=1e-2, min_lr_ratio=1.0, weight_decay=0.0),
            "batch": BatchConfig(sequence_length=32, micro_batch_size=4, global_batch_size=8),
        }
        return TrainJob(output=tmp_path / name, parent=material / "policy", data=data, **(settings | changes))

    yield make
    runtime.stop()
