"""Finds the document, file and text of a token in a shard."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import parquet
from tokenizers import Tokenizer

from cupola_platform.corpus.tokenizer.shard_index import ShardIndex, open_shards
from cupola_platform.errors import ConfigError, NotFoundError

CONTEXT = 80
"""Characters of text shown on either side of a token."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a token comes from."""

    shard: str
    offset: int
    """The token's position in the shard."""
    document: int
    """The document's index in the shard."""
    within: int
    """The token's position in its document."""
    tokens: int
    """Tokens of the document, including <|endoftext|>."""
    id: str
    source: str
    path: str
    """The file, as `sources.jsonl` lists it."""
    language: str
    digest: str
    """BLAKE3 of the document's text."""
    token: int
    before: str
    """The text before the token, as the model sees it (NFC)."""
    text: str
    """The token's text; a partial character is shown as U+FFFD."""
    after: str


def locate(folder: Path, shard: str, offset: int) -> Location:
    """The document that contains a token, and the text around it.

    Args:
        folder: a `tokens` artifact's folder.
        shard: such as `train-web`.
        offset: the token's position in the shard, from 0.

    Raises:
        NotFoundError: there is no such shard.
        ConfigError: the shard has fewer tokens.
    """
    sources = json.loads((folder / "index.json").read_bytes())["sources"]
    splits = {
        f"{split}-{source}": (split, source) for source in sources for split in sources[source]
        if sources[source][split]["tokens"]
    }  # fmt: skip
    if shard not in splits:
        raise NotFoundError(f"--shard {shard}: there is no such shard. Known: {', '.join(sorted(splits))}.")
    split, source = splits[shard]
    counts = sources[source][split]
    if not 0 <= offset < counts["tokens"]:
        raise ConfigError(f"--offset {offset} is out of range. {shard} has tokens 0 to {counts['tokens'] - 1:,}.")
    document, start, ids = _document(open_shards(folder, counts, split, source), offset)
    within = offset - start
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    before, text, after = (
        tokenizer.decode(part, skip_special_tokens=False)
        for part in (ids[:within], ids[within : within + 1], ids[within + 1 : -1])
    )
    row = _row(folder, source, split, document)
    return Location(
        shard=shard,
        offset=offset,
        document=document,
        within=within,
        tokens=len(ids),
        token=ids[within],
        before=before[-CONTEXT:],
        text=text,
        after=after[:CONTEXT],
        **row,
    )


def _document(indices: Sequence[ShardIndex], offset: int) -> tuple[int, int, list[int]]:
    """The document with a token: its number, the position of its first token, its tokens. Numbers and positions count
    through all files."""
    documents = position = 0
    for index in indices:
        if offset < position + index.tokens:
            break
        documents += index.documents
        position += index.tokens
    size = index.dtype.itemsize
    number = int(np.searchsorted(index.starts, (offset - position) * size, side="right")) - 1
    start, length = int(index.starts[number]), int(index.lengths[number])
    ids = np.fromfile(index.tokens_path, index.dtype, length, offset=start).tolist()
    return documents + number, position + start // size, ids


def _row(folder: Path, source: str, split: str, document: int) -> dict[str, str]:
    columns = ["id", "source", "path", "language", "digest"]
    wanted = [("source", "==", source), ("split", "==", split), ("document", "==", document)]
    rows = parquet.read_table(folder / "documents.parquet", columns=columns, filters=wanted).to_pylist()
    if len(rows) != 1:
        raise NotFoundError(f"{folder} is from a version without document numbers. Prepare the tokens again.")
    return dict(rows[0])
