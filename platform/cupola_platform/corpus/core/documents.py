"""What passes between steps: documents, and records of those dropped."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Progress = Callable[[str, int, int], None]
"""Called with a step's name, the amount done and the total."""

DEAD_WORKER = 74
"""Exit status of the driver if one of its workers was killed."""

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
    """Its position in that file; 0 if the file is one document."""

    text: str
    size: int
    """Bytes of the text in UTF-8."""

    language: str = ""
    """ISO 639 code, or `code`; empty before identification."""

    digest: str = ""
    """BLAKE3 of the text in UTF-8, in hex; empty until the steps are done."""

    licence: str = ""
    """SPDX identifier; empty if neither the source nor the file states one."""

    begin: int = 0
    """Offset of its first byte in the decompressed file; `end` is the offset after its last. Both 0 if the file is one
    document."""

    end: int = 0

    bits_per_byte: float | None = None
    """Bits per byte of its beginning under the perplexity step's model; None if that step is off."""

    @property
    def name(self) -> str:
        """`path`, followed by `#row` if the file holds several documents."""
        return f"{self.path}#{self.row}" if self.row else self.path


@dataclass(frozen=True, slots=True)
class Drop:
    """A document that a step dropped."""

    reason: str
    """A short phrase by which the report counts."""

    name: str
    """The document's name."""

    size: int
    """Bytes of the document."""

    detail: str = ""
    """The value that broke the rule."""

    text: str = ""
    """The beginning of the text, on one line."""


@dataclass(frozen=True, slots=True)
class Edited:
    """A document that a step kept but edited, and the edits."""

    document: Document
    edits: Mapping[str, int]
    """Number of edits by kind, for the report."""

    detail: str = ""
    """An example of an edit."""


Outcome = Document | Drop | Edited
"""What one step makes of a document."""


def drop(document: Document, reason: str, detail: str = "") -> Drop:
    """A record of `document` as dropped for `reason`."""
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
    """The edits of one kind that one step made in kept documents."""

    documents: int = 0
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Name and detail of the first few."""


@dataclass(slots=True)
class Tally:
    """What one step did. Always, documents in = kept + dropped."""

    step: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0
    """Documents that were kept but edited."""

    lost: dict[str, Loss] = field(default_factory=dict)
    """By reason."""

    edits: dict[str, Edit] = field(default_factory=dict)
    """By kind, if the step reports them."""

    seconds: float = 0.0
    """CPU time of the step, over all processes."""

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
        """Whether another example of this reason would be kept."""
        return reason not in self.lost or len(self.lost[reason].examples) < EXAMPLES

    def add(self, other: "Tally") -> None:
        """Add the same step's counts for another part; call it in the order of the documents."""
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
        """The sum of all parts of one step, given in the order of their documents."""
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
        """Check that documents in = kept + dropped. A step that loses count has a bug, so its output must not be
        used."""
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
    """One cleaning step. Returns an outcome for every document, in order: kept, edited or dropped."""

    @property
    def name(self) -> str: ...

    def __call__(self, documents: Sequence[Document]) -> Sequence[Outcome]: ...


def run_step(step: Step, documents: Sequence[Document]) -> tuple[list[Document], list[Drop], Tally]:
    """The documents that a step keeps, those that it drops, and its tally."""
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
