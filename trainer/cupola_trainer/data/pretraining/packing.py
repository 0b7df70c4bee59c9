"""Several texts in one row, each attending only to itself."""

import torch
from torch import Tensor


def hidden(segments: Tensor) -> Tensor:
    """Attention mask [b, 1, s, s] of packed rows, True where query q must not see key k: later, or another segment.

    Positions continue over the row: rotary attention depends only on differences, so texts do not affect each other.

    Args:
        segments: [b, s], the text that each token belongs to.
    """
    length = segments.size(1)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    return (later | (segments[:, :, None] != segments[:, None, :]))[:, None]


def document_segments(tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """The document of each token, numbered per row, and whether the token ends it; both [b, s]."""
    ends = tokens == end
    return ends.cumsum(dim=1) - ends.long(), ends
