"""Boxes of tensors on disk: per rank a file of raw bytes and an index, once for weights (`state`) and once for moments
(`optimizer`). Nothing is ever unpickled.

state/rank_00000.bin     the boxes in sequence, each at a multiple of 64 bytes
state/rank_00000.json    {"size", "blake3", "tensors": [{"key", "dtype", "shape", "offset", "size", "at"}, ...]}
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.unshared.partly import Partly
from cupola_trainer import runtime
from cupola_trainer.checkpoint.shards import Box, Shard

ALIGNMENT = 64
"""Alignment in bytes, a multiple of every dtype's element size."""
BLOCK = 16 << 20
"""Bytes written at a time."""
FETCHED_AT_ONCE = 16
"""Boxes that a rank fetches from the store at once."""


@dataclass(frozen=True)
class StoredBox:
    """A box of a tensor in a rank's file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    """Shape of the global tensor."""
    offset: tuple[int, ...]
    size: tuple[int, ...]
    at: int
    """Offset in the file, in bytes."""
    blake3: str = ""
    """Digest of its bytes, so that it can be fetched alone."""
    file: Path = Path()
    """Where it is read from."""

    @property
    def nbytes(self) -> int:
        """Bytes, without padding."""
        return math.prod(self.size) * int(getattr(torch, self.dtype).itemsize)


class Staging:
    """Host memory to copy a checkpoint to before writing it, reused between saves."""

    deferred = True
    """Whether `begin` may defer most of the copying."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def begin(self, shards: Sequence[Shard], passing: set[int]) -> tuple[Tensor, list[StoredBox], Callable[[], None]]:
        """Reserve contiguous memory for shards, and copy those whose address is in `passing`.

        Returns:
            the memory, each shard's box in it, and a function that copies the rest.
        """
        if not self.deferred:
            return *self.copy(shards), lambda: None
        memory, stored = self._reserve(shards)
        self._copy([pair for pair in zip(shards, stored, strict=True) if pair[0].data.data_ptr() in passing])
        rest = [pair for pair in zip(shards, stored, strict=True) if pair[0].data.data_ptr() not in passing]
        return memory, stored, lambda: self._copy(rest)

    def copy(self, shards: Sequence[Shard]) -> tuple[Tensor, list[StoredBox]]:
        """Copy shards to contiguous memory. Returns the memory and each shard's box in it."""
        memory, stored = self._reserve(shards)
        self._copy(zip(shards, stored, strict=True))
        return memory, stored

    def _reserve(self, shards: Sequence[Shard]) -> tuple[Tensor, list[StoredBox]]:
        stored, end = [], 0
        for shard in shards:
            dtype = str(shard.data.dtype).removeprefix("torch.")
            stored.append(StoredBox(shard.key, dtype, shard.shape, shard.offset, shard.size, at=end))
            end += -(-shard.data.nbytes // ALIGNMENT) * ALIGNMENT
        if self._memory.numel() < end:
            self._memory = runtime.host_memory(end)
        return self._memory[:end], stored

    def _copy(self, placed: Iterable[tuple[Shard, StoredBox]]) -> None:
        for shard, box in placed:
            memory = self._memory[box.at : box.at + shard.data.nbytes]
            self.place(shard, memory.view(shard.data.dtype).view(shard.size))
        runtime.synchronize()

    def place(self, shard: Shard, memory: Tensor) -> None:
        """Copy a shard into memory of its shape."""
        memory.copy_(shard.data, non_blocking=True)


def write(folder: Path, rank: int, memory: Tensor, boxes: Sequence[StoredBox]) -> dict[str, tuple[int, str]]:
    """Write and fsync a rank's two files. Other threads compute the digest meanwhile.

    Args:
        boxes: adjacent boxes of `memory`; only these bytes are written.

    Returns:
        Size and digest of both files, by name.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    path = folder / f"rank_{rank:05d}.bin"
    first, end = (boxes[0].at, boxes[-1].at + boxes[-1].nbytes) if boxes else (0, 0)
    view = memoryview(memory[first:end].numpy())
    with ThreadPoolExecutor(1) as pool, path.open("wb", buffering=0) as file:
        digest = pool.submit(lambda: blake3(max_threads=blake3.AUTO).update(view).hexdigest())
        for start in range(0, len(view), BLOCK):
            block = view[start : start + BLOCK]
            while block:
                block = block[file.write(block) :]
        os.fsync(file.fileno())
    placed = [replace(box, at=box.at - first) for box in boxes]
    placed = [replace(box, blake3=digest_bytes(view[box.at : box.at + box.nbytes])) for box in placed]
    tensors = [{name: value for name, value in asdict(box).items() if name != "file"} for box in placed]
    index = json.dumps({"size": len(view), "blake3": digest.result(), "tensors": tensors}).encode()
    with path.with_suffix(".json").open("wb") as file:
        file.write(index)
        file.flush()
        os.fsync(file.fileno())
    return {path.name: (len(view), digest.result()), path.with_suffix(".json").name: (len(index), digest_bytes(index))}


class StoredState:
    """The tensors in folders of a checkpoint, written in any layout. Verify their digests first.

    Boxes that are not on this machine are fetched from the store, each alone, and verified then.
    """

    def __init__(self, *folders: Path) -> None:
        """`folders` are of one checkpoint."""
        self.folder = folders[0]
        self.boxes: dict[str, list[StoredBox]] = defaultdict(list)
        self._files: dict[Path, Tensor] = {}
        self._checkpoint = Partly(self.folder.parent)
        for path in (path for folder in folders for path in self._checkpoint.names(f"{folder.name}/rank_*.json")):
            file = (self._checkpoint.folder / path).with_suffix(".bin")
            for entry in json.loads(self._checkpoint.content(path))["tensors"]:
                places = {name: tuple(entry[name]) for name in ("shape", "offset", "size")}
                self.boxes[entry["key"]].append(StoredBox(**{**entry, **places}, file=file))

    def fetch(self, wanted: Iterable[tuple[Shard, str]]) -> None:
        """Fetch what `fill` will read for (shard, key) and this machine does not have, several boxes at once."""
        boxes = {
            (box.file, box.at): box
            for shard, key in wanted
            for box in self.boxes.get(key or shard.key, ())
            if _overlap((box.offset, box.size), (shard.offset, shard.size)) and not box.file.is_file()
        }
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            for _ in pool.map(self._fetched, boxes.values()):
                pass

    def _fetched(self, box: StoredBox) -> bytes:
        path = box.file.relative_to(self._checkpoint.folder).as_posix()
        return self._checkpoint.range(path, box.at, box.nbytes, box.blake3)

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """A tensor, or its slice at an index into the leading (layer, expert) axes."""
        first = self._first(key)
        rest = first.shape[len(index) :]
        target = torch.empty(*(1 for _ in index), *rest, dtype=getattr(torch, first.dtype))
        self.fill(Shard(key, first.shape, (*index, *(0 for _ in rest)), target))
        return target.reshape(rest)

    def outline(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """The result of `read` without data, on the meta device."""
        first = self._first(key)
        return torch.empty(first.shape[len(index) :], dtype=getattr(torch, first.dtype), device="meta")

    def _first(self, key: str) -> StoredBox:
        if key not in self.boxes:
            raise CorruptArtifactError(f"{self.folder} holds no tensor {key}. Its model.json describes another model.")
        return self.boxes[key][0]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def fill(self, shard: Shard, key: str = "") -> None:
        """Fill `shard.data` from all stored boxes that overlap it.

        Args:
            key: name of the stored tensor; empty for the shard's own.

        Raises:
            CorruptArtifactError: the tensor is missing, has another shape, or is stored incompletely.
        """
        key = key or shard.key
        filled = 0
        for stored in self.boxes.get(key, ()):
            if stored.shape != shard.shape:
                raise CorruptArtifactError(f"{self.folder} holds {key} as {stored.shape}, the model has {shard.shape}.")
            overlap = _overlap((stored.offset, stored.size), (shard.offset, shard.size))
            if overlap:
                source = self._view(stored)[_slices(overlap, stored.offset)]
                shard.data[_slices(overlap, shard.offset)].copy_(source)
                filled += math.prod(overlap[1])
        if filled != shard.data.numel():
            raise CorruptArtifactError(
                f"{self.folder} holds {filled:,} of the {shard.data.numel():,} elements of {key} from {shard.offset}."
            )

    def _view(self, box: StoredBox) -> Tensor:
        if not box.nbytes:
            return torch.empty(box.size, dtype=getattr(torch, box.dtype))
        if box.file not in self._files and not box.file.is_file():
            content = torch.frombuffer(bytearray(self._fetched(box)), dtype=torch.uint8)
            return content.view(getattr(torch, box.dtype)).view(box.size)
        if box.file not in self._files:  # mapped copy-on-write, since torch requires writable memory
            self._files[box.file] = torch.from_numpy(np.memmap(box.file, np.uint8, mode="c"))
        content = self._files[box.file][box.at : box.at + box.nbytes]
        return content.view(getattr(torch, box.dtype)).view(box.size)


def owned(shards: Sequence[Shard], places: Iterable[Iterable[tuple[Any, int]]], rank: int) -> list[Shard]:
    """The shards that this rank writes: each box goes to the holder with the least to write so far.

    Args:
        places: per rank, the places and bytes of its shards.
    """
    holders: dict[Any, list[int]] = defaultdict(list)
    size: dict[Any, int] = {}
    for holder, held in enumerate(places):
        for place, count in held:
            holders[place].append(holder)
            size[place] = count
    load: dict[int, int] = defaultdict(int)
    mine = set()
    for place in sorted(holders, key=lambda place: (len(holders[place]), -size[place], place)):
        writer = min(holders[place], key=lambda holder: (load[holder], holder))
        load[writer] += size[place]
        if writer == rank:
            mine.add(place)
    return [shard for shard in shards if shard.main and shard.place in mine]


def _overlap(one: Box, other: Box) -> Box | None:
    edges = [
        (max(a, b), min(a + m, b + n))
        for a, m, b, n in zip(one[0], one[1], other[0], other[1], strict=True)
    ]  # fmt: skip
    if any(start >= stop for start, stop in edges):
        return None
    return tuple(start for start, _ in edges), tuple(stop - start for start, stop in edges)


def _slices(box: Box, origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, a - o + n) for a, n, o in zip(*box, origin, strict=True))
