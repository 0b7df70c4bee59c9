"""A job's folder, as its ranks see it: one that all nodes share, or one of each node's own.

Where nodes share none, the first rank of each node does in its node's folder what otherwise rank 0 does for all.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed as dist

from cupola_platform.errors import ConfigError
from cupola_platform.unshared.contract import is_unshared

FINGERPRINTED = False  # says who writes a file, not what is in it

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds for another node's file to appear: network file systems cache folders."""


def is_shared() -> bool:
    """Whether every rank sees the same folder."""
    return not is_unshared()


def node() -> int:
    """This rank's node, counted from 0, which has rank 0."""
    return int(os.environ.get("GROUP_RANK", "0"))


def leads() -> bool:
    """Whether this rank writes what its folder needs once: rank 0, or the first rank of each node."""
    return int(os.environ.get("RANK" if is_shared() else "LOCAL_RANK", "0")) == 0


def share() -> tuple[int, int]:
    """(i, n): this rank is the i-th of the n ranks that see this folder."""
    place, size = ("RANK", "WORLD_SIZE") if is_shared() else ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return int(os.environ.get(place, "0")), int(os.environ.get(size, "1"))


def on_each_folder(work: Callable[[], T]) -> T:
    """Run `work` once for each folder; every rank gets the result of its own folder. Collective.

    An error in one folder is raised on all ranks.
    """
    outcome: tuple[T | None, Exception | None] | None = None
    if leads():
        try:
            outcome = work(), None
        except Exception as error:  # noqa: BLE001 - every rank must see any error
            outcome = None, error
    outcomes: list[tuple[int, tuple[T | None, Exception | None] | None]] = [(0, None)] * dist.get_world_size()
    dist.all_gather_object(outcomes, (node(), outcome))
    known = [(where, each) for where, each in outcomes if each is not None]
    for _, (_, failure) in known:
        if failure:
            raise failure
    ours = dict(known)[0 if is_shared() else node()]
    return cast(T, ours[0])


def check_shared(folder: Path, store: dist.Store) -> None:
    """Refuse a folder that all nodes should share and do not. Every rank calls it, before anything is read from there.

    The first rank of each node writes a file into the folder and looks for those of the others.

    Args:
        store: the ranks' rendezvous.

    Raises:
        ConfigError: on every rank; names the nodes.
    """
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if nodes == 1 or not is_shared():
        return
    store = dist.PrefixStore("folder", store)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        _look(folder, store, nodes)
    if odd := store.get("odd").decode():
        raise ConfigError(
            f"{folder} is not one folder for all nodes: {odd}. Mount the workspace at the same path on each node, or "
            "set shared = false for this cluster in cupola.toml."
        )


def _look(folder: Path, store: dist.Store, nodes: int) -> None:
    """Exchange files with the other nodes, and put what is odd into the store."""
    token = f".node-{os.environ.get('TORCHELASTIC_RUN_ID', 'run')}-{{}}"
    with suppress(OSError):
        (folder / token.format(node())).touch()
    store.set(f"name {node()}", os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    store.wait([f"name {each}" for each in range(nodes)])
    until = time.monotonic() + PATIENCE
    while len(seen := [each for each in range(nodes) if (folder / token.format(each)).exists()]) < nodes:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    store.set(f"sees {node()}", json.dumps([seen, any(folder.glob("job*.json"))]))
    if node() == 0:
        names = [store.get(f"name {each}").decode() for each in range(nodes)]
        views = [json.loads(store.get(f"sees {each}")) for each in range(nodes)]
        store.set("odd", _odd(names, [tuple(files) for files, _ in views], [given for _, given in views]))
    store.get("odd")  # no node removes its file before all have looked
    with suppress(OSError):
        (folder / token.format(node())).unlink(missing_ok=True)


def _odd(names: Sequence[str], seen: Sequence[tuple[int, ...]], given: Sequence[bool]) -> str:
    """Which nodes see another folder than most, in words; empty if all see the same.

    Args:
        names: each node's name.
        seen: for each node, the nodes whose files it sees.
        given: for each node, whether it sees the job that the launching machine wrote, which decides between equals.
    """
    with_job = {files for files, is_there in zip(seen, given, strict=True) if is_there}
    most = max(set(seen), key=lambda files: (seen.count(files), files in with_job, -seen.index(files)))
    if len(most) == len(names):
        return ""
    common = [name for name, files in zip(names, seen, strict=True) if files == most]
    others = [name for name, files in zip(names, seen, strict=True) if files != most]
    return (
        f"{', '.join(others)} does not see what {', '.join(common)} writes there" if others else "no node sees any file"
    )
