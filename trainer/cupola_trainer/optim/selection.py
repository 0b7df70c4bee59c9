"""Find the exact k-th largest magnitude of tensors distributed over ranks, without gathering them."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

DIGIT = 8
"""Bits determined per pass over the tensors."""


def magnitude_bits(value: Tensor) -> Tensor:
    """Integers with the same order as the magnitudes of `value` (fp32): [elements], int32."""
    return value.abs().flatten().view(torch.int32)


def thresholds(bits: Iterable[tuple[int, Tensor]], counts: Sequence[int], device: torch.device) -> Tensor:
    """Radix selection, since the bits of non-negative floats sort like integers. Called on every rank.

    Args:
        bits: this rank's parts: the number of the tensor, the same on all ranks, and the part's `magnitude_bits`.
            Iterated four times.
        counts: k of each tensor, from 1 to its number of elements over all ranks.
        device: device of the parts.

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
        digit = (from_above >= left[:, None]).sum(1) - 1  # the largest digit reached by k elements
        left -= from_above.gather(1, digit[:, None]).squeeze(1) - histogram.gather(1, digit[:, None]).squeeze(1)
        prefix |= (digit << shift).to(torch.int32)
    return prefix.view(torch.float32)
