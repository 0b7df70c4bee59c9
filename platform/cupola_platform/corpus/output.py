"""Writes what a `tokens` artifact holds besides its tokenizer and its report."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet
from tokenizers import Tokenizer

from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.documents import Document, total_size
from cupola_platform.corpus.encoding import encoder_of
from cupola_platform.corpus.engine import Progress, chunked
from cupola_platform.corpus.pool import WorkerPool
from cupola_platform.corpus.shards import ShardWriter, token_dtype
from cupola_platform.corpus.tokenization import END_OF_TEXT

SPLITS = ("train", "heldout")

_SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("id", "source", "path", "language", "split")]
    + [(name, pyarrow.int64()) for name in ("bytes", "tokens", "document")]
    + [(name, pyarrow.string()) for name in ("digest", "text")]
)


PART_BYTES = 1 << 21
"""Text in one part: a worker's message, and a file of its own until the parts are joined."""


@dataclass(frozen=True, slots=True)
class Part:
    """Documents that one worker encodes."""

    tokenizer: str
    """The tokenizer's folder."""
    texts: Sequence[str]
    shards: Sequence[str]
    """The shard that each text goes to."""
    dtype: str
    prefix: str
    """Of the files to write."""


@dataclass(slots=True)
class Counts:
    """The size of one split of one source."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    """UTF-8 bytes of the text."""


def write_shards(
    config: PrepareConfig,
    documents: Sequence[Document],
    heldout: Sequence[bool],
    vocab_size: int,
    to: Path,
    pool: WorkerPool,
    show: Progress,
) -> dict[str, dict[str, Counts]]:
    """Tokenize every document into `shards/`, list it in `documents.parquet`, and write `index.json`.

    Parts of fixed size are encoded in parallel and joined in order, so the shards do not depend on the workers. A split
    without documents has no shard: an empty one cannot be mapped.
    """
    counts = {name: {split: Counts() for split in SPLITS} for name in config.sources}
    dtype = token_dtype(vocab_size)
    total, done = total_size(documents), 0
    parts = to / "shards" / ".parts"
    parts.mkdir()
    labelled = list(zip(documents, ("heldout" if out else "train" for out in heldout), strict=True))
    chunks = list(chunked(labelled, lambda pair: pair[0].size, PART_BYTES))
    work = (
        Part(
            tokenizer=str(to / "tokenizer"),
            texts=[document.text for document, _ in chunk],
            shards=[_shard(document.source, split) for document, split in chunk],
            dtype=dtype,
            prefix=str(parts / str(number)),
        )
        for number, chunk in enumerate(chunks)
    )
    with parquet.ParquetWriter(to / "documents.parquet", _SCHEMA, compression="zstd") as table:
        for chunk, tokens in zip(chunks, pool.map(write_part, work), strict=True):
            table.write_table(_table(chunk, tokens, counts))
            done += total_size(document for document, _ in chunk)
            show("tokenize", done, total)
    for source, splits in counts.items():
        for split, count in splits.items():
            if count.documents:
                _join(to / "shards" / _shard(source, split), parts, len(chunks), dtype)
    shutil.rmtree(parts)
    _write_index(config, counts, vocab_size, to)
    return counts


def write_part(part: Part) -> list[int]:
    """Encode a part's texts into shards of its own, `PREFIX-SHARD.bin` and `.idx`; each text's tokens, in order."""
    ids, counts = encoder_of(part.tokenizer).documents(part.texts)
    owner = np.array(part.shards)
    for shard in set(part.shards):
        mine = owner == shard
        with ShardWriter(Path(f"{part.prefix}-{shard}"), part.dtype) as writer:
            writer.add_documents(ids[np.repeat(mine, counts)], counts[mine])
    return [int(count) for count in counts]


def _join(shard: Path, parts: Path, count: int, dtype: str) -> None:
    with ShardWriter(shard, dtype) as writer:
        for number in range(count):
            part = parts / f"{number}-{shard.name}"
            if part.with_name(part.name + ".idx").exists():
                writer.add_shard(part)


def _shard(source: str, split: str) -> str:
    return f"{split}-{source}"


def _table(
    chunk: Sequence[tuple[Document, str]], tokens: Sequence[int], counts: Mapping[str, Mapping[str, Counts]]
) -> Any:
    """The chunk's rows of `documents.parquet`; their documents are counted, too."""
    rows = []
    for (document, split), size in zip(chunk, tokens, strict=True):
        count = counts[document.source][split]
        rows.append(
            {
                "id": f"{document.source}:{document.name}",
                "source": document.source,
                "path": document.path,
                "language": document.language,
                "split": split,
                "bytes": document.size,
                "tokens": size,
                "document": count.documents,
                "digest": document.digest,
                "text": document.text,
            }
        )
        count.documents += 1
        count.tokens += size
        count.bytes += document.size
    return pyarrow.Table.from_pylist(rows, schema=_SCHEMA)


def _write_index(config: PrepareConfig, counts: dict[str, dict[str, Counts]], vocab_size: int, to: Path) -> None:
    index: dict[str, object] = {
        "vocab_size": vocab_size,
        "end_of_document": Tokenizer.from_file(str(to / "tokenizer" / "tokenizer.json")).token_to_id(END_OF_TEXT),
        "sources": {name: {split: asdict(count) for split, count in splits.items()} for name, splits in counts.items()},
    }
    weights = {name: source.weight for name, source in config.sources.items() if source.weight is not None}
    if weights:
        index["weights"] = weights
    (to / "index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
