"""What passes between the steps: documents, and what became of those that were dropped."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Progress = Callable[[str, int, int], None]
"""Called with a step's name, how much is done and how much there is."""

DEAD_WORKER = 74
"""Exit status of the driver when one of its workers was killed."""

EXAMPLES = 3
EXCERPT = 160


@dataclass(frozen=True, slots=True)
class Document:
    """One text on its way from a source to a shard."""

    source: str
    """Name of its source in the recipe."""

    path: str
    """The file it came from, as `sources.jsonl` lists it."""

    row: int
    """Its place in that file; 0 where a file is one document."""

    text: str
    size: int
    """Bytes of the text in UTF-8."""

    language: str = ""
    """ISO 639 code, or `code`; empty before identification."""

    digest: str = ""
    """BLAKE3 of the text in UTF-8, hexadecimal; empty before the steps are done."""

    licence: str = ""
    """SPDX identifier; empty where neither the source nor the file says."""

    begin: int = 0
    """Where its bytes begin in the file (decompressed), and where they end; both 0 where the file is one document."""

    end: int = 0

    bits_per_byte: float | None = None
    """How surprising its beginning is to the perplexity step's model; none where that step is off."""

    @property
    def name(self) -> str:
        """`path`, with `#row` where the file holds several documents."""
        return f"{self.path}#{self.row}" if self.row else self.path


@dataclass(frozen=True, slots=True)
class Drop:
    """A document that a step dropped."""

    reason: str
    """A short phrase; the report counts by it."""

    name: str
    """Where the document came from."""

    size: int
    """Bytes that are lost with it."""

    detail: str = ""
    """The number that broke the rule."""

    text: str = ""
    """The beginning of the text, on one line."""


@dataclass(frozen=True, slots=True)
class Edited:
    """A document that a step kept with another text, and what the step did to it."""

    document: Document
    edits: Mapping[str, int]
    """How often, by kind; the report counts by it."""

    detail: str = ""
    """An example of what was changed."""


Outcome = Document | Drop | Edited
"""What becomes of a document in one step."""


def drop(document: Document, reason: str, detail: str = "") -> Drop:
    """`document` dropped for `reason`."""
    return Drop(reason, document.name, document.size, detail, excerpt(document.text))


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    return " ".join(text[: 2 * EXCERPT].split())[:EXCERPT]


@dataclass(slots=True)
class Loss:
    """What one step dropped for one reason."""

    documents: int = 0
    bytes: int = 0
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, detail and beginning of the first few."""


@dataclass(slots=True)
class Edit:
    """What one step changed in the documents that it kept, of one kind."""

    documents: int = 0
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Name and detail of the first few."""


@dataclass(slots=True)
class Tally:
    """What one step did: documents in = kept + dropped, always."""

    step: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0
    """Documents that were kept with another text."""

    lost: dict[str, Loss] = field(default_factory=dict)
    """By reason."""

    edits: dict[str, Edit] = field(default_factory=dict)
    """By kind, where the step reports them."""

    seconds: float = 0.0
    """Processor time of the step, over all processes."""

    def count(self, before: Document | None, outcome: Outcome) -> None:
        """Count one outcome; `before` is None for the step that reads documents from their sources."""
        after = outcome.document if isinstance(outcome, Edited) else outcome
        self.documents_in += 1
        self.bytes_in += before.size if before else after.size
        if isinstance(outcome, Edited):
            self._book(outcome)
        if isinstance(after, Document):
            self.documents_out += 1
            self.bytes_out += after.size
            self.changed += before is not None and before.text != after.text
            return
        loss = self.lost.setdefault(after.reason, Loss())
        loss.documents += 1
        loss.bytes += after.size
        if len(loss.examples) < EXAMPLES:
            loss.examples.append((after.name, after.detail, after.text))

    def _book(self, outcome: Edited) -> None:
        for kind, count in outcome.edits.items():
            edit = self.edits.setdefault(kind, Edit())
            edit.documents += 1
            edit.count += count
            if len(edit.examples) < EXAMPLES:
                edit.examples.append((outcome.document.name, outcome.detail))

    def wants_example(self, reason: str) -> bool:
        """Whether an example of this reason would still be kept."""
        return reason not in self.lost or len(self.lost[reason].examples) < EXAMPLES

    def add(self, other: "Tally") -> None:
        """Add another part's counts of the same step; parts are added in the order of their documents."""
        self.documents_in += other.documents_in
        self.bytes_in += other.bytes_in
        self.documents_out += other.documents_out
        self.bytes_out += other.bytes_out
        self.changed += other.changed
        self.seconds += other.seconds
        for reason, loss in other.lost.items():
            mine = self.lost.setdefault(reason, Loss())
            mine.documents += loss.documents
            mine.bytes += loss.bytes
            mine.examples = (mine.examples + loss.examples)[:EXAMPLES]
        for kind, edit in other.edits.items():
            same = self.edits.setdefault(kind, Edit())
            same.documents += edit.documents
            same.count += edit.count
            same.examples = (same.examples + edit.examples)[:EXAMPLES]

    @classmethod
    def total(cls, parts: Iterable["Tally"]) -> "Tally":
        """All parts of one step, in the order of their documents."""
        first, *others = parts
        total = cls(first.step)
        for part in (first, *others):
            total.add(part)
        total.check()
        return total

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Tally":
        """A tally from its `asdict` form."""
        lost = {
            reason: Loss(
                loss["documents"], loss["bytes"], [(name, detail, text) for name, detail, text in loss["examples"]]
            )
            for reason, loss in stored["lost"].items()
        }
        edits = {
            kind: Edit(edit["documents"], edit["count"], [(name, detail) for name, detail in edit["examples"]])
            for kind, edit in stored["edits"].items()
        }
        return cls(**{**stored, "lost": lost, "edits": edits})

    def check(self) -> None:
        """Documents in = kept + dropped. A step that loses count is a fault of ours: it must not pass as data."""
        dropped = sum(loss.documents for loss in self.lost.values())
        if self.documents_in != self.documents_out + dropped:
            raise AssertionError(
                f"{self.step}: {self.documents_in} documents in, {self.documents_out} kept, {dropped} dropped"
            )
        if self.edits and self.changed < max(edit.documents for edit in self.edits.values()):
            raise AssertionError(f"{self.step}: {self.changed} documents changed, fewer than were edited: {self.edits}")


@dataclass(slots=True)
class Counts:
    """The size of one split of one source."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    """UTF-8 bytes of the text."""


class Step(Protocol):
    """One cleaning step: returns an outcome for every document, in order: kept, perhaps changed, or dropped."""

    @property
    def name(self) -> str: ...

    def __call__(self, documents: Sequence[Document]) -> Sequence[Outcome]: ...


def run_step(step: Step, documents: Sequence[Document]) -> tuple[list[Document], list[Drop], Tally]:
    """The documents that one step keeps, those that it drops, and what it did."""
    tally = Tally(step.name)
    start = time.process_time()
    kept, dropped = list[Document](), list[Drop]()
    for before, outcome in zip(documents, step(documents), strict=True):
        tally.count(before, outcome)
        if isinstance(outcome, Drop):
            dropped.append(outcome)
        else:
            kept.append(outcome.document if isinstance(outcome, Edited) else outcome)
    tally.seconds = time.process_time() - start
    tally.check()
    return kept, dropped, tally
