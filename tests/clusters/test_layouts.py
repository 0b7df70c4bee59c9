"""`cupola verify-layout` over the nodes of a real Slurm cluster, against one process."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a minute for each layout
EXPERTS = ("--set", "stages.pretrain.model.moe={num_experts: 4, top_k: 2, expert_ffn_hidden_size: 32}")


def compare(cupola: Any, recipe: Path, layout: str, *more: str) -> dict[str, Any]:
    """The command's comparison of three steps in a layout with one process."""
    done = cupola("verify-layout", str(recipe), "--layout", layout, "--steps", "3", "--json", "--run-on", "test", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert len(found["steps"]) == 3
    return found


def sizes(slurm: Any) -> list[int]:
    """Nodes of the jobs that Slurm knows, oldest first."""
    jobs = slurm.ask("scontrol", "--oneliner", "show", "job").splitlines()
    return [int(re.search(r"NumNodes=(\d+)", job)[1]) for job in jobs]  # type: ignore[index]


@pytest.mark.parametrize(
    ("layout", "nodes", "more"),
    [
        ("tp=2,sp=true", 2, ()),
        ("tp=2,pp=2", 4, ()),
        ("cp=2,dp=2", 4, ()),
        ("ep=2,dp=4", 4, EXPERTS),
    ],
)
def test_nodes_train_as_one_process_does(
    layout: str, nodes: int, more: tuple[str, ...], with_store: Any, recipe: Path, slurm: Any
) -> None:
    found = compare(with_store(shared=True), recipe, layout, *more)
    assert found["loss_difference"] <= 1e-5
    assert found["norm_difference"] <= 1e-4
    assert sizes(slurm)[-2:] == [nodes, 1]


def test_nodes_without_a_shared_folder_do_too_and_leave_nothing_in_the_store(
    with_store: Any, recipe: Path, slurm: Any, s3: Any, tmp_path: Path
) -> None:
    home = tmp_path / "node"
    home.mkdir()
    slurm.hide(home, 1, 2, 3, 4)
    try:
        found = compare(with_store(shared=False, home=home), recipe, "tp=2")
    finally:
        slurm.show()
    assert found["loss_difference"] <= 1e-5
    assert found["norm_difference"] <= 1e-4
    assert "Contents" not in s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/jobs/")


def test_a_layout_that_the_cluster_has_no_room_for_is_refused(with_store: Any, recipe: Path) -> None:
    done = with_store(shared=True)("verify-layout", str(recipe), "--layout", "dp=8", "--run-on", "test")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].count("8 ranks; cluster test runs at most 4 x 1 = 4") == 1
