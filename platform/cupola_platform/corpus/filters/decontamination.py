"""Drops documents that contain evaluation test items.

There are two rules. GPT-3's, followed by Qwen (Bai et al. 2023, section 2.1): the document shares a run of 13 words
with an item. Qwen2.5's (Qwen Team 2024, section 5): the longest common subsequence of words has at least 13 words and
covers at least 0.6 of the shorter text. A common subsequence of a whole book and a short question is meaningless, so a
long document is compared by passages: those of three item lengths that contain two runs of three words of the item at
consistent positions. An index of these runs finds them in time linear in the text.

Words are those of near-duplicate removal: in scripts without spaces each character is a word.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep

from cupola_platform.corpus.config.sources import Source
from cupola_platform.corpus.config.steps import DecontaminationConfig
from cupola_platform.corpus.core.documents import Document, Drop, drop
from cupola_platform.corpus.core.shingles import I64, U64, hashed_words, ngrams, word_spans
from cupola_platform.corpus.core.tasks import write
from cupola_platform.corpus.sources.reader import read_source
from cupola_platform.errors import SourceError

SEED_WORDS = 3
MIN_SEEDS = 2
"""Runs of `SEED_WORDS` words that a passage must share with an item before their subsequence is computed."""

MATCH_CHARACTERS = 300
"""Characters of the matched text in the report."""


@dataclass(frozen=True)
class ItemIndex:
    """Test items as hashed words, with indices of their word runs."""

    names: Sequence[str]
    words: U64
    """The words of all items, concatenated."""
    offsets: I64
    runs: U64
    """All runs of `ngram` words, sorted; `run_items` has their items."""
    run_items: I64
    seeds: U64
    """All runs of three words, sorted; `seed_items` has their items, `seed_places` their positions in them."""
    seed_items: I64
    seed_places: I64

    @classmethod
    def index(cls, names: Sequence[str], texts: Sequence[str], ngram: int) -> "ItemIndex":
        """Index items. Those with too few words for both rules have no runs in the index."""
        words = hashed_words(texts)
        runs, run_items, _ = _index(words.hashes, words.offsets, ngram)
        return cls(
            names, words.hashes, words.offsets, runs, run_items, *_index(words.hashes, words.offsets, SEED_WORDS)
        )

    def of(self, item: int) -> U64:
        """The words of one item."""
        return self.words[self.offsets[item] : self.offsets[item + 1]]

    def save(self, folder: Path) -> None:
        """Write the index, with the names last."""
        arrays = {name: value for name, value in vars(self).items() if name != "names"}
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "index.npz", **arrays)
        write(folder / "names.json", json.dumps(list(self.names), ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> "ItemIndex":
        """Read an index written by `save`."""
        with np.load(folder / "index.npz") as arrays:
            return cls(json.loads((folder / "names.json").read_text(encoding="utf-8")), **arrays)


@dataclass(frozen=True)
class Decontamination:
    """Drops documents that share too much with a test item."""

    config: DecontaminationConfig
    items: Path
    """The folder of the index."""
    name: str = "decontamination"

    def __call__(self, documents: Sequence[Document]) -> list[Document | Drop]:
        items = _loaded(self.items)
        words = hashed_words([document.text for document in documents])
        return [self._judge(document, words.of(place), items) for place, document in enumerate(documents)]

    def _judge(self, document: Document, words: U64, items: ItemIndex) -> Document | Drop:
        match = _shared_run(words, items, self.config.ngram)
        reason = f"{self.config.ngram} words in a row of a test item"
        if match is None and self.config.common_subsequence:
            match = next(self._subsequences(words, items), None)
            reason = "common subsequence with a test item"
        if match is None:
            return document
        item, first, last = match
        spans = word_spans(document.text)
        matched = " ".join(document.text[spans[first, 0] : spans[last, 1]].split())[:MATCH_CHARACTERS]
        return drop(document, reason, f"{items.names[item]}: {matched}")

    def _subsequences(self, words: U64, items: ItemIndex) -> Iterator[tuple[int, int, int]]:
        """Items with a long enough common subsequence with a passage, and the passage's first and last word."""
        for item, begin, end in _passages(words, items):
            of, passage = items.of(item), words[begin:end]
            need = max(self.config.min_common, self.config.min_share * min(len(of), len(words)))
            inside = np.flatnonzero(np.isin(passage, of))
            if len(inside) >= need and common_subsequence(of, passage) >= need:
                yield item, begin + int(inside[0]), begin + int(inside[-1])


class BuildTestItems(PipelineStep):  # type: ignore[misc]
    """Reads the evaluation sets and indexes them, in one task."""

    type, name = "decontamination", "test items"

    def __init__(self, config: DecontaminationConfig, given: Mapping[str, Sequence[str]], to: Path) -> None:
        super().__init__()
        self.config, self.given, self.to = config, given, to

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        named = [
            *self._read(),
            *((f"{name}#{i}", text) for name, of in self.given.items() for i, text in enumerate(of, 1)),
        ]
        counts = np.diff(hashed_words([text for _, text in named]).offsets)
        shortest = min(self.config.ngram, self.config.min_common)
        long = [item for item, count in zip(named, counts.tolist(), strict=True) if count >= shortest]
        if not long:
            raise SourceError(
                f"decontamination: none of {len(named)} test items has {shortest} words, so none can be found. "
                "Name sets with longer items, or a smaller ngram."
            )
        ItemIndex.index([name for name, _ in long], [text for _, text in long], self.config.ngram).save(self.to)
        write(self.to / "counts.json", json.dumps({"items": len(long), "too_short": len(named) - len(long)}))
        yield from ()

    def _read(self) -> Iterator[tuple[str, str]]:
        for name, source in self.config.against.items():
            count = 0
            for item in _texts(name, source):
                count += 1
                yield f"{name}:{item.path.rpartition('/')[2]}#{item.row}", item.text
            if not count:
                raise SourceError(
                    f"decontamination.against.{name}: no row has text. Set text_field to the column with the questions."
                )


def _texts(name: str, source: Source) -> Iterable[Document]:
    outcomes = read_source(name, source, max_document_bytes=1 << 24, files=[])
    return (outcome for outcome in outcomes if isinstance(outcome, Document))


def _index(words: U64, offsets: I64, n: int) -> tuple[U64, I64, I64]:
    """Sorted runs of `n` words within items, their items and their positions in them."""
    keys = ngrams(words, n)
    begins = np.arange(len(keys))
    items = np.searchsorted(offsets, begins, side="right") - 1
    inside = begins + n <= offsets[items + 1]
    order = np.argsort(keys[inside], kind="stable")
    return keys[inside][order], items[inside][order], (begins - offsets[items])[inside][order]


def _shared_run(words: U64, items: ItemIndex, ngram: int) -> tuple[int, int, int] | None:
    """An item that shares a run with the words, and the run's first and last word."""
    keys = ngrams(words, ngram)
    if not len(keys) or not len(items.runs):
        return None
    places = np.minimum(np.searchsorted(items.runs, keys), len(items.runs) - 1)
    hits = np.flatnonzero(items.runs[places] == keys)
    return (int(items.run_items[places[hits[0]]]), int(hits[0]), int(hits[0]) + ngram - 1) if len(hits) else None


def _passages(words: U64, items: ItemIndex) -> Iterator[tuple[int, int, int]]:
    """Passages of a document that share enough runs of three words with an item: (item, first word, end)."""
    keys = ngrams(words, SEED_WORDS)
    low = np.searchsorted(items.seeds, keys)
    counts = np.searchsorted(items.seeds, keys, side="right") - low
    where = np.repeat(np.arange(len(keys)), counts)
    seeds = np.arange(len(where)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
    item = items.seed_items[seeds]
    length = np.diff(items.offsets)[item]
    half = np.maximum(length // 2, 1)
    block = (where - items.seed_places[seeds] + length) // half  # where the item would start in the document
    hits: dict[tuple[int, int], int] = {}
    for pair in zip(item.tolist(), block.tolist(), strict=True):
        hits[pair] = hits.get(pair, 0) + 1
    for (number, place), count in hits.items():
        if count + hits.get((number, place + 1), 0) >= MIN_SEEDS:
            size = int(items.offsets[number + 1] - items.offsets[number])
            begin = place * max(size // 2, 1) - size
            yield number, max(0, begin - size // 2), min(len(words), begin + 5 * size // 2)


def common_subsequence(a: U64, b: U64) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): O(len(a) len(b) / word size)."""
    masks: dict[int, int] = {}
    for place, word in enumerate(a.tolist()):
        masks[word] = masks.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b.tolist():
        matched = row & masks.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


@cache
def _loaded(folder: Path) -> ItemIndex:
    """Load an index, cached per worker."""
    return ItemIndex.load(folder)
