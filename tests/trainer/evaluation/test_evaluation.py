"""Bits per byte against transformers, accuracies with intervals, and equal results in every layout."""

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError, CorruptArtifactError
from cupola_trainer import runtime
from cupola_trainer.config import EvaluateJob, LayoutConfig, LongContextConfig, write_job
from cupola_trainer.conversion.exporting import export
from cupola_trainer.evaluation.likelihood import byte_lengths, likelihood, read_heldout, unigram_bits_per_byte
from cupola_trainer.evaluation.responses import TaskPrompt, accuracies, read_task_prompts
from cupola_trainer.generation.loading import load
from cupola_trainer.jobs.evaluate import run
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.scoring.intervals import difference, wilson


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


def evaluate_job(saved: Path, output: Path, **layout: Any) -> EvaluateJob:
    return EvaluateJob(
        output=output, checkpoints={name: saved / name for name in ("dense", "moe")}, tokens=saved / "tokens",
        conversations=saved / "conversations", max_heldout_tokens=3000, max_tasks=5, max_new_tokens=8,
        sample_prompts=("import os",), layout=LayoutConfig(**layout),
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A single-process job's folder and results."""
    output = tmp_path_factory.mktemp("evaluation")
    run(evaluate_job(saved, output))
    runtime.stop()
    return output, json.loads((output / "results.json").read_text())


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0)],
)  # fmt: skip
def test_wilsons_interval_has_the_published_values(correct: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((56, 70, 48, 80), 0.0524, 0.3339), ((9, 10, 3, 10), 0.1705, 0.8090), ((10, 10, 0, 20), 0.6791, 1.0)],
)
def test_newcombes_interval_has_the_published_values(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    """Newcombe 1998, Interval estimation for the difference between independent proportions, table II, method 10."""
    assert difference(*counts) == pytest.approx((low, high), abs=5e-5)


def test_without_trials_the_interval_is_the_full_range() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert difference(3, 5, 0, 0) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="correct=3 of total=2"):
        wilson(3, 2)


def test_byte_lengths_add_up_to_the_size_of_the_text(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved / "tokenizer")
    sizes = byte_lengths(tokenizer)
    for text in ("def f(x):\n\treturn 'é'  # 中文 🙂\n", "", "   \n\n"):
        assert sum(sizes[tokenizer.encode(text, add_special_tokens=False)]) == len(text.encode())
    assert sizes[tokenizer.convert_tokens_to_ids("<|endoftext|>")] == 0


def test_held_out_documents_come_from_every_source_in_proportion(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved / "tokenizer")
    index = json.loads((saved / "tokens" / "index.json").read_text())["sources"]
    everything = read_heldout(saved / "tokens", tokenizer, 10**9)
    assert everything.tokens == sum(source["heldout"]["tokens"] for source in index.values())
    assert everything.bytes == sum(source["heldout"]["bytes"] for source in index.values())
    assert len(everything.documents) == 4
    some = read_heldout(saved / "tokens", tokenizer, 1000)
    assert 1000 <= some.tokens <= 1001
    lengths = [len(document) for document in some.documents]
    shares = [index[name]["heldout"]["tokens"] for name in ("json", "email")]
    assert lengths[0] == math.ceil(1000 * shares[0] / sum(shares))


def test_the_unigram_baseline_uses_add_one_smoothing(saved: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokenizer = AutoTokenizer.from_pretrained(saved / "tokenizer")
    heldout = read_heldout(saved / "tokens", tokenizer, 2000)
    shards = [IndexedDataset(str(saved / "tokens" / "shards" / f"train-{name}")) for name in ("json", "email")]
    seen = np.concatenate([shard.get(index) for shard in shards for index in range(len(shard))])
    bits = 0.0
    for token in np.concatenate(heldout.documents):
        bits -= math.log2((int((seen == token).sum()) + 1) / (len(seen) + len(tokenizer)))
    measured = unigram_bits_per_byte(saved / "tokens", heldout, len(tokenizer))
    assert measured == pytest.approx(bits / heldout.bytes, rel=1e-9)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_bits_per_byte_equal_those_from_transformers_losses(saved: Path, tmp_path: Path, name: str) -> None:
    loaded = load(saved / name, LayoutConfig())
    heldout = read_heldout(saved / "tokens", loaded.tokenizer, 1500)
    end = loaded.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    theirs = AutoModelForCausalLM.from_pretrained(export(saved / name, tmp_path / "hf")).eval()
    nats = 0.0
    for document in heldout.documents:
        for start in range(0, len(document), 100):
            window = [end if start == 0 else int(document[start - 1]), *document[start : start + 100].tolist()]
            with torch.no_grad():
                logprobs = theirs(torch.tensor([window[:-1]])).logits.log_softmax(-1)
            nats -= logprobs[0].gather(1, torch.tensor(window[1:])[:, None]).double().sum().item()
    measured = likelihood(loaded.chunks, heldout, window=100, end=end)
    assert measured.tokens == heldout.tokens
    assert measured.loss == pytest.approx(nats / heldout.tokens, rel=1e-6)
    assert measured.bits_per_byte == pytest.approx(nats / math.log(2) / heldout.bytes, rel=1e-6)


def test_a_job_writes_the_documented_results(saved: Path, results: tuple[Path, dict[str, Any]]) -> None:
    output, measured = results
    assert set(measured) == {"unigram_bits_per_byte", "checkpoints"}
    assert list(measured["checkpoints"]) == ["dense", "moe"]
    dense = measured["checkpoints"]["dense"]
    assert dense["digest"] == artifacts.read(saved / "dense").digest
    assert dense["heldout_tokens"] in (3000, 3001)
    assert set(dense["tasks"]) == {"chain_sum", "letter_counting"}
    assert dense["tasks"]["chain_sum"]["total"] == 5
    assert dense["accuracy"]["total"] == 10
    assert dense["accuracy"]["low"] <= dense["accuracy"]["accuracy"] <= dense["accuracy"]["high"]
    assert set(dense["responses"][0]) == {"prompt", "response", "expected", "score"}
    assert dense["generations"][0]["prompt"] == "import os"
    lines = read_metrics(output / "metrics.jsonl")
    assert [line["event"] for line in lines] == ["start", "step", "step", "end"]
    assert lines[2]["checkpoint"] == "moe"
    assert lines[2]["bits_per_byte"] == measured["checkpoints"]["moe"]["bits_per_byte"]
    metrics = json.loads((output / "result.json").read_text())["metrics"]
    assert metrics["bits_per_byte/dense"] == dense["bits_per_byte"]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"dp": 2, "ep": 2}, id="experts", marks=pytest.mark.slow),
        pytest.param({"tp": 2, "sp": True}, id="tensors", marks=pytest.mark.slow),
        pytest.param({"pp": 2}, id="stages"),
        pytest.param({"cp": 2}, id="contexts", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_measure_the_same_as_one(
    saved: Path,
    results: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    layout: dict[str, Any],
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    write_job(evaluate_job(saved, tmp_path, **layout), tmp_path / "job.json")
    torchrun(2, "-m", "cupola_trainer", tmp_path / "job.json")
    two = json.loads((tmp_path / "results.json").read_text())
    for name, one in results[1]["checkpoints"].items():
        other = two["checkpoints"][name]
        assert other["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-6)
        assert other["responses"] == one["responses"]
        assert other["generations"] == one["generations"]
        assert other["accuracy"] == one["accuracy"]


def test_long_context_with_pipeline_stages_is_refused_with_an_alternative(saved: Path, tmp_path: Path) -> None:
    job = evaluate_job(saved, tmp_path, pp=2).but(long_context=LongContextConfig(lengths=(64,)))
    with pytest.raises(
        ConfigError, match=r"pp=2, cp=1\. long_context reads logits of whole sequences.* Use dp=2 instead"
    ):
        run(job)


def test_a_right_response_counts_for_its_task_and_overall(saved: Path) -> None:
    prompts = read_task_prompts(saved / "conversations", per_task=4)
    assert [prompt.task["name"] for prompt in prompts] == ["chain_sum"] * 4 + ["letter_counting"] * 4
    assert all(prompt.messages[-1]["role"] == "user" for prompt in prompts)
    responses = [prompt.task["entry"]["answer"] if number != 5 else "no idea" for number, prompt in enumerate(prompts)]
    scored = accuracies(prompts, responses)
    assert scored["tasks"]["chain_sum"]["accuracy"] == 1.0
    assert scored["tasks"]["letter_counting"]["correct"] == 3
    low, high = wilson(7, 8)
    assert scored["accuracy"] == {"accuracy": 7 / 8, "low": low, "high": high, "correct": 7, "total": 8}
    assert scored["responses"][5]["score"] < 1


def test_without_prompts_there_is_no_accuracy() -> None:
    nothing: list[TaskPrompt] = []
    assert accuracies(nothing, []) == {"tasks": {}, "accuracy": None, "responses": []}


def test_a_checkpoint_with_another_tokenizer_is_refused(saved: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    shutil.copytree(saved / "tokens", tokens)
    content = json.loads((tokens / "tokenizer" / "tokenizer.json").read_text())
    content["model"]["vocab"] = {("Q" if token == "q" else "q" if token == "Q" else token): index
                                 for token, index in content["model"]["vocab"].items()}  # fmt: skip
    (tokens / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))
    job = EvaluateJob(output=tmp_path / "out", checkpoints={"dense": saved / "dense"}, tokens=tokens)
    with pytest.raises(ConfigError, match="has a different tokenizer from the held-out tokens"):
        run(job)
    runtime.stop()


def test_a_changed_checkpoint_is_not_evaluated(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "dense", tmp_path / "dense")
    (tmp_path / "dense" / "training.json").write_text("{}")
    job = EvaluateJob(output=tmp_path / "out", checkpoints={"dense": tmp_path / "dense"}, tokens=saved / "tokens")
    with pytest.raises(CorruptArtifactError, match=r"training\.json is corrupt"):
        run(job)
    runtime.stop()
    assert not (tmp_path / "out" / "result.json").exists()
