"""Writes what a `tokens` artifact holds besides its tokenizer and its report."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from tokenizers import Tokenizer

from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.documents import Document, total_size
from cupola_platform.corpus.encoding import encode_documents
from cupola_platform.corpus.engine import Progress, chunked
from cupola_platform.corpus.pool import WorkerPool
from cupola_platform.corpus.shards import ShardWriter, token_dtype
from cupola_platform.corpus.tokenization import END_OF_TEXT

SPLITS = ("train", "heldout")

_SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("id", "source", "path", "language", "split")]
    + [("bytes", pyarrow.int64()), ("tokens", pyarrow.int64())]
    + [(name, pyarrow.string()) for name in ("digest", "text")]
)


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

    A split without documents has no shard: an empty one cannot be mapped.
    """
    counts = {name: {split: Counts() for split in SPLITS} for name in config.sources}
    dtype = token_dtype(vocab_size)
    total, done = total_size(documents), 0
    with ExitStack() as stack:
        shards: dict[tuple[str, str], ShardWriter] = {}
        table = stack.enter_context(parquet.ParquetWriter(to / "documents.parquet", _SCHEMA, compression="zstd"))
        labelled = list(zip(documents, ("heldout" if out else "train" for out in heldout), strict=True))
        chunks = list(chunked(labelled, lambda pair: pair[0].size))
        work = ((str(to / "tokenizer"), [document.text for document, _ in chunk], dtype) for chunk in chunks)
        for chunk, encoded in zip(chunks, pool.map(encode_documents, work), strict=True):
            for (document, split), tokens in zip(chunk, encoded, strict=True):
                key = (document.source, split)
                if key not in shards:
                    prefix = to / "shards" / f"{split}-{document.source}"
                    shards[key] = stack.enter_context(ShardWriter(prefix, dtype))
                shards[key].add(tokens)
                count = counts[document.source][split]
                count.documents += 1
                count.tokens += len(tokens)
                count.bytes += document.size
            table.write_table(_table(chunk, [len(tokens) for tokens in encoded]))
            done += sum(document.size for document, _ in chunk)
            show("tokenize", done, total)
    _write_index(config, counts, vocab_size, to)
    return counts


def _table(chunk: Sequence[tuple[Document, str]], tokens: Sequence[int]) -> Any:
    rows: Iterator[dict[str, object]] = (
        {
            "id": f"{document.source}:{document.name}",
            "source": document.source,
            "path": document.path,
            "language": document.language,
            "split": split,
            "bytes": document.size,
            "tokens": count,
            "digest": document.digest,
            "text": document.text,
        }
        for (document, split), count in zip(chunk, tokens, strict=True)
    )
    return pyarrow.Table.from_pylist(list(rows), schema=_SCHEMA)


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
