"""Whole tensors out of a checkpoint of any layout, without Megatron or a process group.

Megatron's distributed checkpoints name every tensor globally and record where each shard lies in it, in the format of
torch.distributed.checkpoint.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cupola_platform import artifacts
from cupola_platform.errors import CorruptArtifactError


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by key, whole, each read from disk when asked for.

    The checkpoint's digests are verified before anything in it is unpickled.

    Raises:
        CorruptArtifactError: it does not verify; names the file.
    """

    def __init__(self, folder: Path) -> None:
        artifacts.verify(folder)
        self.state = folder / "state"
        metadata = FileSystemReader(self.state).read_metadata().state_dict_metadata
        self.stored = {key: entry for key, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.stored:
            raise CorruptArtifactError(f"{self.state} holds no tensor {key}. Its model.json describes another model.")
        entry = self.stored[key]
        tensors = {key: torch.empty(entry.size, dtype=entry.properties.dtype)}
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="torch.distributed is disabled"
            )  # as intended: any process, alone
            load(tensors, storage_reader=FileSystemReader(self.state), no_dist=True)
        return tensors[key]

    def __contains__(self, key: object) -> bool:
        return key in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def read_training(folder: Path) -> dict[str, Any]:
    """How a checkpoint was trained: its training.json."""
    return dict(json.loads((folder / "training.json").read_bytes()))
