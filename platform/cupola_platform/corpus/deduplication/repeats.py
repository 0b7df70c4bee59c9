"""Removal of paragraphs and lines that occur in many documents, except in the first, as datatrove pipeline steps.

Data about all documents is kept in files: 8 bytes per paragraph, sorted four million at a time.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from blake3 import blake3
from datatrove.pipeline.base import PipelineStep

from cupola_platform.corpus.config.steps import RepeatsConfig
from cupola_platform.corpus.core.document_files import I64, read_array, save_array
from cupola_platform.corpus.core.documents import Document, Edited, Outcome, Tally, drop, excerpt
from cupola_platform.corpus.core.tasks import end_with_parent, save_tally
from cupola_platform.corpus.deduplication.duplicates import in_range, pairs_between, save_pairs
from cupola_platform.corpus.filters.language import CODE

Unit = Literal["paragraph", "line"]

_BORDERS = {"paragraph": re.compile(r"\n[^\S\n]*\n\s*"), "line": re.compile(r"\n")}


def units(text: str, unit: Unit) -> Iterator[tuple[int, int, int]]:
    """Start and end of each paragraph or line, and the start of the next one."""
    begin = 0
    for border in _BORDERS[unit].finditer(text):
        yield begin, border.start(), border.end()
        begin = border.end()
    yield begin, len(text), len(text)


def digest(text: str) -> int:
    """64 bits of BLAKE3 of a text with normalized white space."""
    return int.from_bytes(blake3(" ".join(text.split()).encode()).digest(length=8), "little")


def counted(document: Document, unit: Unit, config: RepeatsConfig) -> list[tuple[int, int, int]]:
    """The paragraphs or lines that may count as repeats: long enough, and in code only if configured."""
    if document.language == CODE and not config.code:
        return []
    spans = units(document.text, unit)
    return [(begin, end, after) for begin, end, after in spans if end - begin >= config.min_characters]


class CollectUnits(PipelineStep):  # type: ignore[misc]
    """Saves the digest of each paragraph or line of a task's documents, [units, 1], and where each document's end."""

    type, name = "repeats", "digests"

    def __init__(self, unit: Unit, config: RepeatsConfig, to: Path) -> None:
        super().__init__()
        self.unit, self.config, self.to = unit, config, to

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        digests, ends = array("Q"), array("q", [0])
        for document in data:
            digests.extend(
                digest(document.text[begin:end]) for begin, end, _ in counted(document, self.unit, self.config)
            )
            ends.append(len(digests))
            yield document
        self.to.mkdir(parents=True, exist_ok=True)
        save_array(self.to, rank, "units", np.array(digests, np.uint64).reshape(-1, 1))
        save_array(self.to, rank, "ends", np.array(ends, np.int64))


class FindRepeats(PipelineStep):  # type: ignore[misc]
    """Writes pairs of (index of a unit to remove, index of the first document with it); one task per range of
    digests."""

    type, name = "repeats", "equal digests"

    def __init__(self, digests: Path, tasks: int, min_documents: int, pairs: Path) -> None:
        super().__init__()
        self.digests, self.tasks, self.min_documents, self.pairs = digests, tasks, min_documents, pairs

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        end_with_parent()
        values, numbers = in_range(self.digests, self.tasks, "units", None, rank, world_size)
        order = np.lexsort((numbers, values[:, 0]))
        values, numbers = values[order, 0], numbers[order]
        document = np.searchsorted(self._document_ends(), numbers, side="right")
        new = np.ones(len(values), bool)  # starts a group of equal units
        new[1:] = values[1:] != values[:-1]
        group = np.cumsum(new) - 1
        other = new.copy()  # is in a different document from the one before
        other[1:] |= document[1:] != document[:-1]
        documents = np.bincount(group, other)
        first = document[new][group] if len(group) else document
        repeated = (documents[group] >= self.min_documents) & (document != first) if len(group) else new
        save_pairs(self.pairs, rank, np.stack([numbers[repeated], first[repeated]], axis=1))
        yield from ()

    def _document_ends(self) -> I64:
        """The index after each document's last unit."""
        ends = [read_array(self.digests, task, "ends") for task in range(self.tasks)]
        begins = np.cumsum([0, *(int(of[-1]) for of in ends)])
        return np.concatenate([of[1:] + begin for of, begin in zip(ends, begins, strict=False)])


class DropRepeats(PipelineStep):  # type: ignore[misc]
    """Removes the repeats from a task's documents; drops documents with nothing left."""

    type = "filter"

    def __init__(self, unit: Unit, config: RepeatsConfig, digests: Path, pairs: Path, work: Path) -> None:
        self.name = f"repeated {unit}s"
        super().__init__()
        self.unit, self.config, self.digests, self.pairs, self.work = unit, config, digests, pairs, work

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        number = sum(len(read_array(self.digests, task, "units")) for task in range(rank))
        count = len(read_array(self.digests, rank, "units"))
        repeats = set(pairs_between(self.pairs, np.int64(number), np.int64(number + count))[:, 0].tolist())
        tally = Tally(self.name)
        for document in data:
            spans = counted(document, self.unit, self.config)
            gone = [span for place, span in enumerate(spans, start=number) if place in repeats]
            number += len(spans)
            outcome = self._without(document, gone) if gone else document
            tally.count(document, outcome)
            if isinstance(outcome, Edited):
                yield outcome.document
            elif isinstance(outcome, Document):
                yield outcome
        save_tally(self.work, tally, rank)

    def _without(self, document: Document, gone: list[tuple[int, int, int]]) -> Outcome:
        parts, last = [], 0
        for begin, _, after in gone:
            parts.append(document.text[last:begin])
            last = after
        text = "".join([*parts, document.text[last:]]).strip("\n")
        if not text.strip():
            return drop(document, f"nothing but repeated {self.unit}s")
        example = excerpt(document.text[gone[0][0] : gone[0][1]])
        return Edited(replace(document, text=text, size=len(text.encode())), {self.unit: len(gone)}, example)
