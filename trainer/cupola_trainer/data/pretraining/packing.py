"""Several texts in one row, each seeing only itself."""

import torch
from torch import Tensor


def hidden(segments: Tensor) -> Tensor:
    """Attention mask [b, 1, s, s] of packed rows, true where query q must not see key k: later, or another segment.

    Positions run on over a row: rotary attention depends on differences only, so each text is as it is alone.

    Args:
        segments: which text each token belongs to, [b, s].
    """
    length = segments.size(1)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    return (later | (segments[:, :, None] != segments[:, None, :]))[:, None]


def document_segments(tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Which document each token of [b, s] belongs to, counted in its row, and which tokens end one; both [b, s]."""
    ends = tokens == end
    return ends.cumsum(dim=1) - ends.long(), ends
