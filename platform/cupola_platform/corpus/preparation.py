"""From sources to the content of a `tokens` artifact."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from cupola_platform.corpus.checking import check_config
from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.deduplication import ExactDeduplication, NearDeduplication
from cupola_platform.corpus.documents import Document, Tally
from cupola_platform.corpus.engine import Progress, Step, run_per_document, run_step
from cupola_platform.corpus.heldout import choose_heldout
from cupola_platform.corpus.language import LanguageFilter
from cupola_platform.corpus.output import Counts, write_shards
from cupola_platform.corpus.pool import WorkerPool
from cupola_platform.corpus.quality import QualityFilter
from cupola_platform.corpus.records import SourceFile
from cupola_platform.corpus.report import write_report
from cupola_platform.corpus.sources import read_source, source_size
from cupola_platform.corpus.unicode_repair import UnicodeRepair
from cupola_platform.corpus.vocabulary import make_tokenizer
from cupola_platform.errors import SourceError


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation did."""

    steps: list[Tally]
    """The funnel, in order."""

    sources: dict[str, dict[str, Counts]]
    """Per source and split (`train`, `heldout`): documents, tokens, bytes."""

    vocab_size: int
    """Rows of the tokenizer's vocabulary, padded to a multiple of 64."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase; not written to the artifact, whose content does not depend on it."""

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers for a manifest and for tracking."""
        splits = {split: [counts[split] for counts in self.sources.values()] for split in ("train", "heldout")}
        return {
            "documents_read": float(self.steps[0].documents_in),
            "bytes_read": float(self.steps[0].bytes_in),
            "documents_kept": float(self.steps[-1].documents_out),
            "bytes_kept": float(self.steps[-1].bytes_out),
            "train_tokens": float(sum(counts.tokens for counts in splits["train"])),
            "heldout_tokens": float(sum(counts.tokens for counts in splits["heldout"])),
            "vocab_size": float(self.vocab_size),
        }


def prepare(config: PrepareConfig, to: Path, *, progress: Progress | None = None) -> PrepareReport:
    """Read, clean, deduplicate, split and tokenize; write the content of a `tokens` artifact into `to`.

    What is written depends on the sources and the config only, not on the number of workers or the time.

    Raises:
        SourceError: a source is missing or empty, or nothing of it is left after cleaning.
        ConfigError: the config names a language or vocabulary that does not exist.
    """
    check_config(config)
    for folder in (to / "tokenizer", to / "shards"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    show = progress or _silent
    seconds: dict[str, float] = {}
    files: list[SourceFile] = []
    with WorkerPool(config.workers) as pool:
        with _timed("read and clean", seconds):
            documents, tallies = _read_and_clean(config, pool, files, show)
        with _timed("deduplicate", seconds):
            documents = _over_corpus(_corpus_steps(config), documents, tallies, show)
        _refuse_empty(config, documents, tallies)
        heldout = choose_heldout(documents, config.heldout_fraction, config.seed)
        with _timed("tokenizer", seconds):
            show("tokenizer", 0, 1)
            train = [document.text for document, out in zip(documents, heldout, strict=True) if not out]
            vocab_size = make_tokenizer(config.tokenizer, train, to / "tokenizer", config.seed)
            show("tokenizer", 1, 1)
        with _timed("tokenize", seconds):
            counts = write_shards(config, documents, heldout, vocab_size, to, pool, show)
    report = PrepareReport(tallies, counts, vocab_size, seconds)
    with _timed("report", seconds):
        write_report(to, tallies, counts, vocab_size, documents, files)
    return report


def _document_steps(config: PrepareConfig) -> list[Step]:
    """Steps that look at one document at a time, in order."""
    steps: list[Step] = [UnicodeRepair()]
    if config.language:
        steps.append(LanguageFilter(config.language))
    if config.quality:
        steps.append(QualityFilter(config.quality))
    return steps


def _corpus_steps(config: PrepareConfig) -> list[Step]:
    """Steps that look at all documents together, in order."""
    if config.deduplication is None:
        return []
    steps: list[Step] = [ExactDeduplication()]
    if config.deduplication.near:
        steps.append(NearDeduplication(config.deduplication, config.seed))
    return steps


def _read_and_clean(
    config: PrepareConfig, pool: WorkerPool, files: list[SourceFile], show: Progress
) -> tuple[list[Document], list[Tally]]:
    reading = Tally("read")
    total = sum(map(source_size, config.sources.values()))
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        show("read and clean", done, max(done, total))

    show("read and clean", 0, total)
    documents, tallies = run_per_document(_document_steps(config), _read(config, files, reading), pool, advance)
    reading.check()
    show("read and clean", done, done)
    return documents, [reading, *tallies]


def _read(config: PrepareConfig, files: list[SourceFile], tally: Tally) -> Iterator[Document]:
    for name, source in config.sources.items():
        start = time.process_time()
        for outcome in read_source(name, source, max_document_bytes=config.max_document_bytes, files=files):
            tally.count(None, outcome)
            if isinstance(outcome, Document):
                yield outcome
        tally.seconds += time.process_time() - start


def _over_corpus(
    steps: Sequence[Step], documents: list[Document], tallies: list[Tally], show: Progress
) -> list[Document]:
    for step in steps:
        show(step.name, 0, 1)
        documents, tally = run_step(step, documents)
        tallies.append(tally)
        show(step.name, 1, 1)
    return [
        document if document.digest else replace(document, digest=blake3(document.text.encode()).hexdigest())
        for document in documents
    ]


def _refuse_empty(config: PrepareConfig, documents: Sequence[Document], tallies: Sequence[Tally]) -> None:
    left = {document.source for document in documents}
    for name in config.sources:
        if name not in left:
            reasons = sorted(
                ((loss.documents, reason) for tally in tallies for reason, loss in tally.lost.items()), reverse=True
            )
            why = ", ".join(f"{reason} ({count:,})" for count, reason in reasons[:4]) or "it held no document"
            raise SourceError(
                f"sources.{name}: no document is left after cleaning. Of all sources, most were dropped for: {why}. "
                "Loosen the steps that drop them, or remove the source."
            )


@contextmanager
def _timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def _silent(step: str, done: int, total: int) -> None:
    """No one is watching."""
