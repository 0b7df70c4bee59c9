"""A read-only workspace can be viewed: on a read-only mount, and in folders of another user."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.artifacts import Artifact
from cupola_platform.workspace import Workspace

LOOK = """
import json, sys
from pathlib import Path
from cupola_platform.errors import CupolaError
from cupola_platform.workspace import Workspace
ws = Workspace.open(Path(sys.argv[1]))
ws.registry.sweep_lost_runs()
found = {
    "runs": sorted([run.recipe, run.status] for run in ws.registry.runs()),
    "id": ws.resolve("champion").id, "lineage": ws.lineage(ws.resolve("champion")).kind, "new": ws.adopt(),
}
try:
    ws.registry.start_run("another", "prepare")
except CupolaError as error:
    found["refused"] = [str(error), error.exit_code]
print(json.dumps(found))
"""
WRITE = """
import sys, time
from pathlib import Path
from cupola_platform.workspace import Workspace
registry = Workspace.open(Path(sys.argv[1])).registry
registry.finish_run(registry.start_run("later", "sft"), "cancelled")
print("written", flush=True)
time.sleep(600)
"""
MOUNT, NO_RIGHTS = "a read-only mount", "folders without permission"
REFUSED = "The registry sqlite:///{}/registry.db is read-only. Change the permissions of its folder, or use another workspace."
Bound = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """One artifact, made by one run, and a run whose process is gone."""
    ws = Workspace.open(tmp_path / "ws")
    folder = ws.folder("work/made")
    (folder / "text").write_text("text")
    run = ws.registry.start_run("mine", "prepare")
    artifact: Artifact = ws.publish(folder, kind="tokens", stage="prepare", run_id=run)
    ws.registry.finish_run(run, "completed", artifact.digest)
    ws.registry.set_alias("champion", artifact.digest, "the only one")
    ws.registry.close()
    return ws.root


@pytest.fixture
def how(request: pytest.FixtureRequest) -> str:
    """Why the workspace is read-only."""
    return str(getattr(request, "param", MOUNT))


@pytest.fixture
def bound(how: str, workspace: Path) -> Bound:
    """A function that runs Python where the workspace is read-only, even for root."""
    places = [workspace, *(place for place in workspace.rglob("*"))]
    mount, nobody = ["--ro-bind", str(workspace), str(workspace)], ["--unshare-user", "--cap-drop", "ALL"]

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["bwrap", "--dev-bind", "/", "/", *(mount if how == MOUNT else nobody), sys.executable, *arguments]
        changed = [*places, *workspace.glob("registry.db-*")] if how != MOUNT else []
        for place in changed:
            place.chmod(place.stat().st_mode & ~0o222)
        try:
            return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        finally:
            for place in changed:
                place.chmod(place.stat().st_mode | 0o200)

    return run


@pytest.fixture
def other(request: pytest.FixtureRequest, workspace: Path) -> Iterator[bool]:
    """Whether another process has written, and what it left."""
    if request.param == "closed":
        yield False
        return
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(workspace)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert writer.stdout.readline() == "written\n"
    if request.param != "open elsewhere":
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    if request.param.startswith("copied"):
        (workspace / "registry.db-shm").unlink()
    assert (workspace / "registry.db-wal").stat().st_size > 0
    yield True
    writer.kill()
    writer.wait()


@pytest.mark.parametrize(
    ("how", "other"),
    [
        (MOUNT, "closed"), (MOUNT, "left by a killed process"), (MOUNT, "copied without the log's index"),
        (NO_RIGHTS, "closed"), (NO_RIGHTS, "open elsewhere"),
    ],
    indirect=True,
)  # fmt: skip
def test_it_can_be_viewed_but_not_written(bound: Bound, workspace: Path, other: bool) -> None:
    champion = Workspace.open(workspace).registry.alias("champion")
    assert champion is not None
    before = {path: path.read_bytes() for path in workspace.glob("registry.db*") if not path.name.endswith("-shm")}
    done = bound("-c", LOOK, str(workspace))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == {
        "runs": [*([["later", "cancelled"]] if other else []), ["mine", "completed"]],
        "id": champion.digest[:12], "lineage": "tokens", "new": 0,
        "refused": [REFUSED.format(workspace), 2],
    }  # fmt: skip
    assert {path: path.read_bytes() for path in before} == before


def test_a_command_that_must_write_says_so_in_one_line(bound: Bound, workspace: Path) -> None:
    cupola = "from cupola_flows.cli import main; main()"
    looked = bound("-c", cupola, "runs", "--json", "--workspace", str(workspace))
    assert [run["recipe"] for run in json.loads(looked.stdout)] == ["mine"]
    refused = bound("-c", cupola, "tracking", "flush", "--workspace", str(workspace))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"cupola: error: {workspace}/spool: Read-only file system.")
    assert refused.stderr.count("\n") == 1
