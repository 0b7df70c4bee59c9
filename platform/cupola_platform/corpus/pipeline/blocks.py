"""The preparation's steps as datatrove pipeline steps: what one task does, on any machine.

Each writes its counts to `tallies/NAME/RANK.json` after its last document. A task counts once the executor has written
its completion marker, so a task that was killed and repeated is counted once.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from datatrove.pipeline.base import PipelineStep

from cupola_platform import json_lines
from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.core.document_files import DocumentWriter, read_documents, with_digest
from cupola_platform.corpus.core.documents import Document, Drop, Step, Tally, run_step
from cupola_platform.corpus.core.tasks import chunked, end_with_parent, save_tally
from cupola_platform.corpus.sources.reader import Entry, read_source
from cupola_platform.corpus.sources.source_files import SourceFile
from cupola_platform.json_lines import Row

T = TypeVar("T")


class Read(PipelineStep):  # type: ignore[misc]
    """Reads the documents of the files that the plan assigns to a task."""

    type, name = "reader", "sources"

    def __init__(self, config: PrepareConfig, work: Path) -> None:
        super().__init__()
        self.config, self.work = config, work

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        end_with_parent()
        piece = json.loads((self.work / "plan" / f"{rank:05d}.json").read_text(encoding="utf-8"))
        entries = [Entry(*entry) for entry in piece["entries"]]
        tally, files = Tally("read"), list[SourceFile]()
        outcomes = read_source(
            piece["source"],
            self.config.sources[piece["source"]],
            max_document_bytes=self.config.max_document_bytes,
            files=files,
            entries=entries,
        )
        for outcome in timed(outcomes, tally):
            tally.count(None, outcome)
            if isinstance(outcome, Document):
                yield outcome
        save_tally(self.work, tally, rank)
        json_lines.write(self.work / "files" / f"{rank:05d}.jsonl", map(asdict, files))


class Apply(PipelineStep):  # type: ignore[misc]
    """Applies a step that processes one document at a time; with a ledger, each dropped document gets a line there."""

    type = "step"

    def __init__(self, step: Step, work: Path, ledger: Path | None = None) -> None:
        self.name = step.name
        super().__init__()
        self.step, self.work, self.ledger = step, work, ledger

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tally, ledger = Tally(self.step.name), list[Row]()
        for chunk in chunked(data, lambda document: document.size):
            kept, dropped, part = run_step(self.step, chunk)
            tally.add(part)
            if self.ledger:
                ledger += map(line_of, dropped)
            yield from kept
        if self.ledger:
            json_lines.write(self.ledger / f"{rank:05d}.jsonl", ledger)
        save_tally(self.work, tally, rank)


def line_of(dropped: Drop) -> dict[str, object]:
    """One line of the ledger."""
    return {"document": dropped.name, "bytes": dropped.size, "reason": dropped.reason, "detail": dropped.detail}


class Load(PipelineStep):  # type: ignore[misc]
    """Reads the documents saved by the task of the same rank in an earlier pipeline."""

    type, name = "reader", "documents"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        end_with_parent()
        yield from read_documents(self.folder, rank)


class Save(PipelineStep):  # type: ignore[misc]
    """Saves the documents, with digests, for the next pipeline."""

    type, name = "writer", "documents"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with DocumentWriter(self.folder, rank) as writer:
            for document in data:
                labelled = replace(document, digest=with_digest(document))
                writer.add(labelled)
                yield labelled


def timed(items: Iterator[T], tally: Tally) -> Iterator[T]:
    """The same items; adds the CPU time taken to produce them to the tally."""
    while True:
        start = time.process_time()
        item = next(items, None)
        tally.seconds += time.process_time() - start
        if item is None:
            return
        yield item
