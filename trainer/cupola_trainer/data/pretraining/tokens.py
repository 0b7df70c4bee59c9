"""Packed token sequences from a `tokens` artifact."""

import json
from typing import Any

from cupola_platform.errors import ConfigError, SourceError
from cupola_trainer.config import NextTokenData
from cupola_trainer.data.pretraining.rows import PERIOD, Blend, Source
from cupola_trainer.data.pretraining.shards import Stream

Sources = dict[str, dict[str, dict[str, Any]]]
"""Counts by source and split."""

ORDER = "rows cut from the shards, shuffled by index"
"""How tokens become samples. A job does not resume in another order than it began in."""


def build(data: NextTokenData, *, sequence_length: int, seed: int) -> tuple[Blend, Blend | None]:
    """Training rows, for any index, and held-out rows; both are determined by the seed. The latter are None if the
    held-out shards do not fill one row.

    Raises:
        SourceError: the folder holds no token shards, or too few tokens for one row.
        CorruptArtifactError: a shard is missing or truncated, or holds other counts than `index.json`.
        ConfigError: a weight names an unknown source.
    """
    sources = _sources(data)
    train = _opened(data, sources, "train", sequence_length, seed)
    if not train:
        raise SourceError(
            f"{data.tokens} has no training source with more than {sequence_length} tokens. "
            "Add text, or shorten sequence_length."
        )
    given = data.weights or {}
    weights = [given.get(name, float(sources[name]["train"]["tokens"])) for name in train]
    heldout = list(_opened(data, sources, "heldout", sequence_length, seed).values())
    rows = [source.epoch for source in heldout]
    return Blend(list(train.values()), weights), Blend(heldout, rows, min(sum(rows), PERIOD)) if rows else None


def end_of_document(data: NextTokenData) -> int:
    """The token that ends each document. Raises SourceError if the artifact has none."""
    end = _index(data).get("end_of_document")
    if end is None:
        raise SourceError(
            f"{data.tokens} names no end_of_document: prepare it again, or disable reset_at_documents and copying."
        )
    return int(end)


def _index(data: NextTokenData) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((data.tokens / "index.json").read_text())
        index["sources"]
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{data.tokens} is not a tokens artifact: its index.json cannot be read ({error}).") from None
    return index


def _sources(data: NextTokenData) -> Sources:
    sources: Sources = _index(data)["sources"]
    unknown = sorted(set(data.weights or {}) - set(sources))
    if unknown:
        raise ConfigError(
            f"weights name {unknown[0]!r}, which is not a source of {data.tokens}. Choose from {sorted(sources)}."
        )
    return sources


def _opened(data: NextTokenData, sources: Sources, split: str, length: int, seed: int) -> dict[str, Source]:
    """Each source that fills a row and has a weight above zero."""
    return {
        name: Source(Stream(data.tokens, counts[split], split, name), length, seed)
        for name, counts in sources.items()
        if counts.get(split, {}).get("tokens", 0) > length and (data.weights or {}).get(name, 1.0) > 0
    }
