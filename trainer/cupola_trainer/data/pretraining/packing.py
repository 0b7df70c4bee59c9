"""Finding the documents in rows of tokens."""

from torch import Tensor


def document_segments(tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """The document of each token, numbered per row, and whether the token ends it; both [b, s]."""
    ends = tokens == end
    return ends.cumsum(dim=1) - ends.long(), ends
