"""Checkpoints: any layout resumes in any other, experts included; corrupt, mismatched and failed ones are reported."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cupola_platform import artifacts
from cupola_platform.errors import ConfigError, CorruptArtifactError, StageFailedError
from cupola_trainer import checkpoint
from cupola_trainer.checkpoint.shards import Shard, boxes, weight_shards
from cupola_trainer.checkpoint.staging import BLOCK, Staging, Transfer, write
from cupola_trainer.checkpoint.storage import StoredState, owned
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    ModelConfig,
    NextTokenData,
    OptimizerConfig,
    TrainJob,
    write_job,
)
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training import loop

PARTS = ("state", "optimizer")
MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    num_layers=1,
    num_attention_heads=2,
    num_query_groups=2,
    ffn_hidden_size=64,
    max_position_embeddings=32,
)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., Any]) -> dict[str, Any]:
    """Losses and gradient norms after a checkpoint: by layout without interruption, and by `saved -> loaded`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found: dict[str, Any] = {}
    for ranks, what in ((2, "save"), (1, "both"), (2, "load")):
        torchrun(ranks, Path(__file__).with_name("checkpoint_ranks.py"), folder, what)
        found |= json.loads((folder / f"{what}-{ranks}.json").read_text())
    return found


@pytest.mark.slow  # three launches, 24 pairs of layouts: over a minute
def test_every_layout_resumes_from_every_other_as_if_uninterrupted(numbers: dict[str, Any]) -> None:
    pairs = [name for name in numbers if " -> " in name]
    assert len(pairs) == 24  # four layouts each for dense models and mixtures of experts
    assert {"moe one process -> moe ep2", "moe ep2 -> moe one process", "moe tp2 sp ep2 -> moe one process"} <= {*pairs}
    for pair in pairs:
        expected = numbers[pair.split(" -> ")[0]]
        for (loss, norm), (wanted_loss, wanted_norm) in zip(numbers[pair], expected, strict=True):
            assert loss == pytest.approx(wanted_loss, rel=1e-5), pair
            assert norm == pytest.approx(wanted_norm, rel=1e-4), pair


@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_any_range_of_a_flattened_array_is_a_few_boxes_in_order(shape: list[int], data: Any) -> None:
    array = torch.arange(torch.Size(shape).numel()).view(shape)
    start = data.draw(st.integers(0, array.numel()))
    stop = data.draw(st.integers(start, array.numel()))
    found = list(boxes(shape, start, stop))
    flat = [
        array[tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))].flatten() for offset, size in found
    ]
    assert torch.cat([torch.empty(0, dtype=torch.long), *flat]).tolist() == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


def test_missing_parts_of_a_tensor_are_named(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    (tmp_path / "state").mkdir()
    write(tmp_path, 0, {"state": [Shard("a", (3, 4), (0, 0), whole[:2])]}, Transfer(Staging()))
    state = StoredState(tmp_path / "state")
    part = torch.zeros(2, 2)
    state.fill(Shard("a", (3, 4), (0, 2), part))
    assert part.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    with pytest.raises(CorruptArtifactError, match=r"holds 8 of the 12 elements of a from \(0, 0\)"):
        state.read("a")
    with pytest.raises(CorruptArtifactError, match=r"holds a as \(3, 4\), the model has \(4, 3\)"):
        state.fill(Shard("a", (4, 3), (0, 0), torch.zeros(4, 3)))


def test_replicas_split_the_writing_evenly() -> None:
    shards = [Shard(f"w{i}", (8,), (0,), torch.zeros(8)) for i in range(6)]
    places = [[(shard.place, 32) for shard in shards]] * 3
    mine = [[shard.key for shard in owned(shards, places, rank)] for rank in range(3)]
    assert sorted(key for keys in mine for key in keys) == [f"w{i}" for i in range(6)]
    assert [len(keys) for keys in mine] == [2, 2, 2]


def job_in(output: Path, tokens: Path, **changes: Any) -> TrainJob:
    job = TrainJob(
        output=output,
        model=MODEL,
        steps=6,
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4),
        optimizer=OptimizerConfig(lr=1e-2),
        data=NextTokenData(tokens=tokens),
        checkpoint=CheckpointConfig(every=1, keep=2, keep_every=2),
    )
    return job.but(**changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokens_folder: Path) -> TrainJob:
    """A completed job."""
    job = job_in(tmp_path_factory.mktemp("trained"), tokens_folder)
    assert loop.train(job, lambda: False)
    return job


def test_the_latest_and_every_second_checkpoint_are_kept_and_verify(trained: TrainJob) -> None:
    kept = sorted((trained.output / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["step_00000002", "step_00000004", "step_00000005", "step_00000006"]
    assert all(artifacts.verify(folder).kind == "checkpoint" for folder in kept)
    events = [line for line in read_metrics(trained.output / "metrics.jsonl") if line["event"] == "checkpoint"]
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert all(0 < event["stalled_seconds"] <= event["seconds"] for event in events)
    assert all(event["host_bytes"] == 2 * BLOCK for event in events), "one of weights, one of moments"


def test_a_job_logs_once_how_much_host_memory_its_saves_take(
    tmp_path: Path, tokens_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cupola_trainer.training.autosave")
    run = loop.begin(job_in(tmp_path, tokens_folder, checkpoint=CheckpointConfig(host_memory=0.25)))
    run.autosave.limit = 100_000  # a process writes more than this
    for _ in range(2):
        run.save()
        run.autosave.wait()
    assert [record.message for record in caplog.records] == [
        "a save takes 0.03 GiB of host memory a process, 0.03 GiB a node",
        (
            "a process writes 0.00 GiB: after a save, the next update waits until all but checkpoint.host_memory=0.25 GiB is "
            "on disk"
        ),
    ]


def test_a_resumed_job_with_another_model_mixture_or_schedule_is_refused_in_one_line(
    trained: TrainJob, tokens_folder: Path
) -> None:
    before = sorted(path.stat().st_mtime_ns for path in trained.output.rglob("*"))
    wider = trained.but(model=replace(MODEL, ffn_hidden_size=128))
    with pytest.raises(ConfigError, match="different architecture: ffn_hidden_size=64, the job's model has 128"):
        loop.begin(wider)
    weighted = trained.but(data=NextTokenData(tokens=tokens_folder, weights={"code": 2.0, "email": 1.0}))
    with pytest.raises(ConfigError, match=r"other data: weights=null, now {\"code\": 2.0.*allow-data-change"):
        loop.begin(weighted)
    assert sorted(path.stat().st_mtime_ns for path in trained.output.rglob("*")) == before
    with pytest.raises(ConfigError, match=r"trained with lr_decay_steps=6, this job has 7"):
        loop.begin(trained.but(steps=7, allow_data_change=True))
    assert loop.begin(weighted.but(allow_data_change=True)).progress.step == 6


def weights_and_moments(folder: Path) -> tuple[int, int]:
    """Bytes on disk of a checkpoint's weights and of its optimizer state."""
    weights, moments = (sum(file.stat().st_size for file in folder.glob(f"{part}/*.bin")) for part in PARTS)
    return weights, moments


def test_weights_are_a_third_of_an_fp32_checkpoint_and_a_seventh_of_a_bf16_one(
    trained: TrainJob, tmp_path: Path, tokens_folder: Path
) -> None:
    weights, moments = weights_and_moments(trained.output / "checkpoints" / "step_00000006")
    assert weights / (weights + moments) == pytest.approx(4 / 12, rel=1e-3)  # and two moments of 4 bytes
    half = loop.begin(job_in(tmp_path, tokens_folder, precision="bf16"))
    half.save()
    half.autosave.wait()
    half_weights, half_moments = weights_and_moments(tmp_path / "checkpoints" / "step_00000000")
    assert half_weights / (half_weights + half_moments) == pytest.approx(2 / 14, rel=1e-3)  # and an fp32 copy
    assert half_weights == pytest.approx(weights / 2, rel=1e-3)


def test_weights_load_without_their_optimizer_state_and_training_asks_for_it(trained: TrainJob, tmp_path: Path) -> None:
    run = loop.begin(trained.but(output=tmp_path / "job"))
    weights = tmp_path / "weights"
    whole = trained.output / "checkpoints" / "step_00000006"
    shutil.copytree(whole, weights, ignore=shutil.ignore_patterns("optimizer"))
    artifacts.seal(weights, kind="checkpoint")
    checkpoint.load_weights(weights, run.trainee.chunks)
    expected = StoredState(whole / "state")
    for shard in weight_shards(run.trainee.chunks):
        expected.fill(replace(shard, data=(wanted := torch.empty_like(shard.data))))
        assert torch.equal(shard.data, wanted), shard.key
    with pytest.raises(ConfigError, match=r"weights holds weights only.*cupola checkpoint restore"):
        checkpoint.load_training(weights, run.trainee.chunks, run.trainee.optimizer, run.trainee.scheduler)


def test_who_needs_only_weights_never_reads_the_moments(trained: TrainJob, tmp_path: Path) -> None:
    run = loop.begin(trained.but(output=tmp_path / "job"))
    folder = tmp_path / "step"
    shutil.copytree(trained.output / "checkpoints" / "step_00000006", folder)
    moments = folder / "optimizer" / "rank_00000.bin"
    moments.write_bytes(bytes(moments.stat().st_size))  # whoever reads them finds out
    checkpoint.load_weights(folder, run.trainee.chunks)
    read = StoredTensors(folder)
    for shard in weight_shards(run.trainee.chunks):
        assert torch.equal(read[shard.key][tuple(slice(a, a + n) for a, n in zip(shard.offset, shard.size, strict=True))],
                           shard.data), shard.key  # fmt: skip
    assert not [key for key in read if key.startswith("optimizer.")]
    with pytest.raises(CorruptArtifactError, match=r"optimizer/rank_00000\.bin is corrupt"):
        checkpoint.load_training(folder, run.trainee.chunks, run.trainee.optimizer, run.trainee.scheduler)
    weights = folder / "state" / "rank_00000.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(CorruptArtifactError, match=r"state/rank_00000\.bin is corrupt"):
        checkpoint.load_weights(folder, run.trainee.chunks)


def test_a_torn_optimizer_file_is_set_aside_like_torn_weights(trained: TrainJob, tmp_path: Path) -> None:
    shutil.copytree(trained.output, tmp_path, dirs_exist_ok=True)
    torn = tmp_path / "checkpoints" / "step_00000006" / "optimizer" / "rank_00000.bin"
    os.truncate(torn, torn.stat().st_size - 1)
    assert loop.begin(trained.but(output=tmp_path)).progress.step == 5
    assert (tmp_path / "checkpoints" / "torn" / "step_00000006" / "optimizer").is_dir()


def rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a checkpoint's index and seal it again."""
    index = folder / "optimizer" / "rank_00000.json"
    content = json.loads(index.read_bytes())
    change(content["tensors"])
    index.write_text(json.dumps(content))
    artifacts.seal(folder, kind="checkpoint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda all: all.remove(next(t for t in all if t["key"].startswith("optimizer.exp_avg_sq.embedding"))),
         r"holds no optimizer\.exp_avg_sq\.embedding\.word_embeddings\.weight, which this model trains \(1 missing\)"),
        (lambda all: all.append(all[0] | {"key": "optimizer.exp_inf.output"}),
         r"holds optimizer\.exp_inf\.output, which this model does not have \(1 extra\)"),
    ],
)  # fmt: skip
def test_a_missing_or_unexpected_moment_is_named(
    trained: TrainJob, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    run = loop.begin(trained.but(output=tmp_path))
    run.save()
    run.autosave.wait()
    folder = tmp_path / "checkpoints" / "step_00000000"
    rewrite(folder, change)
    with pytest.raises(CorruptArtifactError, match=message):
        checkpoint.load_training(folder, run.trainee.chunks, run.trainee.optimizer, run.trainee.scheduler)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 100 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_one_failed_save_is_reported_and_the_second_in_a_row_ends_the_job(tmp_path: Path, tokens_folder: Path) -> None:
    run = loop.begin(job_in(tmp_path, tokens_folder))
    run.start()
    saved = tmp_path / "checkpoints" / "step_00000003"
    for disk in (nullcontext(), full_disk(), nullcontext(), full_disk()):
        with disk:
            run.step()
            run.autosave.wait()
    failed = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["event"] == "checkpoint_failed"]
    assert [line["step"] for line in failed] == [2, 4]
    assert failed[0]["reason"] == "step_00000002 could not be saved: File too large."
    with full_disk():
        run.step()
        with pytest.raises(StageFailedError) as ended:
            run.autosave.wait()
    run.watchdog.stop()
    assert str(ended.value) == (
        f"2 saves in a row failed. step_00000005 could not be saved: File too large. Newest complete checkpoint: {saved}. "
        f"Make room in {saved.parent} and make it writable for every rank, then run the same command: it resumes from "
        "there."
    )
    assert sorted(path.name for path in saved.parent.iterdir()) == ["step_00000001", "step_00000003"]
    assert artifacts.verify(saved)


def test_a_job_whose_last_save_fails_is_not_complete(tmp_path: Path, tokens_folder: Path) -> None:
    run = loop.begin(job_in(tmp_path, tokens_folder, steps=1))
    run.start()
    with full_disk():
        run.step()
        with pytest.raises(StageFailedError, match=r"^step_00000001 could .* Newest complete checkpoint: none\."):
            run.complete()
    run.watchdog.stop()
    assert not (tmp_path / "result.json").exists()


@pytest.mark.slow  # a job in its own process, on a disk of its own
def test_a_running_job_on_a_full_disk_ends_with_one_line_and_resumes_once_there_is_room(
    tmp_path: Path, tokens_folder: Path
) -> None:
    alone = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("This machine gives no mount namespaces.")
    job = job_in(tmp_path, tokens_folder, steps=40)
    write_job(job, tmp_path / "job.json")
    disk, kept = tmp_path / "checkpoints", tmp_path / "kept"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=2m none "$0" && "$1" -m cupola_trainer "$2"; status=$?; cp -r "$0" "$3"; exit $status'
    )
    command = [*alone, "sh", "-c", script, str(disk), sys.executable, str(tmp_path / "job.json"), str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["type"] == "StageFailedError"
    assert re.match(
        r"2 saves in a row failed\. step_\d+ could not be saved: No space left on device\.", error["message"]
    )
    newest = max(kept.glob("step_*"))
    assert f"Newest complete checkpoint: {disk / newest.name}." in error["message"]
    assert artifacts.verify(newest)
    disk.rmdir()
    kept.rename(disk)
    assert (
        subprocess.run([sys.executable, "-m", "cupola_trainer", str(tmp_path / "job.json")], check=False).returncode
        == 0
    )
    starts = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line["event"] == "start"]
    assert starts == [0, int(newest.name.removeprefix("step_"))]


def test_data_from_another_tokenizer_is_refused(tmp_path: Path, tokens_folder: Path) -> None:
    for name, vocabulary in (("ours", {"a": 0}), ("data/tokenizer", {"b": 0})):
        (tmp_path / name).mkdir(parents=True)
        content = {"model": {"vocab": vocabulary}, "added_tokens": []}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    for name in ("index.json", "shards"):
        os.symlink(tokens_folder / name, tmp_path / "data" / name)
    job = job_in(tmp_path / "job", tmp_path / "data", tokenizer=tmp_path / "ours")
    with pytest.raises(ConfigError, match="uses a different tokenizer than the model's"):
        loop.begin(job)


def test_a_weight_in_fp32_comes_from_the_master_copy_of_a_bf16_run(tmp_path: Path, tokens_folder: Path) -> None:
    half = loop.begin(job_in(tmp_path / "half", tokens_folder, precision="bf16"))
    half.start()
    half.step()
    half.autosave.wait()
    half.watchdog.stop()
    saved = tmp_path / "half" / "checkpoints" / "step_00000001"
    state = StoredState(saved / "state", saved / "optimizer")
    whole = loop.begin(job_in(tmp_path / "half", tokens_folder, precision="fp32"))
    assert whole.progress.step == 1
    rounded = 0
    for shard in weight_shards(whole.trainee.chunks):
        master, half_weight = torch.empty_like(shard.data), torch.empty_like(shard.data)
        state.fill(replace(shard, data=master), f"optimizer.master.{shard.key}")
        state.fill(replace(shard, data=half_weight))
        assert torch.equal(shard.data, master)
        rounded += not torch.equal(half_weight, master)
    assert rounded > 5
