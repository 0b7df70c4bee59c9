"""Checkpoints of nodes that share no folder: each keeps its ranks' files, and all keep the same manifest."""

import shutil
from pathlib import Path

from cupola_platform.artifacts import MANIFEST, Artifact, read
from cupola_platform.artifacts.elsewhere import Elsewhere, absent
from cupola_platform.unshared.contract import read_contract
from cupola_platform.unshared.parts import location
from cupola_trainer import runtime
from cupola_trainer.checkpoint.description import SCHEDULE
from cupola_trainer.runtime import folders

FINGERPRINTED = False  # says where files are

ON_EVERY_NODE = (MANIFEST, "model.json", "training.json", SCHEDULE)
"""Files that every node has of every checkpoint."""


def mark(folder: Path, sealed: Artifact) -> None:
    """Note in a sealed folder, which is about to be renamed to `folder`, which of its files this node uploads."""
    contract = read_contract()
    assert contract
    paths = [file.path for file in sealed.manifest.files]
    gone = set(absent(sealed.path, paths))
    held = tuple(path for path in paths if path not in gone and (folders.node() == 0 or path not in ON_EVERY_NODE))
    Elsewhere(at=location(contract, folder, sealed.digest), held=held).write(sealed.path)


def tell_other_nodes(folder: Path, partial: Path) -> None:
    """Complete the folder of a checkpoint on the nodes where rank 0 is not. Collective."""

    def files() -> dict[str, bytes]:
        return {path: (folder / path).read_bytes() for path in ON_EVERY_NODE if (folder / path).is_file()}

    content = runtime.on_first_rank(files)

    def complete() -> None:
        if folders.node() == 0:
            return
        for path, data in content.items():
            (partial / path).write_bytes(data)
        mark(folder, read(partial))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    folders.on_each_folder(complete)
