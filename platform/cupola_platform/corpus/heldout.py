"""Which documents are kept from training."""

from collections.abc import Sequence

from blake3 import blake3

from cupola_platform.corpus.documents import Document


def choose_heldout(documents: Sequence[Document], fraction: float, seed: int) -> list[bool]:
    """For each document whether it is held out: by a hash of its digest, so that it stays on its side when others come.

    Equal texts have equal digests, and near duplicates are gone by now, so nothing held out is also trained on. Every
    source with two documents or more has at least one on each side.
    """
    draws = [_draw(document.digest, seed) for document in documents]
    heldout = [draw < fraction for draw in draws]
    by_source: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        by_source.setdefault(document.source, []).append(i)
    for members in by_source.values():
        if len(members) > 1:
            heldout[min(members, key=draws.__getitem__)] = True
            heldout[max(members, key=draws.__getitem__)] = False
    return heldout


def _draw(digest: str, seed: int) -> float:
    """Uniform in [0, 1), from the digest alone."""
    return int.from_bytes(blake3(f"{seed}:{digest}".encode()).digest(8)) / 2**64
