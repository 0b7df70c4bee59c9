"""Boxes of tensors on disk: per rank a file of raw bytes and an index, once for weights (`state`) and once for moments
(`optimizer`). Nothing is ever unpickled.

state/rank_00000.bin     the boxes in sequence, each at a multiple of 64 bytes
state/rank_00000.json    {"size", "blake3", "tensors": [{"key", "dtype", "shape", "offset", "size", "at"}, ...]}
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from cupola_platform.artifacts.digests import digest_bytes
from cupola_platform.errors import CorruptArtifactError
from cupola_platform.unshared.partly import Partly
from cupola_trainer.checkpoint.shards import Box, Place, Shard

ALIGNMENT = 64
"""Alignment in bytes, a multiple of every dtype's element size."""
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

    @property
    def end(self) -> int:
        """Offset in the file of the first byte after it."""
        return self.at + self.nbytes

    def entry(self, digest: str) -> dict[str, Any]:
        """Its entry in the index of its file."""
        names = ("key", "dtype", "shape", "offset", "size", "at")
        return {name: getattr(self, name) for name in names} | {"blake3": digest}


def placed(shards: Iterable[Shard]) -> list[StoredBox]:
    """Where shards are in a file, in sequence."""
    return in_sequence(
        StoredBox(shard.key, str(shard.data.dtype).removeprefix("torch."), shard.shape, shard.offset, shard.size, at=0)
        for shard in shards
    )


def in_sequence(boxes: Iterable[StoredBox]) -> list[StoredBox]:
    """Boxes at their places in a file, each at the next multiple of `ALIGNMENT`."""
    result, end = [], 0
    for box in boxes:
        result.append(replace(box, at=-(-end // ALIGNMENT) * ALIGNMENT))
        end = result[-1].end
    return result


def file_size(boxes: Sequence[StoredBox]) -> int:
    """Bytes of a rank's file with these boxes."""
    return boxes[-1].end if boxes else 0


class PartFile:
    """A rank's two files of one part while they are written. One thread calls `write`, another `hash`, each with all
    bytes in order."""

    def __init__(self, folder: Path, rank: int, boxes: Sequence[StoredBox]) -> None:
        """Raises OSError: the folder is not writable."""
        self.path = folder / f"rank_{rank:05d}.bin"
        self.boxes = boxes
        self._file = self.path.open("wb", buffering=0)
        self._whole = _hasher()
        self._box = _hasher()
        self._size = 0
        self._digests: list[str] = []
        """Of the boxes hashed so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, block: memoryview) -> None:
        """Append bytes. Raises OSError: the disk is full, for instance."""
        while block:
            block = block[self._file.write(block) :]

    def hash(self, block: memoryview) -> None:
        """Digest bytes, and each box by itself."""
        self._whole.update(block)
        start, end = self._size, self._size + len(block)
        while len(self._digests) < len(self.boxes) and (box := self.boxes[len(self._digests)]).at < end:
            self._box.update(block[max(box.at, start) - start : max(box.at, start, box.end) - start])
            if box.end > end:
                break
            self._end_box()
        self._size = end

    def _end_box(self) -> None:
        self._digests.append(self._box.hexdigest())
        self._box = _hasher()

    def finish(self) -> dict[str, tuple[int, str]]:
        """Sync the file, and write and sync its index. Returns size and digest of both files, by name.

        Raises:
            OSError: the disk is full, for instance.
        """
        os.fsync(self._file.fileno())
        while len(self._digests) < len(self.boxes):  # empty ones
            self._end_box()
        tensors = [box.entry(digest) for box, digest in zip(self.boxes, self._digests, strict=True)]
        digest = self._whole.hexdigest()
        index = json.dumps({"size": self._size, "blake3": digest, "tensors": tensors}).encode()
        with self.path.with_suffix(".json").open("wb") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        return {
            self.path.name: (self._size, digest),
            self.path.with_suffix(".json").name: (len(index), digest_bytes(index)),
        }


def _hasher() -> Any:
    return blake3(max_threads=blake3.AUTO)


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


def writers(places: Iterable[Iterable[tuple[Place, int]]]) -> dict[Place, int]:
    """The rank that writes each box: the holder with the least to write so far.

    Args:
        places: per rank, the places and bytes of its shards.
    """
    holders: dict[Place, list[int]] = defaultdict(list)
    size: dict[Place, int] = {}
    for holder, held in enumerate(places):
        for place, count in held:
            holders[place].append(holder)
            size[place] = count
    load: dict[int, int] = defaultdict(int)
    chosen = {}
    for place in sorted(holders, key=lambda place: (len(holders[place]), -size[place], place)):
        chosen[place] = min(holders[place], key=lambda holder: (load[holder], holder))
        load[chosen[place]] += size[place]
    return chosen


def owned(shards: Sequence[Shard], places: Iterable[Iterable[tuple[Place, int]]], rank: int) -> list[Shard]:
    """The shards that this rank writes. `places` is as for `writers`."""
    chosen = writers(places)
    return [shard for shard in shards if shard.main and chosen.get(shard.place) == rank]


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
