"""Bytes of text per token, by language, compared with other vocabularies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tiktoken
from pyarrow import parquet
from tokenizers import Tokenizer

from cupola_platform.corpus.tokenizer.encoding import DocumentEncoder
from cupola_platform.corpus.tokenizer.ranks import compared_file, is_cl100k, read_ranks
from cupola_platform.corpus.tokenizer.vocabulary import open_vocabulary

LANGUAGE_BYTES = 1_000_000
"""Maximum bytes of text encoded per language."""

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
"""The pre-tokenization of cl100k_base, from tiktoken."""

Counter = Callable[[Sequence[str]], int]


@dataclass(frozen=True, slots=True)
class Compression:
    """Bytes of text per token for one language."""

    language: str
    bytes: int
    """UTF-8 bytes that were encoded."""
    ratios: dict[str, float]
    """Bytes per token by vocabulary."""


def compression(folder: Path, against: Sequence[str] = ()) -> list[Compression]:
    """Bytes per token on the held-out text of a `tokens` artifact, by language, with the most text first.

    Args:
        against: other vocabularies: `qwen`, `cl100k=FILE`, or the path of a `.tiktoken` file or `tokenizer.json`.

    Raises:
        ConfigError: a vocabulary cannot be found or read.
    """
    counters: dict[str, Counter] = {"ours": _counter(Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")))}
    for named in against:
        name, counter = named_vocabulary(named)
        counters[name] = counter
    return [
        Compression(language, size, {name: size / max(count(texts), 1) for name, count in counters.items()})
        for language, (size, texts) in sorted(_heldout(folder).items(), key=lambda item: -item[1][0])
    ]


def named_vocabulary(named: str) -> tuple[str, Counter]:
    """A vocabulary's display name, and a function that counts its tokens in a text."""
    file = compared_file(named)
    if is_cl100k(named):
        encoding = tiktoken.Encoding(
            "cl100k", pat_str=CL100K_PATTERN, mergeable_ranks=read_ranks(file), special_tokens={}
        )
        return "cl100k", lambda texts: sum(len(encoding.encode_ordinary(text)) for text in texts)
    return named if named == "qwen" else Path(named).stem, _counter(open_vocabulary(file))


def _counter(tokenizer: Tokenizer) -> Counter:
    encoder = DocumentEncoder(tokenizer)
    return lambda texts: len(encoder.documents(texts)[0]) - len(texts)


def _heldout(folder: Path) -> Mapping[str, tuple[int, list[str]]]:
    """Bytes and texts of the first held-out documents by language. Other row groups' text is not read."""
    by_language: dict[str, tuple[int, list[str]]] = {}
    with parquet.ParquetFile(folder / "documents.parquet") as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["language", "split", "bytes"]).to_pylist()
            wanted = []
            for place, row in enumerate(rows):
                size, texts = by_language.setdefault(row["language"] or "unknown", (0, []))
                if row["split"] == "heldout" and size < LANGUAGE_BYTES:
                    by_language[row["language"] or "unknown"] = (size + row["bytes"], texts)
                    wanted.append((place, texts))
            if wanted:
                text = file.read_row_group(group, columns=["text"]).column("text")
                for place, texts in wanted:
                    texts.append(text[place].as_py())
    return {language: of for language, of in by_language.items() if of[1]}
