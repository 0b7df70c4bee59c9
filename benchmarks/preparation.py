"""The whole preparation of a corpus: megabytes per second and peak memory by phase, for several numbers of workers and
corpus sizes.

    python benchmarks/corpus.py --text FOLDER --pipeline --megabytes 50 [--workers 2,1]

Prints one line per pipeline, with `between` for the driver's own work: wall time, CPU time of all processes, and their
total peak memory (PSS, which divides shared pages among processes). Then one line per cleaning step with its CPU time.
Serial is the wall time in which a second worker cannot help; the last line gives the resulting limit of speed-up
(Amdahl).
"""

import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from cupola_platform.corpus.config import ExecutorConfig, PrepareConfig, Source, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import PrepareReport, prepare
from real_text import bytes_of, real_sources

SERIAL = ("plan", "tokenizer", "near deduplication", "between")
"""Phases with one task each, and the driver's own work."""

POLL_SECONDS = 0.5
"""Each poll walks all pages of all processes; polling more often would slow down what is measured."""


@dataclass
class Phase:
    """Resources used by one pipeline."""

    seconds: float = 0.0
    processor: float = 0.0
    memory: int = 0
    """Total peak of all processes, in bytes."""


@dataclass
class Watch:
    """Watches this process's children by phase."""

    phases: dict[str, Phase] = field(default_factory=lambda: defaultdict(Phase))
    phase: str = "plan"
    _ended: threading.Event = field(default_factory=threading.Event)
    _looking: threading.Lock = field(default_factory=threading.Lock)
    _spent: dict[tuple[int, float], float] = field(default_factory=dict)

    def progress(self, name: str, done: int, total: int) -> None:
        with self._looking:
            self._look()
            self.phase = "between" if done == total else name

    def follow(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            with self._looking:
                self._look()

    def __enter__(self) -> Self:
        self._begin = time.perf_counter()
        self._thread = threading.Thread(target=self.follow)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        now = time.perf_counter()
        phase, memory, processor = self.phases[self.phase], 0, 0.0
        for child in psutil.Process().children(recursive=True):
            try:
                memory += child.memory_full_info().pss
                used, at = sum(child.cpu_times()[:2]), (child.pid, child.create_time())
            except psutil.NoSuchProcess:
                continue
            processor += max(used - self._spent.get(at, 0.0), 0.0)
            self._spent[at] = used
        phase.memory = max(phase.memory, memory)
        phase.processor += processor
        phase.seconds += now - self._begin
        self._begin = now


def measure(sources: dict[str, Source], workers: int) -> tuple[PrepareReport, Watch, float]:
    """Run one preparation, and return its report, its resources and its seconds."""
    config = PrepareConfig(
        sources=sources,
        tokenizer=TokenizerConfig(vocab_size=8192),
        executor=ExecutorConfig(workers=workers),
    )
    with tempfile.TemporaryDirectory() as to:
        begin = time.perf_counter()
        with Watch() as watch:
            report = prepare(config, Path(to, "tokens"), progress=watch.progress)
        return report, watch, time.perf_counter() - begin


def pipeline(folder: Path | None, sizes: list[float], workers: list[int]) -> None:
    """Print the resources of a preparation for each size and number of workers."""
    for megabytes in sizes:
        taken = {}
        sources = real_sources(folder, int(megabytes * 1e6))
        for count in workers:
            report, watch, taken[count] = measure(sources, count)
            show(report, watch, taken[count], count, (bytes_of(sources) or report.steps[0].bytes_in) / 1e6)
        if len(taken) > 1:
            most, least = max(taken), min(taken)
            print(f"{most} workers are {taken[least] / taken[most]:.2f} times as fast as {least}\n")


def show(report: PrepareReport, watch: Watch, seconds: float, workers: int, size: float) -> None:
    """`size`: megabytes of the files, to which speeds refer."""
    read, kept = report.steps[0], report.steps[-1]
    print(
        f"{size:.1f} MB of files, {read.bytes_in / 1e6:.1f} MB of text, {read.documents_in:,} documents, "
        f"{kept.documents_out:,} kept ({kept.bytes_out / 1e6:.1f} MB), {workers} workers: {seconds:.1f} s, "
        f"{size / seconds:.2f} MB/s"
    )
    for name, of in watch.phases.items():
        print(
            f"  {name:22} {of.seconds:7.1f} s of the clock {of.processor:7.1f} of the processor "
            f"{size / of.seconds:8.1f} MB/s {of.memory / 2**20:7.0f} MiB"
        )
    for step in report.steps:
        if step.seconds:
            print(f"    {step.step:20} {step.seconds:7.1f} s of the processor {size / step.seconds:8.1f} MB/s")
    serial = sum(watch.phases[name].processor for name in SERIAL if name in watch.phases)
    whole = sum(of.processor for of in watch.phases.values())
    print(
        f"  peak memory {max(of.memory for of in watch.phases.values()) / 2**20:,.0f} MiB; serial {serial:.1f} of "
        f"{whole:.1f} processor seconds: two workers at most {whole / (serial + (whole - serial) / 2):.2f} times as "
        "fast as one"
    )
