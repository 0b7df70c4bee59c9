"""Batches are read while the step before is computed, and change no step: not the samples, the errors or the end."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer import runtime
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    LayoutConfig,
    ModelConfig,
    NextTokenData,
    OptimizerConfig,
    TrainJob,
)
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.next_token import NextTokenObjective
from cupola_trainer.objectives.online import OnlineObjective
from cupola_trainer.objectives.prefetching import Prefetcher
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.runtime import copies
from cupola_trainer.training import loop

MODEL = ModelConfig(
    vocab_size=320, hidden_size=32, num_layers=1, num_attention_heads=2, num_query_groups=2, ffn_hidden_size=64,
    max_position_embeddings=32,
)  # fmt: skip
BATCH = BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4)


@pytest.fixture(autouse=True, scope="module")
def _process_group() -> None:
    runtime.start(LayoutConfig(), seed=0)


def job_in(output: Path, tokens: Path, **settings: Any) -> TrainJob:
    values = {
        "steps": 6, "batch": BATCH, "optimizer": OptimizerConfig(lr=1e-3), "data": NextTokenData(tokens=tokens),
        "checkpoint": CheckpointConfig(every=2, keep=5), **settings,
    }  # fmt: skip
    return TrainJob(output=output, model=MODEL, **values)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, name: str, seconds: float = 0.0) -> Iterator[list[tuple[str, Any]]]:
    """Note each call of a method of NextTokenObjective: the thread and the first argument. It takes longer."""
    calls: list[tuple[str, Any]] = []
    method: Callable[..., Any] = getattr(NextTokenObjective, name)

    def slow(self: NextTokenObjective, *arguments: Any) -> Any:
        calls.append((threading.current_thread().name, arguments[0]))
        time.sleep(seconds)
        return method(self, *arguments)

    monkeypatch.setattr(NextTokenObjective, name, slow)
    yield calls


def test_a_step_does_not_wait_for_data_that_take_less_time_than_the_step(
    tmp_path: Path, tokens_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage that needs 25 ms a sample, and a loss that needs 100 ms a micro-batch, stand in for slow ones."""
    with watched(monkeypatch, "sample", 0.025) as reads, watched(monkeypatch, "loss", 0.1):
        loop.train(job_in(tmp_path, tokens_folder, log_every=1, evaluate_batches=1), lambda: False)
    steps = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["event"] == "step"]
    assert [index for _, index in reads] == list(range(24)), "nothing is read past the last step"
    assert all(thread.startswith("batches") for thread, _ in reads)
    assert steps[0]["seconds_data"] > 0.1
    assert max(step["seconds_data"] for step in steps[1:]) < 0.05


def test_no_thread_is_left_when_a_job_has_ended_was_terminated_or_has_failed(
    tmp_path: Path, tokens_folder: Path
) -> None:
    tokens = tmp_path / "tokens"
    shutil.copytree(tokens_folder, tokens)
    seen: list[int] = []

    def after(steps: int, then: Callable[[], bool]) -> Callable[[], bool]:
        def terminated() -> bool:
            seen.append(len(readers()))
            return then() if len(seen) > steps else False

        seen.clear()
        return terminated

    job = job_in(tmp_path / "job", tokens)
    assert not loop.train(job, after(3, lambda: True))
    assert seen == [0, 1, 1, 1]
    assert readers() == []
    assert loop.train(job, lambda: False)
    assert readers() == []

    def truncate() -> bool:
        for path in (tokens / "shards").glob("train-*.bin"):
            path.write_bytes(b"")
        return False

    failing = job_in(tmp_path / "failing", tokens, steps=20)
    with pytest.raises(CorruptArtifactError, match=r"train-\w+\.bin was truncated\. Make or fetch the artifact again"):
        loop.train(failing, after(2, truncate))
    assert readers() == []
    done = [line["step"] for line in read_metrics(failing.output / "metrics.jsonl") if line["event"] == "step"]
    assert done == [1, 2, 3], "the step whose batches had been read ends before the error of the next one"


def test_a_rollback_drops_what_was_read_ahead_and_leaves_no_second_thread(
    tmp_path: Path, tokens_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step's loss is infinite: there is no checkpoint, so everything begins again, after its samples."""
    used: list[np.ndarray] = []
    threads: list[int] = []
    loss = NextTokenObjective.loss

    def spoiled(self: NextTokenObjective, output: Tensor, batch: Batch) -> Any:
        total, count, sums = loss(self, output, batch)
        if not total.requires_grad:  # held-out
            return total, count, sums
        used.extend(row.numpy() for row in batch["tokens"])
        threads.append(len(readers()))
        return (total * float("inf") if len(used) <= 4 else total), count, sums

    monkeypatch.setattr(NextTokenObjective, "loss", spoiled)
    job = job_in(tmp_path, tokens_folder, faults=FaultConfig(bad_gradients=1), steps=4)
    assert loop.train(job, lambda: False)
    assert set(threads) == {1}
    assert readers() == []
    expected = NextTokenObjective(NextTokenData(tokens=tokens_folder), batch=BATCH, seed=job.seed)
    assert len(used) == 20
    for index, tokens in enumerate(used):
        assert np.array_equal(tokens, expected.sample(index)["tokens"])


def test_only_the_samples_that_are_asked_for_are_used(tokens_folder: Path) -> None:
    objective = NextTokenObjective(NextTokenData(tokens=tokens_folder), batch=BATCH, seed=1)
    prefetcher = Prefetcher(objective)
    for ahead, asked in ((range(2), range(2)), (range(2, 4), range(6, 8)), (range(8, 10), range(2, 4))):
        prefetcher.begin([ahead])
        (batch,) = prefetcher.read([asked])
        assert batch["tokens"].tolist() == [objective.sample(index)["tokens"].tolist() for index in asked]
    (batch,) = prefetcher.read([range(5, 6)])
    assert batch["tokens"].tolist() == [objective.sample(5)["tokens"].tolist()]
    prefetcher.close()


class OfTheModel(OnlineObjective):
    """Samples that depend on the weights, which here are a number."""

    name = "of_the_model"
    weights = 0

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return {"tokens": np.array([self.weights])}

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        return {"tokens": torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))}

    def heldout(self, index: int) -> None: ...
    def loss(self, output: Tensor, batch: Batch) -> Any: ...
    def attach(self, trainee: Any, model: ModelConfig) -> None: ...
    def gather(self, sample: int) -> dict[str, float]: ...  # type: ignore[empty-body]
    def save(self, progress: Any) -> dict[str, Any]: ...  # type: ignore[empty-body]
    def resume(self, progress: Any) -> None: ...


def test_samples_that_depend_on_the_model_are_read_when_they_are_asked_for() -> None:
    objective = OfTheModel()
    prefetcher = Prefetcher(objective)
    prefetcher.begin([range(2)])
    objective.weights = 7
    assert prefetcher.read([range(2)])[0]["tokens"].tolist() == [[7], [7]]
    assert readers() == []


class OnGpu:
    """Stands in for `torch.cuda` and for tensors where there is no GPU: notes what was done, on which stream."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self._current = threading.local()

    def is_available(self) -> bool:
        return True

    def Stream(self) -> Any:
        return SimpleNamespace(name="side")

    def current_stream(self) -> Any:
        name = getattr(self._current, "name", "compute")
        return SimpleNamespace(name=name, wait_stream=lambda other: self.notes.append((name, "waits for", other.name)))

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self._current.name = stream.name
        yield
        del self._current.name

    def tensor(self, name: str, where: str = "host") -> Any:
        def to(device: Any, *, non_blocking: bool) -> Any:
            self.notes.append((self.current_stream().name, f"copies {where} {name}", non_blocking))
            return self.tensor(name, "device")

        return SimpleNamespace(
            is_cuda=where == "device",
            pin_memory=lambda: self.tensor(name, "pinned"),
            to=to,
            record_stream=lambda stream: self.notes.append((stream.name, f"keeps {where} {name}")),
        )


def test_on_a_gpu_batches_are_copied_on_a_side_stream_that_the_step_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = OnGpu()
    monkeypatch.setattr(copies, "torch", SimpleNamespace(cuda=gpu))
    objective: Any = SimpleNamespace(
        padded=False,
        expect=lambda samples: None,
        sample=lambda index: {},
        collate=lambda samples: {"tokens": gpu.tensor("tokens"), "segments": gpu.tensor("segments")},
    )
    prefetcher = Prefetcher(objective)
    (batch,) = prefetcher.read([range(2)])
    prefetcher.close()
    assert batch["tokens"].is_cuda
    assert not batch["segments"].is_cuda, "the host needs them"
    assert gpu.notes == [
        ("side", "copies pinned tokens", True),
        ("side", "copies pinned segments", True),
        ("compute", "waits for", "side"),
        ("compute", "keeps device tokens"),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_the_hosts() -> None:
    rows = torch.arange(1 << 22).reshape(4, -1)
    objective: Any = SimpleNamespace(
        padded=False,
        expect=lambda samples: None,
        sample=lambda index: {"row": rows[index].numpy()},
        collate=lambda samples: {"tokens": torch.from_numpy(np.stack([sample["row"] for sample in samples]))},
    )
    prefetcher = Prefetcher(objective)
    for _ in range(50):
        prefetcher.begin([range(2), range(2, 4)])
        first, second = prefetcher.read([range(2), range(2, 4)])
        prefetcher.begin([range(2)])
        assert torch.equal((first["tokens"] * 1).cpu(), rows[:2])
        assert torch.equal((second["tokens"] * 1).cpu(), rows[2:])
    prefetcher.close()
