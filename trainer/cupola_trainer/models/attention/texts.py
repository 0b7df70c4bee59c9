"""Several texts in one row, each attending only to itself. No mask is built: attention sees one text at a time."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cupola_trainer.runtime.copies import to_device


@dataclass(frozen=True)
class Texts:
    """The texts in the rows of a micro-batch. Megatron hands it on to attention as its `packed_seq_params`."""

    lengths: tuple[tuple[int, ...], ...]
    """Tokens of each text of each row, in order, padding included: every row has the same sum."""

    qkv_format = None  # Megatron would join all rows into one for its own format, and balance experts over that
    cp_group: Any = None

    @classmethod
    def of(cls, segments: Tensor) -> "Texts":
        """The texts of whole rows.

        Args:
            segments: [b, s] on the host, the text that each token belongs to; a text is a run of equal numbers.
        """
        lengths = []
        for row in segments:
            _, counts = torch.unique_consecutive(row, return_counts=True)
            lengths.append(tuple(counts.tolist()))
        return cls(tuple(lengths))

    def places(self) -> tuple[Tensor, Tensor]:
        """The position of each token in its text, from 0, and the length of that text: [b, s] each, on the host."""
        positions = [torch.cat([torch.arange(length) for length in row]) for row in self.lengths]
        counts = [torch.tensor(row) for row in self.lengths]
        return torch.stack(positions), torch.stack([count.repeat_interleave(count) for count in counts])

    @cached_property
    def starts(self) -> Tensor:
        """Where each text begins if all rows are laid end to end, then their whole length: [texts + 1] in int32, on the
        device. Copied once for all layers."""
        ends = torch.tensor([0, *(length for row in self.lengths for length in row)]).cumsum(0)
        return to_device(ends.int())

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(max(row) for row in self.lengths)
