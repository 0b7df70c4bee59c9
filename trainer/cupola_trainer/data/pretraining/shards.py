"""Token shards whose tokens this machine may have only in part: on nodes without a shared folder, what a rank reads is
fetched by range."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import (
    IndexedDataset,
    _BinReader,
    _IndexReader,
    get_bin_path,
    get_idx_path,
)

from cupola_platform.unshared.blocks import Blocks
from cupola_platform.unshared.partly import node_cache

FINGERPRINTED = False  # says where tokens are read from, not which

_noting = threading.local()
"""Its `spans`, if there are any, get what this thread would read."""


class Ranges(_BinReader):  # type: ignore[misc]
    """Reads tokens from the blocks of a shard."""

    def __init__(self, tokens: Path) -> None:
        """`tokens` is the shard's `.bin` in a `tokens` artifact."""
        folder = tokens.parents[1]
        self.blocks = Blocks(folder, tokens.relative_to(folder).as_posix(), node_cache())

    def read(self, dtype: type[np.number[Any]], count: int, offset: int) -> np.ndarray:
        """`count` tokens from a byte on. Shape [count]; zeros while a thread only notes what it would read."""
        size = int(count) * np.dtype(dtype).itemsize
        spans = getattr(_noting, "spans", None)
        if spans is not None:
            spans.append((self.blocks, (int(offset), size)))
            return np.zeros(count, dtype)
        return np.frombuffer(self.blocks.read(int(offset), size), dtype)


class Shards(IndexedDataset):  # type: ignore[misc]
    """A pair of `.idx` and `.bin` files. The second is mapped if it is on this machine."""

    def initialize(self, path_prefix: str, *settings: Any) -> None:
        tokens = Path(get_bin_path(path_prefix))
        if tokens.is_file():
            super().initialize(path_prefix, *settings)
            return
        self.path_prefix, self.multimodal = path_prefix, False
        self.bin_reader = Ranges(tokens)
        self.index = _IndexReader(get_idx_path(path_prefix), False)


class TokenDataset(GPTDataset):  # type: ignore[misc]
    """Megatron's samples of a shard."""

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> Shards:
        return Shards(dataset_path, mmap=config.mmap_bin_files)


def is_partly(dataset: Any) -> bool:
    """Whether a dataset of `tokens.build` reads any shard by range."""
    parts = getattr(dataset, "datasets", [dataset])
    return any(isinstance(part.dataset.bin_reader, Ranges) for part in parts)


def fetch(dataset: Any, indices: Iterable[int]) -> None:
    """Fetch the tokens of some samples of a dataset, many at once. Raises StoreError, CorruptArtifactError."""
    wanted: dict[Blocks, list[tuple[int, int]]] = defaultdict(list)
    with _only_noted() as spans:
        for index in indices:
            dataset[index]
    for blocks, span in spans:
        wanted[blocks].append(span)
    for blocks, several in wanted.items():
        blocks.fetch(several)


def fetch_all(shards: IndexedDataset) -> None:
    """Fetch all tokens of a shard that is about to be read from end to end."""
    if isinstance(shards.bin_reader, Ranges):
        shards.bin_reader.blocks.fetch([(0, shards.bin_reader.blocks.size)])


@contextmanager
def _only_noted() -> Iterator[list[tuple[Blocks, tuple[int, int]]]]:
    _noting.spans = []
    try:
        yield _noting.spans
    finally:
        _noting.spans = None
