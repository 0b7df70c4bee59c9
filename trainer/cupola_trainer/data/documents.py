"""Prompt-response pairs found in documents: what a function does, how a text continues. Imports no torch."""

import ast
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pyarrow import parquet

from cupola_platform.errors import ConfigError

MAX_CHARACTERS = 120
"""Maximum length of a prompt's body and of a response, which keeps a conversation to about a hundred tokens."""

MIN_CHARACTERS = 20
"""A shorter sentence is a heading or a stub."""

PAIRS_PER_DOCUMENT = 3
"""Maximum per document, so that none dominates."""

Pair = tuple[str, str]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")
_NOT_PROSE = re.compile(r"[<>{}|=*_#\\]|https?:|^\s*(?:[-+>]|\d+[.)]) ")


def pairs_of_split(documents: Path, split: str, seed: int, drops: Counter[str]) -> Iterator[Pair]:
    """(prompt, response) pairs from the documents of one split, in an order set by the seed.

    Python sources yield what their public functions do, from the first sentence of the docstring; other texts yield a
    sentence and the next. `drops` counts documents that yield none: "unparsable_source", "nothing_to_ask".

    Args:
        documents: a `tokens` artifact's documents.parquet.

    Raises:
        ConfigError: the file does not exist.
    """
    if not documents.is_file():
        raise ConfigError(f"{documents} does not exist. Give the folder of a tokens artifact.")
    rng = random.Random(f"{seed} {split}")
    with parquet.ParquetFile(documents) as file:
        groups = list(range(file.num_row_groups))
        rng.shuffle(groups)
        for group in groups:
            rows = file.read_row_group(group, columns=["path", "split", "text"]).to_pylist()
            rng.shuffle(rows)
            for row in rows:
                if row["split"] == split:
                    yield from _pairs(row["path"], row["text"], rng, drops)


def _pairs(path: str, text: str, rng: random.Random, drops: Counter[str]) -> Iterator[Pair]:
    try:
        pairs = list(what_functions_do(text) if path.endswith(".py") else how_texts_go_on(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        drops["unparsable_source"] += 1
        return
    if not pairs:
        drops["nothing_to_ask"] += 1
    yield from rng.sample(pairs, min(PAIRS_PER_DOCUMENT, len(pairs)))


def what_functions_do(source: str) -> Iterator[Pair]:
    """A prompt for each public function of a Python source whose docstring starts with a sentence.

    Raises:
        SyntaxError, ValueError: this Python cannot parse it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in third-party code
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            signature = f"{node.name}({ast.unparse(node.args)})"
            sentence = _sentences(ast.get_docstring(node) or "")[:1]
            if len(signature) <= MAX_CHARACTERS and sentence and _fits(sentence[0]):
                yield f"What does the Python function `{signature}` do?", sentence[0]


def how_texts_go_on(text: str) -> Iterator[Pair]:
    """The first two sentences of each paragraph of prose."""
    for paragraph in re.split(r"\n\s*\n", text):
        if _NOT_PROSE.search(paragraph):
            continue
        sentences = _sentences(paragraph)
        if len(sentences) > 1 and _fits(sentences[0]) and _fits(sentences[1]):
            yield f"Continue this text: {sentences[0]}", sentences[1]


def _sentences(text: str) -> list[str]:
    """The sentences of a text's first paragraph, each on one line."""
    paragraph = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0]
    return _SENTENCE_END.split(" ".join(paragraph.split()))


def _fits(sentence: str) -> bool:
    return MIN_CHARACTERS <= len(sentence) <= MAX_CHARACTERS and sentence[-1] in ".!?"
