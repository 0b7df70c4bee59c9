"""A cluster whose nodes share no folder: each has a workspace of its own, and only the store is common to all."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]
STEPS = ("--set", "stages.pretrain.steps=60", "--set", "stages.pretrain.checkpoint.every=5")
LONG = ("--set", "stages.pretrain.steps=200", "--set", "stages.pretrain.checkpoint.every=5")
ON = ("--run-on", "test", "--no-prefect")


@pytest.fixture
def private(cupola: Any, slurm: Any) -> Any:
    """The nodes of the test's cluster, each of which has an empty file system where the workspace is."""
    cupola.workspace.mkdir(parents=True, exist_ok=True)
    slurm.hide(cupola.workspace, 1, 2, 3, 4)
    yield
    slurm.show()


@pytest.fixture
def other_path(slurm: Any, tmp_path: Path) -> Any:
    """The nodes' workspace, at another path than this machine's, and a file system of each node's own."""
    path = tmp_path / "node"
    path.mkdir()
    slurm.hide(path, 1, 2, 3, 4)
    yield path
    slurm.show()


def jobs_objects(s3: Any, tmp_path: Path) -> list[str]:
    """What jobs have in the store, as keys."""
    listed = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/jobs/")
    return [item["Key"] for item in listed.get("Contents", [])]


def test_a_run_equals_one_on_a_single_machine(
    other_path: Path,
    with_store: Any,
    recipe: Path,
    undisturbed: Callable[..., dict[str, str]],
    s3: Any,
    tmp_path: Path,
) -> None:
    cupola = with_store(shared=False, home=other_path)
    done = cupola("run", str(recipe), *ON, *STEPS)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = cupola.workspace.glob("logs/pretrain-*.log")
    assert re.search(r"cupola: n1: fetched [1-9][0-9,]* bytes of inputs", log.read_text())
    assert re.search(r"cupola: n2: fetched [1-9][0-9,]* bytes of inputs", log.read_text())
    assert jobs_objects(s3, tmp_path) == []
    assert not list(cupola.workspace.rglob("rank_*.bin")), "the checkpoint was copied within the store"
    published = cupola.published()
    (cupola.workspace.parent / "cupola.toml").unlink()  # the twin has a store of its own
    assert published == undisturbed(recipe, *STEPS)


def inside(slurm: Any, node: str, workspace: Path, pattern: str) -> list[Path]:
    """Files of a job's folder as a node sees them, through a process of the node."""
    for process in slurm.processes(node):
        with suppress(OSError):
            there = Path(f"/proc/{process.pid}/root{workspace}")
            if list(there.glob("work/*/job")):
                return list(there.glob(f"work/*/job/{pattern}"))
    return []


def is_at(slurm: Any, cupola: Any, node: str, place: str, whole: set[str]) -> bool:
    """Whether a node is in a step, writes a checkpoint, or has one that is not whole in the store."""
    if place == "a step":
        return bool(whole)
    if place == "a save":
        return bool(whole and inside(slurm, node, cupola.workspace, "checkpoints/.step_*.partial"))
    sealed = inside(slurm, node, cupola.workspace, "checkpoints/step_*/manifest.json")
    return bool(whole and {path.parent.name for path in sealed} - whole)


@pytest.mark.parametrize(("place", "node"), [("a step", "n1"), ("a save", "n2"), ("an upload", "n2")])
def test_a_lost_node_leaves_no_trace(
    private: Any, with_store: Any, slurm: Any, recipe: Path, undisturbed: Callable[..., dict[str, str]], s3: Any,
    tmp_path: Path, place: str, node: str,
) -> None:  # fmt: skip
    cupola = with_store(shared=False)
    run = cupola.start("run", str(recipe), *ON, *LONG)
    until = time.monotonic() + 400
    while True:
        assert time.monotonic() < until, f"{node} was not in {place}"
        assert run.poll() is None, run.communicate()[0]
        keys = [key for key in jobs_objects(s3, tmp_path) if key.endswith("manifest.json")]
        whole = {re.search(r"step_\d+", key)[0] for key in keys}  # type: ignore[index]
        if is_at(slurm, cupola, node, place, whole):
            break
        time.sleep(0.02)
    slurm.kill_node(int(node[1:]))
    printed, _ = run.communicate(timeout=800)
    assert run.returncode == 0, printed
    starts = [event["step"] for event in cupola.events() if event["event"] == "start"]
    assert starts[0] == 0
    assert len(starts) == 2
    assert starts[1] > 0
    published = cupola.published()
    (cupola.workspace.parent / "cupola.toml").unlink()
    assert published == undisturbed(recipe, *LONG)


@pytest.mark.parametrize(
    ("hidden", "prepared", "says"),
    [
        ((2,), True, r"is not one folder for all nodes: n2 does not see what n1 writes there. Mount the workspace"),
        ((1, 2, 3, 4), True, r"Cluster test: node n1 wrote nothing into .*/job, so it does not share that folder"),
        ((1, 2, 3, 4), False, r"nodes wrote nothing into .*/read_and_clean/slurm, so they do not share that folder"),
    ],
)
def test_nodes_that_do_not_share_the_folder_although_the_cluster_says_so_are_named(
    cupola: Any, slurm: Any, with_store: Any, recipe: Path, hidden: tuple[int, ...], prepared: bool, says: str
) -> None:
    command = with_store(shared=True)
    if prepared:
        command("run", str(recipe), "--no-prefect", "--only", "prepare")
    cupola.workspace.mkdir(parents=True, exist_ok=True)
    slurm.hide(cupola.workspace, *hidden)
    try:
        done = command("run", str(recipe), *ON, *STEPS)
    finally:
        slurm.show()
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(says, " ".join(done.stderr.split()))
    assert "Traceback" not in done.stdout + done.stderr
