"""`cupola gc`: prints what it removes, keeps what is in use, goes on after a kill, and what it removed is made again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from cupola_flows.execution.backup import Backup
from cupola_flows.runs import collection
from cupola_flows.runs.collection import collect_garbage
from cupola_platform import artifacts
from cupola_platform.launch.unshared.launcher import contract_of
from cupola_platform.workspace import Workspace

Eventually = Callable[[Callable[[], bool], float, str], None]
LONG_AGO = datetime.now(UTC) - timedelta(days=31)


def long_unused(ws: Workspace) -> None:
    """Make everything look as if nobody had touched it for a month."""
    engine = create_engine(ws.settings.registry)
    with engine.begin() as connection:
        for change in (
            "artifact SET used = :then, created = :then",
            "run SET ended = :then WHERE status = 'completed'",
        ):
            connection.execute(text(f"UPDATE {change}"), {"then": LONG_AGO.replace(tzinfo=None)})
    engine.dispose()
    for path in [*ws.folder("work").rglob("*")]:
        os.utime(path, (LONG_AGO.timestamp(),) * 2)


def publish(ws: Workspace, folder: Path, name: str, **options: Any) -> artifacts.Artifact:
    (folder / name).mkdir(parents=True)
    (folder / name / "content").write_text(name * 1000)
    return ws.publish(folder / name, kind="checkpoint", stage=name, **options)


def files(folder: Path) -> set[Path]:
    """Everything in the store and in work folders."""
    return {path for path in (*folder.glob("store/**/*"), *folder.glob("work/**/*")) if path.is_file()}


@pytest.mark.slow
def test_a_dry_run_lists_what_is_removed_with_its_bytes_and_removes_nothing(cupola: Any, tmp_path: Path) -> None:
    ws = Workspace.open(cupola.workspace)
    finished, interrupted = "a" * 64, "b" * 64
    kept = publish(ws, tmp_path, "kept")
    gone = publish(ws, tmp_path, "gone", fingerprint=finished)
    ws.registry.set_alias("champion", kept.digest, "It won.")
    for mark in (finished, interrupted):
        job = ws.work_folder(mark) / "job"
        (job / "checkpoints" / "step_00000001").mkdir(parents=True)
        (job / "checkpoints" / "step_00000001" / "weights").write_text("w" * 500)
        artifacts.seal(job / "checkpoints" / "step_00000001", kind="checkpoint", config={"step": 1})
        assert Backup(ws.store, mark, job).update() is not None
    long_unused(ws)
    before = files(cupola.workspace)
    listed = cupola.json("gc", "--dry-run")
    assert files(cupola.workspace) == before
    assert [(row["what"], row["name"]) for row in listed["removed"]] == [
        ("work folder", finished[:12]), ("checkpoint copies", finished[:12]), ("artifact", gone.id),
    ]  # fmt: skip
    assert [row["bytes"] for row in listed["removed"]][2] == 4000
    assert listed["bytes"] == sum(row["bytes"] for row in listed["removed"]) > 5000
    done = cupola("gc")
    assert done.returncode == 0, done.stderr
    assert "Removed 1 work folder, 1 checkpoint copies, 1 artifact: " in done.stdout
    left = files(cupola.workspace)
    assert {path for path in left if path.suffix != ".lock"} < before
    assert {path.relative_to(cupola.workspace).parts[:3] for path in left} == {
        ("store", "artifacts", kept.digest), ("store", "progress", f"{interrupted}-job"), ("work", f"{finished}.lock"),
        ("work", interrupted, "job"),
    }  # fmt: skip
    assert list(collect_garbage(ws, older_than=timedelta(days=30), dry_run=False)) == []
    assert artifacts.verify(ws.resolve("champion").path)


def test_a_stage_that_another_command_runs_keeps_its_work_folder(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path / "home")
    mark = "a" * 64
    publish(ws, tmp_path, "made", fingerprint=mark)
    folder = ws.work_folder(mark)
    (folder / "job").mkdir()
    long_unused(ws)
    ws.registry.leases.take(mark, "another")
    for dry_run in (True, False):
        found = collect_garbage(ws, older_than=timedelta(days=30), dry_run=dry_run)
        assert [each.what for each in found] == ["artifact"]
    assert (folder / "job").is_dir()


def test_what_jobs_left_in_the_store_goes_once_no_run_can_need_it(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPOLA_STORE_URL", f"s3://{s3.bucket}/{tmp_path.name}")
    monkeypatch.setenv("CUPOLA_S3_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setattr(collection, "LATELY", timedelta(0))  # a server's clock cannot be set back
    ws = Workspace.open(tmp_path / "home")
    published, failed, detached, running = (digit * 64 for digit in "0123")
    objects = contract_of(ws.settings, ws.root / "work").objects()
    for name in (published, failed, detached, running, "probe-left", "probe-running"):
        objects.write(f"{name}/round1/run2/files/metrics.jsonl/000000", b"x" * 100)
        objects.write(f"{name}/round1/run2/parts/checkpoints/step_00000001@d/manifest.json", b"y" * 11)
    run = ws.registry.start_run("recipe", "failed")
    ws.registry.update_run(run, work_folder=ws.root / "work" / failed)
    ws.registry.finish_run(run, "failed", error="lost")
    for mark in (published, detached, running):
        made = publish(ws, tmp_path, mark, fingerprint=mark)
        ws.registry.set_alias(f"made{mark[0]}", made.digest, "It stays.")
    for mark in (detached, running):
        ws.registry.leases.take(mark, "another")
    ws.registry.leases.note_job(detached, "another", "h100", "17")
    ws.registry.leases.release(detached, "another", job_goes_on=True)
    (ws.folder("work") / "probe-running").mkdir()

    def left() -> set[str]:
        return {name.partition("/")[0] for name in objects.sizes()}

    def gone(*, days: float, dry_run: bool) -> list[tuple[str, int]]:
        found = collect_garbage(ws, older_than=timedelta(days=days), dry_run=dry_run)
        return [(each.name, each.bytes) for each in found if each.what == "job files"]

    everything = left()
    assert gone(days=30, dry_run=True) == [(published[:12], 111)]
    assert gone(days=-1, dry_run=True) == [(published[:12], 111), ("probe-left", 111)]
    assert left() == everything == {published, failed, detached, running, "probe-left", "probe-running"}
    assert gone(days=-1, dry_run=False) == [(published[:12], 111), ("probe-left", 111)]
    assert left() == {failed, detached, running, "probe-running"}
    assert gone(days=-1, dry_run=False) == []
    ws.registry.leases.forget_job(detached)
    publish(ws, tmp_path, failed, fingerprint=failed)
    assert gone(days=30, dry_run=False) == [(failed[:12], 111), (detached[:12], 111)]


@pytest.mark.slow
def test_a_killed_collection_leaves_whole_artifacts_and_the_next_one_goes_on(
    tmp_path: Path, eventually: Eventually
) -> None:
    ws = Workspace.open(tmp_path / "home")
    for number in range(60):
        publish(ws, tmp_path, f"made{number}", fingerprint=f"{number:064d}")
    long_unused(ws)
    kept = publish(ws, tmp_path, "kept")
    slowly = (  # the command itself, with a pause after each artifact, so that the kill comes between two
        "import sys, time; from cupola_platform.store import LocalStore; withdraw = LocalStore.withdraw;"
        "LocalStore.withdraw = lambda self, digest: (withdraw(self, digest), time.sleep(0.05));"
        f"sys.argv = ['cupola', 'gc', '--workspace', {str(ws.root)!r}]; from cupola_flows.cli import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", slowly])
    eventually(lambda: len(ws.store.digests()) <= 50, 60, "ten removals")
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = ws.store.digests()
    assert 1 < len(left) <= 50
    again = Workspace.open(tmp_path / "home")
    assert [row.digest for row in again.registry.artifacts()] == [kept.digest]
    assert left - {kept.digest} <= {each.digest for each in again.registry.retention.pending()}
    assert all(artifacts.verify(again.store.get(digest).path) for digest in left)
    assert again.find(f"{59:064d}") is None
    assert len(list(collect_garbage(again, older_than=timedelta(days=30), dry_run=False))) in (len(left) - 1, len(left))
    assert again.store.digests() == {kept.digest}
    assert [path.name for path in (again.root / "store" / "artifacts").iterdir()] == [kept.digest]


@pytest.mark.slow
def test_what_is_removed_from_s3_goes_from_the_cache_unless_a_process_uses_it(
    cupola: Any, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPOLA_STORE_URL", f"s3://{s3.bucket}/{tmp_path.name}")
    monkeypatch.setenv("CUPOLA_S3_ENDPOINT_URL", s3.endpoint_url)
    (tmp_path / "elsewhere" / "state").mkdir(parents=True)
    (tmp_path / "elsewhere" / "state" / "content").write_text("made by another process")
    script = (
        "import sys; from pathlib import Path; from cupola_platform.workspace import Workspace\n"
        "Workspace.open(Path(sys.argv[1])).publish(Path(sys.argv[2]), kind='checkpoint', stage='elsewhere')"
    )
    home = cupola.workspace
    subprocess.run([sys.executable, "-c", script, str(home), str(tmp_path / "elsewhere")], check=True)
    ws = Workspace.open(home)
    mark = "a" * 64
    made = publish(ws, tmp_path, "made", fingerprint=mark)
    job = ws.work_folder(mark) / "job"
    (job / "checkpoints" / "step_00000001").mkdir(parents=True)
    (job / "checkpoints" / "step_00000001" / "weights").write_text("w")
    artifacts.seal(job / "checkpoints" / "step_00000001", kind="checkpoint", config={"step": 1})
    assert Backup(ws.store, mark, job).update() is not None
    long_unused(ws)
    assert len([path for path in (home / "cache").iterdir() if path.is_dir()]) == 2
    removed = cupola.json("gc")["removed"]
    assert [row["what"] for row in removed] == ["work folder", "checkpoint copies", "artifact", "artifact"]
    assert "Contents" not in s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/")
    assert [path for path in (home / "cache").iterdir() if path.is_dir()] == [made.path], "this process uses it"


@pytest.mark.slow  # a recipe twice
@pytest.mark.timeout(900)
def test_a_run_in_progress_loses_nothing_and_what_was_removed_is_made_again(
    cupola: Any, recipe: Path, eventually: Eventually
) -> None:
    assert cupola("run", str(recipe), "--no-prefect").returncode == 0
    first = cupola.published()
    ws = Workspace.open(cupola.workspace)
    run = cupola.start("run", str(recipe), "--no-prefect", "--set", "stages.pretrain.steps=4000")
    eventually(lambda: any(event["event"] == "step" for event in cupola.events()), 200, "a step")
    assert cupola.json("gc", "--older-than", "0")["removed"] == []
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    long_unused(ws)
    removed = cupola.json("gc")["removed"]
    assert {row["name"] for row in removed if row["what"] == "artifact"} == set(first.values())
    assert cupola.json("artifacts") == []
    assert cupola("run", str(recipe), "--no-prefect").returncode == 0
    assert cupola.published() == first
