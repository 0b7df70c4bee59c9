"""A training checkpoint as a layout's ranks would write it, without running them."""

from dataclasses import dataclass
from typing import Any

import torch

from cupola_trainer.checkpoint.description import STATE
from cupola_trainer.checkpoint.staging import host_memory
from cupola_trainer.checkpoint.storage import file_size
from cupola_trainer.config import OPTIMIZER, LayoutConfig, ModelConfig
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.planning.shares import Boxes, shares

FINGERPRINTED = False  # a forecast


@dataclass(frozen=True)
class SavePlan:
    """The files of a checkpoint, and what saving it takes. All sizes in bytes."""

    sizes: tuple[tuple[int, int], ...]
    """Per rank, its files of weights and of optimizer state."""
    tensors: tuple[int, int]
    """Boxes in the files of weights, and in those of optimizer state."""
    stored: tuple[int, int]
    """Bytes of their tensors, without padding."""

    def largest(self) -> tuple[str, int]:
        """Name and size of the largest file."""
        files = {
            f"{part}/rank_{rank:05d}.bin": size
            for rank, sizes in enumerate(self.sizes)
            for part, size in zip((STATE, OPTIMIZER), sizes, strict=True)
        }
        return max(files.items(), key=lambda file: file[1])

    def per_node(self, ranks: int) -> list[int]:
        """What each node writes, with so many ranks on one."""
        written = [sum(sizes) for sizes in self.sizes]
        return [sum(written[first : first + ranks]) for first in range(0, len(written), ranks)]

    def summary(self, limit: int, ranks_per_node: int) -> dict[str, Any]:
        """The plan in a few numbers.

        Args:
            limit: host memory that a process may use for a save.
        """
        process, node = host_memory(self.sizes, limit, ranks_per_node)
        name, size = self.largest()
        return {
            "ranks": len(self.sizes),
            "nodes": len(self.per_node(ranks_per_node)),
            "weights": sum(weights for weights, _ in self.sizes),
            "optimizer": sum(optimizer for _, optimizer in self.sizes),
            "tensors": sum(self.tensors),
            "largest_file": name,
            "largest_file_bytes": size,
            "written_per_rank": max(map(sum, self.sizes)),
            "written_per_node": max(self.per_node(ranks_per_node)),
            "host_memory_limit": limit,
            "host_memory_per_rank": process,
            "host_memory_per_node": node,
        }


def plan_save(
    model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype, moments: torch.dtype = torch.float32
) -> SavePlan:
    """Plan the checkpoints of a training job, in seconds for a thousand ranks. Leaves the process group.

    Raises:
        ConfigError: the model cannot be trained in this layout.
    """
    validate_layout(model, layout)
    sizes, tensors, stored = [], [0, 0], [0, 0]
    for _, written in shares(model, layout, dtype, moments):
        parts = [written[part] for part in (STATE, OPTIMIZER)]
        sizes.append((file_size(parts[0]), file_size(parts[1])))
        for number, boxes in enumerate(parts):
            tensors[number] += len(boxes)
            stored[number] += sum(box.nbytes for box in boxes)
    return SavePlan(tuple(sizes), (tensors[0], tensors[1]), (stored[0], stored[1]))


def written_by(
    rank: int, model: ModelConfig, layout: LayoutConfig, dtype: torch.dtype, moments: torch.dtype = torch.float32
) -> Boxes:
    """What one rank writes, in sequence, by the checkpoint's part.

    Raises:
        ConfigError: the model cannot be trained in this layout.
    """
    validate_layout(model, layout)
    return next(written for each, written in shares(model, layout, dtype, moments) if each == rank)
