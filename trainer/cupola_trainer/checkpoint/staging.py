"""Host memory between a model in training and the disk: a ring of blocks that is filled, written and hashed at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.checkpoint.shards import Shard
from cupola_trainer.checkpoint.storage import ALIGNMENT, PartFile, placed

BLOCK = 16 << 20
"""Bytes of a block: large enough for the disk and the hash, and a power of two, to which torch rounds pinned memory."""
FEWEST = 2
"""Blocks of a ring, so that one can be filled while another is written."""
WAITED_FOR = 1 << 30
"""Bytes for a save that nothing trains beside: more memory would not make it faster."""

Use = tuple[Executor, Callable[[memoryview], object]]
"""What to do with a block, and the thread for it."""


class NotWrittenError(Exception):
    """A block could not be written; the cause says why."""


class Staging:
    """Blocks of host memory, allocated when first needed and reused between saves.

    If they hold all that a rank writes, copying never waits for the disk; otherwise as long as it takes to write
    what does not fit.
    """

    def __init__(self, limit: int = WAITED_FOR) -> None:
        """`limit` is in bytes; less than `FEWEST` blocks count as so many."""
        self.count = max(FEWEST, limit // BLOCK)
        self._blocks: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes allocated so far."""
        return sum(block.nbytes for block in self._blocks)

    def block(self, turn: int) -> Tensor:
        """The block to be filled as the `turn`-th of a save. uint8, [BLOCK]."""
        place = turn % self.count
        if place == len(self._blocks):
            self._blocks.append(runtime.host_memory(BLOCK))
        return self._blocks[place]

    def content(self, shard: Shard) -> Tensor:
        """What to write for a shard: of its shape and dtype, on any device."""
        return shard.data

    def arranged(self, shards: Sequence[Shard]) -> list[Shard]:
        """Shards in the order in which they are written."""
        return list(shards)


def host_memory(sizes: Sequence[Iterable[int]], limit: int, ranks_per_node: int) -> tuple[int, int]:
    """Host memory that a save takes in the process, and on the node, that needs most. In bytes.

    Args:
        sizes: per rank, the bytes of each of its files.
        limit: of a process, in bytes.
    """
    most = Staging(limit).count
    blocks = [min(sum(max(1, -(-size // BLOCK)) for size in files), most) for files in sizes]
    nodes = [sum(blocks[first : first + ranks_per_node]) for first in range(0, len(blocks), ranks_per_node)]
    return max(blocks) * BLOCK, max(nodes) * BLOCK


class Transfer:
    """The copying of one save through a ring of blocks. Created where the tensors are ready to be copied."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._copies = runtime.Copies()
        self._pending: list[list[Future[object]]] = []
        """For each block sent so far, what is done with it."""

    def send(self, shards: Sequence[Shard], uses: Sequence[Use]) -> None:
        """Copy shards in sequence, each to a multiple of `ALIGNMENT`, and hand every full block, and the last one, to
        each of `uses`. Waits for a free block if all are in use.

        Raises:
            NotWrittenError: an earlier block could not be written.
        """
        with self._copies:
            block, used = self._free_block(), 0
            for shard in shards:
                content = self._staging.content(shard).detach().reshape(-1).view(torch.uint8)
                padding = -used % ALIGNMENT
                block[used : used + padding] = 0
                used += padding
                while content.numel():
                    if used == BLOCK:
                        self._hand_over(block, used, uses)
                        block, used = self._free_block(), 0
                    part = content[: BLOCK - used]
                    block[used : used + part.numel()].copy_(part, non_blocking=True)
                    used += part.numel()
                    content = content[part.numel() :]
            self._hand_over(block, used, uses)

    def settle(self) -> None:
        """Wait until every block is written.

        Raises:
            NotWrittenError: one could not be written.
        """
        for pending in self._pending:
            _wait(pending)

    def _free_block(self) -> Tensor:
        turn = len(self._pending)
        if turn >= self._staging.count:
            _wait(self._pending[turn - self._staging.count])
        return self._staging.block(turn)

    def _hand_over(self, block: Tensor, used: int, uses: Sequence[Use]) -> None:
        self._copies.wait()
        content = memoryview(block[:used].numpy())
        self._pending.append([thread.submit(use, content) for thread, use in uses])


def write(
    folder: Path,
    rank: int,
    parts: Mapping[str, Sequence[Shard]],
    transfer: Transfer,
    *,
    copied: Callable[[], None] = lambda: None,
) -> dict[str, tuple[int, str]]:
    """Write a rank's files of each part into its subfolder, which exists.

    Args:
        copied: called once all shards are copied and may change.

    Returns:
        Size and digest of every file, by its path in `folder`.

    Raises:
        NotWrittenError: a block could not be written.
        OSError: a file could not be opened or finished.
    """
    with ExitStack() as opened:
        writing, hashing = (opened.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        files = {}
        for part, shards in parts.items():
            files[part] = opened.enter_context(PartFile(folder / part, rank, placed(shards)))
            transfer.send(shards, [(writing, files[part].write), (hashing, files[part].hash)])
        copied()
        transfer.settle()
        return {f"{part}/{name}": entry for part, file in files.items() for name, entry in file.finish().items()}


def _wait(pending: Sequence["Future[object]"]) -> None:
    for each in pending:
        if error := each.exception():
            raise NotWrittenError from error
