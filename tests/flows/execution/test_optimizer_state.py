"""A trained checkpoint is published as weights, with its optimizer state beside it, and the two can be put together."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.optimizer_state import restore, split_off
from cupola_flows.terminal.display import Display
from cupola_platform import artifacts
from cupola_platform.artifacts import sealing
from cupola_platform.artifacts.elsewhere import Elsewhere
from cupola_platform.errors import ConfigError, NotFoundError, StoreError
from cupola_platform.store import LocalStore, open_store
from cupola_platform.store.s3 import S3Store
from cupola_platform.workspace import Workspace

STEP = "checkpoints/step_00000007"
FILES = {
    "model.json": "{}",
    "training.json": '{"step": 7}',
    "state/rank_00000.bin": "w" * 1000,
    "optimizer/rank_00000.bin": "m" * 2000,
    "optimizer/optimizer.json": '{"step": 7}',
}


@pytest.fixture
def ctx(tmp_path: Path) -> StageContext:
    ws = Workspace.open(tmp_path / "home")
    (tmp_path / "work").mkdir()
    return StageContext(
        workspace=ws, recipe="short", name="sft", gives="checkpoint", config={}, seed=0, fingerprint="f" * 64,
        run_id=ws.registry.start_run("short", "sft"), folder=tmp_path / "work", display=Display({"sft": "sft"}),
    )  # fmt: skip


@pytest.fixture
def saved(ctx: StageContext) -> Path:
    """A job's last checkpoint."""
    folder = ctx.folder / "job" / STEP
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    artifacts.seal(folder, kind="checkpoint", config={"step": 7})
    return folder


def test_weights_and_optimizer_state_become_two_artifacts_without_copying_or_hashing(
    ctx: StageContext, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes = {name: (saved / name).stat().st_ino for name in FILES}
    whole = artifacts.read(saved).digest
    hashed: list[Path] = []
    digest_file = sealing.digest_file  # type: ignore[attr-defined]

    def noted(path: Path) -> str:
        hashed.append(path)
        digest: str = digest_file(path)
        return digest

    monkeypatch.setattr(sealing, "digest_file", noted)
    weights = split_off(ctx, saved, publish=True)
    checkpoint = ctx.publish(weights.path, parents=[], metrics={}, known=weights.manifest.known)
    assert hashed == []
    assert sorted(file.path for file in checkpoint.manifest.files) == [
        "model.json", "state/rank_00000.bin", "training.json",
    ]  # fmt: skip
    (row,) = ctx.workspace.registry.children(checkpoint.digest)
    assert (row.kind, row.stage, row.parents) == ("optimizer", "sft-optimizer", (checkpoint.digest,))
    optimizer = ctx.workspace.store.get(row.digest)
    assert (checkpoint.path / "state/rank_00000.bin").stat().st_ino == inodes["state/rank_00000.bin"]
    assert (optimizer.path / "rank_00000.bin").stat().st_ino == inodes["optimizer/rank_00000.bin"]
    sizes = [artifacts.verify(artifact.path).manifest.size for artifact in (checkpoint, optimizer)]
    assert sizes == [1013, 2011]

    job = ctx.folder / "again"
    assert restore(ctx.workspace, checkpoint, job) == job / STEP
    assert artifacts.verify(job / STEP).digest == whole, "what the job saved"
    assert artifacts.read(job / STEP).manifest.config == {"step": 7}
    with pytest.raises(ConfigError, match="step_00000007 exists already"):
        restore(ctx.workspace, checkpoint, job)
    optimizer.path.rename(ctx.folder / "removed")
    with pytest.raises(NotFoundError, match=r"no optimizer state of checkpoint .* has been removed"):
        restore(ctx.workspace, checkpoint, ctx.folder / "third")


def test_without_publish_optimizer_the_state_is_removed(ctx: StageContext, saved: Path) -> None:
    weights = split_off(ctx, saved, publish=False)
    checkpoint = ctx.publish(weights.path, parents=[], metrics={}, known=weights.manifest.known)
    assert [row.kind for row in ctx.workspace.registry.artifacts()] == ["checkpoint"]
    assert artifacts.verify(checkpoint.path)
    assert not (ctx.folder / "optimizer").exists()


def test_a_stage_whose_store_refuses_the_optimizer_state_publishes_both_at_the_next_attempt(
    ctx: StageContext, saved: Path, s3: Any, tmp_path: Path
) -> None:
    nowhere = S3Store("s3://nowhere", cache=LocalStore(tmp_path / "cache"), endpoint_url=s3.endpoint_url)
    for _ in range(2):
        with pytest.raises(StoreError, match="does not exist"):
            split_off(replace(ctx, workspace=replace(ctx.workspace, store=nowhere)), saved, publish=True)
    weights = split_off(ctx, saved, publish=True)
    checkpoint = ctx.publish(weights.path, parents=[], metrics={}, known=weights.manifest.known)
    (row,) = ctx.workspace.registry.children(checkpoint.digest)
    assert artifacts.verify(ctx.workspace.store.get(row.digest).path).manifest.size == 2011
    assert artifacts.verify(checkpoint.path).manifest.size == 1013


def test_a_checkpoint_that_only_the_store_has_is_split_there(
    ctx: StageContext, saved: Path, s3: Any, tmp_path: Path
) -> None:
    whole = artifacts.read(saved).manifest
    settings = ctx.workspace.settings.model_copy(
        update={"store_url": f"s3://{s3.bucket}/{tmp_path.name}", "s3_endpoint_url": s3.endpoint_url}
    )
    store = open_store(settings)
    assert isinstance(store, S3Store)
    folder = settings.home / "work" / "f"
    at = f"jobs/work/f/job/parts/{STEP}@{whole.digest}"
    for name, text in FILES.items():
        store.objects(at).write(name, text.encode())
        if name.endswith(".bin"):
            (saved / name).unlink()
    Elsewhere(at=at).write(saved)
    apart = replace(ctx, workspace=replace(ctx.workspace, settings=settings, store=store), folder=folder)
    folder.mkdir(parents=True)
    weights = split_off(apart, saved, publish=True)
    checkpoint = apart.publish(weights.path, parents=[], metrics={}, known=weights.manifest.known)
    (row,) = ctx.workspace.registry.children(checkpoint.digest)
    assert not [path for path in tmp_path.rglob("*.bin") if path.is_file()]
    assert store.objects("jobs").sizes() == {}, "removed with the stage's artifact"
    optimizer = store.get(row.digest)
    assert (optimizer.path / "rank_00000.bin").read_text() == FILES["optimizer/rank_00000.bin"]
    assert [artifacts.verify(each.path).manifest.size for each in (store.get(checkpoint.digest), optimizer)] == [
        1013, 2011,
    ]  # fmt: skip
    assert restore(apart.workspace, store.get(checkpoint.digest), folder / "job") == folder / "job" / STEP
    assert artifacts.verify(folder / "job" / STEP).digest == whole.digest


@pytest.mark.slow  # a run of a recipe
def test_a_published_checkpoint_and_its_optimizer_resume_in_a_job(cupola: Any, recipe: Path, tmp_path: Path) -> None:
    done = cupola("run", str(recipe), "--no-prefect", "--set", "stages.pretrain.layout={tp: 1}")
    assert done.returncode == 0, done.stderr
    rows = {row["kind"]: row["id"] for row in cupola.json("artifacts")}
    weights, optimizer = (cupola.json("show", rows[kind]) for kind in ("checkpoint", "optimizer"))
    assert optimizer["parents"] == [weights["digest"]]
    sizes = [sum(f["size"] for f in one["files"] if f["path"].endswith(".bin")) for one in (weights, optimizer)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=1e-2), "fp32: two moments"
    (job,) = cupola.workspace.glob("work/*/job")
    done = cupola("checkpoint", "restore", rows["checkpoint"], "--to", str(tmp_path / "job"))
    assert done.returncode == 0, done.stderr
    description = json.loads((job / "job.json").read_text()) | {"output": str(tmp_path / "job")}
    (tmp_path / "job" / "job.json").write_text(json.dumps(description))
    command = [sys.executable, "-m", "cupola_trainer", str(tmp_path / "job" / "job.json")]
    subprocess.run(command, check=True, env=cupola.environment())
    events = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("start", 20), ("end", 20)]
