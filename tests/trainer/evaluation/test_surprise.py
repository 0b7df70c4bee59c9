"""Bits per byte of single texts: against transformers, and as used by the corpus's perplexity filter."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cupola_platform.corpus.config import PerplexityConfig
from cupola_platform.corpus.core.documents import Document, Drop
from cupola_platform.corpus.filters.perplexity import PerplexityFilter
from cupola_platform.errors import StageFailedError
from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.conversion.exporting import export
from cupola_trainer.evaluation.surprise import Surprise
from cupola_trainer.generation.loading import load

TEXTS = [
    "def read_file(path):\n    return path.read_text()\n",
    "",
    "The tap is opened at noon. " * 40,
    "zq" * 30,
    "größer 高炉",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "saved_models"
    if not folder.exists():
        subprocess.run([sys.executable, Path(__file__).parents[1] / "material" / "saved_models.py", folder], check=True)
    return folder / "dense"


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


@pytest.mark.usefixtures("one_process")
def test_bits_per_byte_of_single_texts_equal_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load(checkpoint, LayoutConfig())
    measured = Surprise(loaded, max_bytes=300)(TEXTS)
    export(checkpoint, tmp_path / "out")
    model, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for text, bits in zip(TEXTS, measured, strict=True):
        ids = tokenizer.encode(text.encode()[:300].decode(errors="ignore"), add_special_tokens=False)
        ids = ids[: loaded.model.max_position_embeddings]
        if not ids:
            assert bits == 0.0
            continue
        with torch.no_grad():
            logprobs = model(torch.tensor([[end, *ids[:-1]]])).logits[0].log_softmax(-1)
        nats = -logprobs[torch.arange(len(ids)), torch.tensor(ids)].double().sum().item()
        assert bits == pytest.approx(nats / math.log(2) / len(tokenizer.decode(ids).encode()), rel=1e-4)


def documents(texts: list[str], language: str = "en") -> list[Document]:
    return [Document("s", f"{i}.txt", 0, text, len(text.encode()), language) for i, text in enumerate(texts)]


def judged(config: PerplexityConfig, command: tuple[str, ...], of: list[Document]) -> list[str | None]:
    return [
        f"{out.reason}: {out.detail}" if isinstance(out, Drop) else None
        for out in PerplexityFilter(config, command)(of)
    ]


def test_documents_out_of_bounds_are_dropped_and_other_languages_are_not_scored(tmp_path: Path) -> None:
    script = (
        "import json, sys\nfor line in sys.stdin:\n    print(json.dumps([len(of) / 10 for of in "
        "json.loads(line)]), flush=True)"
    )
    config = PerplexityConfig(max_bits_per_byte=2.0, min_bits_per_byte=0.5, languages=("en",))
    command = (sys.executable, "-c", script)
    texts = ["x" * 10, "x" * 30, "x" * 2]
    assert judged(config, command, documents(texts)) == [
        None, "too surprising: 3.00 bits a byte", "too predictable: 0.20 bits a byte",
    ]  # fmt: skip
    assert judged(config, command, documents(texts, "de")) == [None, None, None]


def test_a_scorer_that_exits_is_reported() -> None:
    with pytest.raises(StageFailedError, match="the process that scores texts ended with exit status 3"):
        judged(PerplexityConfig(), (sys.executable, "-c", "raise SystemExit(3)"), documents(["text"]))


@pytest.mark.slow
def test_the_filter_runs_the_checkpoint_in_a_separate_process(checkpoint: Path) -> None:
    command = (sys.executable, "-m", "cupola_trainer", "surprise", str(checkpoint), "300")
    config = PerplexityConfig(max_bits_per_byte=1e-3, min_bits_per_byte=0)
    reasons = judged(config, command, documents(["one text", "another text"]))
    assert all(each is not None and each.startswith("too surprising: ") for each in reasons)
