"""Sizes of duplicate clusters, from the pairs that removal wrote."""

from pathlib import Path
from typing import Any

import numpy as np

from cupola_platform.corpus.core.document_files import I64, read_name

LARGEST = 5
"""Number of clusters listed by name."""


def cluster_sizes(pairs: Path, documents: Path, begins: I64) -> dict[str, Any]:
    """Clusters by size in powers of two, and the largest ones by the name of the document kept.

    Args:
        pairs: files of (document index, index of its cluster's first document); each cluster is in one file.
        documents: the folder of the indexed documents.
        begins: the index of each task's first document, then the total. Shape [tasks + 1].

    Returns:
        `clusters`, `dropped` (documents), `sizes` (`{"2": 10, "4": 3}`: 2 to 3 documents, 4 to 7), `largest`.
    """
    sizes = np.zeros(64, np.int64)
    largest: list[tuple[int, int]] = []
    dropped = 0
    for path in sorted(pairs.glob("*.npy")):
        first, others = np.unique(np.load(path)[:, 1], return_counts=True)
        dropped += int(others.sum())
        sizes += np.bincount(np.frexp(others + 1)[1] - 1, minlength=64)
        top = np.lexsort((first, -others))[:LARGEST]
        largest += [(int(others[i]) + 1, int(first[i])) for i in top]
    named = [
        {"document": read_name(documents, begins, number), "documents": size}
        for size, number in sorted(largest, key=lambda of: (-of[0], of[1]))[:LARGEST]
    ]
    by_power = {str(1 << power): int(count) for power, count in enumerate(sizes) if count}
    return {"clusters": int(sizes.sum()), "dropped": dropped, "sizes": by_power, "largest": named}
