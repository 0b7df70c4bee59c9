"""Whether the nodes of a job see one folder, each node a process here."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cupola_trainer.runtime.folders import _odd

LOOK = """
import sys
from pathlib import Path
import torch.distributed as dist
from cupola_platform.errors import ConfigError
from cupola_trainer.runtime import folders
folders.PATIENCE = 1.0
try:
    folders.check_shared(Path(sys.argv[1]), dist.FileStore(sys.argv[2], 3))
except ConfigError as error:
    print(error)
"""


def look(tmp_path: Path, places: list[Path], variables: Mapping[str, str]) -> list[str]:
    """What the first rank of each of three nodes says about its folder."""
    ranks = []
    for node, folder in enumerate(places):
        place = {"GROUP_RANK": str(node), "GROUP_WORLD_SIZE": "3", "LOCAL_RANK": "0", "SLURMD_NODENAME": f"n{node}"}
        command = [sys.executable, "-c", LOOK, str(folder), str(tmp_path / "rendezvous")]
        ranks.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **place, **variables})
        )
    return [rank.communicate(timeout=100)[0].strip() for rank in ranks]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("places", "variables", "says"),
    [
        ((0, 0, 0), {}, ""),
        ((0, 1, 0), {}, "is not one folder for all nodes: n1 does not see what n0, n2 writes there. Mount"),
        ((0, 1, 2), {"CUPOLA_JOB_SECTION": "jobs/x"}, ""),
    ],
)
def test_every_rank_names_the_nodes_that_see_another_folder_than_most(
    tmp_path: Path, places: tuple[int, ...], variables: dict[str, str], says: str
) -> None:
    folders = [tmp_path / str(place) for place in places]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    lines = look(tmp_path, folders, variables)
    assert all(says in line and bool(says) == bool(line) for line in lines)
    assert [path for folder in folders for path in folder.iterdir()] == []


def test_what_most_nodes_see_is_the_folder() -> None:
    none = [False] * 3
    assert _odd(["a", "b", "c"], [(0, 1, 2)] * 3, none) == ""
    assert (
        _odd(["a", "b", "c"], [(0,), (1, 2), (1, 2)], [True, False, False]) == "a does not see what b, c writes there"
    )
    assert _odd(["a", "b"], [(0,), (1,)], none[:2]) == "b does not see what a writes there"
    assert _odd(["a", "b"], [(0,), (1,)], [False, True]) == "a does not see what b writes there", "b sees the job"
    assert _odd(["a", "b"], [(), ()], none[:2]) == "no node sees any file"
