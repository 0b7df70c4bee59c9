"""The k-th largest magnitude of tensors that lie on many ranks, exactly, without gathering them."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

DIGIT = 8
"""Bits decided in one pass over the tensors."""


def magnitude_bits(value: Tensor) -> Tensor:
    """[elements], int32: they order as the magnitudes of `value` (fp32) do."""
    return value.abs().flatten().view(torch.int32)


def thresholds(bits: Iterable[tuple[int, Tensor]], counts: Sequence[int], device: torch.device) -> Tensor:
    """A radix selection: the bits of floats that are not negative order as integers do. Every rank calls it.

    Args:
        bits: this rank's parts: the number of the tensor that each belongs to, the same on all ranks, and its
            `magnitude_bits`. Gone through four times.
        counts: k of each tensor, from 1 to its elements over all ranks.
        device: where the parts lie.

    Returns:
        [tensors], fp32: the k-th largest magnitude of each; the same on every rank.
    """
    left = torch.tensor(counts, device=device)
    prefix = torch.zeros(len(counts), dtype=torch.int32, device=device)
    for shift in range(32 - DIGIT, -1, -DIGIT):
        histogram = torch.zeros(len(counts), 1 << DIGIT, dtype=torch.int64, device=device)
        for tensor, part in bits:
            above = shift + DIGIT
            among = part if above == 32 else part[part >> above == prefix[tensor] >> above]
            histogram[tensor] += torch.bincount(among >> shift & ((1 << DIGIT) - 1), minlength=1 << DIGIT)
        dist.all_reduce(histogram)
        from_above = histogram.flip(1).cumsum(1).flip(1)  # elements with this digit or a larger one
        digit = (from_above >= left[:, None]).sum(1) - 1  # the largest digit that k elements reach
        left -= from_above.gather(1, digit[:, None]).squeeze(1) - histogram.gather(1, digit[:, None]).squeeze(1)
        prefix |= (digit << shift).to(torch.int32)
    return prefix.view(torch.float32)
