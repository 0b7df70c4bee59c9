"""Finds the document, file and text of a token in a shard."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import parquet
from tokenizers import Tokenizer

from cupola_platform.corpus.tokenizer.shards import document_lengths, read_document
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
    prefix = folder / "shards" / shard
    if not prefix.with_name(prefix.name + ".idx").is_file():
        known = ", ".join(sorted(path.stem for path in (folder / "shards").glob("*.idx")))
        raise NotFoundError(f"--shard {shard}: there is no such shard. Known: {known}.")
    ends = np.cumsum(document_lengths(prefix))
    if not 0 <= offset < ends[-1]:
        raise ConfigError(f"--offset {offset} is out of range. {shard} has tokens 0 to {ends[-1] - 1:,}.")
    document = int(np.searchsorted(ends, offset, side="right"))
    tokens = int(ends[document] - (ends[document - 1] if document else 0))
    start = int(ends[document]) - tokens
    within = offset - start
    ids = read_document(prefix, start, tokens).tolist()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    before, text, after = (
        tokenizer.decode(part, skip_special_tokens=False)
        for part in (ids[:within], ids[within : within + 1], ids[within + 1 : -1])
    )
    split, _, source = shard.partition("-")
    row = _row(folder, source, split, document)
    return Location(
        shard=shard,
        offset=offset,
        document=document,
        within=within,
        tokens=tokens,
        token=ids[within],
        before=before[-CONTEXT:],
        text=text,
        after=after[:CONTEXT],
        **row,
    )


def _row(folder: Path, source: str, split: str, document: int) -> dict[str, str]:
    columns = ["id", "source", "path", "language", "digest"]
    wanted = [("source", "==", source), ("split", "==", split), ("document", "==", document)]
    rows = parquet.read_table(folder / "documents.parquet", columns=columns, filters=wanted).to_pylist()
    if len(rows) != 1:
        raise NotFoundError(f"{folder} is from a version without document numbers. Prepare the tokens again.")
    return dict(rows[0])
