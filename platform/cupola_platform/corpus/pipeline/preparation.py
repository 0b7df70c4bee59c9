"""From sources to the content of a `tokens` artifact."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from cupola_platform.artifacts import code_version
from cupola_platform.clusters import Cluster
from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.core.documents import DEAD_WORKER, Counts, Progress, Tally
from cupola_platform.corpus.pipeline.checks import check_config, check_executor, file_digests, named_sources
from cupola_platform.corpus.sources.reader import source_state
from cupola_platform.durable import write_text
from cupola_platform.errors import BY_NAME, ConfigError, CupolaError, StageFailedError
from cupola_platform.launch import tether
from cupola_platform.rows import drops

CLUSTER = "cluster.json"
"""In the work folder: where the tasks run."""


@dataclass(frozen=True)
class PrepareReport:
    """Result of a preparation."""

    steps: list[Tally]
    """The tallies of all steps, in order."""

    sources: dict[str, dict[str, Counts]]
    """Per source and split (`train`, `heldout`): documents, tokens, bytes."""

    vocab_size: int
    """Rows of the tokenizer's vocabulary, padded to a multiple of 64."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase. It is not part of the artifact, whose content must not depend on time."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics for the manifest and for tracking."""
        splits = {split: [counts[split] for counts in self.sources.values()] for split in ("train", "heldout")}
        return {
            "documents_read": float(self.steps[0].documents_in),
            "bytes_read": float(self.steps[0].bytes_in),
            "documents_kept": float(self.steps[-1].documents_out),
            "bytes_kept": float(self.steps[-1].bytes_out),
            "train_tokens": float(sum(counts.tokens for counts in splits["train"])),
            "heldout_tokens": float(sum(counts.tokens for counts in splits["heldout"])),
            "vocab_size": float(self.vocab_size),
            **drops.metrics({of.step: of.documents_in - of.documents_out for of in self.steps if of.lost}),
        }


def prepare(
    config: PrepareConfig,
    to: Path,
    *,
    progress: Progress | None = None,
    work: Path | None = None,
    test_items: Mapping[str, Sequence[str]] | None = None,
    scorer: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> PrepareReport:
    """Read, clean, deduplicate, split and tokenize; write the content of a `tokens` artifact into `to`.

    The output depends on the sources and the config only, not on the number of workers or the time. State is kept in
    `work` (by default `to` plus `.work`) until the end, so a preparation that was stopped in any way resumes from there
    without repeating finished tasks.

    Args:
        cluster: where its tasks run; None for this machine.

    Raises:
        SourceError: a source is missing or empty, or nothing of it is left after cleaning.
        ConfigError: the config names a language, vocabulary or executor that does not exist, or perplexity without a
            scorer.
        StageFailedError: a worker process died, or a step failed; names the log.
    """
    check_config(config)
    check_executor(config.executor, cluster)
    if config.perplexity and not scorer:
        raise ConfigError(
            "perplexity needs a model. Name a checkpoint as the stage's judge, such as judge: artifact:ID."
        )
    work = work or to.with_name(to.name + ".work")
    _resume(config, work, {"test_items": {**(test_items or {})}, "scorer": list(scorer)})
    (work / CLUSTER).unlink(missing_ok=True)
    if cluster is not None:
        (work / CLUSTER).write_text(cluster.model_dump_json(), encoding="utf-8")
    result = _drive(work.absolute(), to.absolute(), progress)
    shutil.rmtree(work)
    return PrepareReport(
        [Tally.of(tally) for tally in result["steps"]],
        {
            name: {split: Counts(**counts) for split, counts in splits.items()}
            for name, splits in result["sources"].items()
        },
        result["vocab_size"],
        result["seconds"],
    )


def _resume(config: PrepareConfig, work: Path, given: Mapping[str, Any]) -> None:
    """Keep a work folder left by the same preparation, else start a new one."""
    settings = TypeAdapter(PrepareConfig).dump_python(config, mode="json")
    same = {
        "config": {key: value for key, value in settings.items() if key != "executor"},
        "sources": {name: source_state(source) for name, source in named_sources(config).items()},
        "files": file_digests(config),
        "given": given,
        "code": code_version("cupola_platform.corpus", "cupola_platform.reports"),
    }
    told_before = work / "same.json"
    if not told_before.exists() or json.loads(told_before.read_text(encoding="utf-8")) != same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_text(told_before, json.dumps(same))
    (work / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name, value in given.items():
        (work / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def _drive(work: Path, to: Path, progress: Progress | None) -> dict[str, Any]:
    """Run the driver and return its result. If this process is interrupted, end the driver and its workers."""
    log = work / "log.txt"
    command = [
        sys.executable,
        tether.__file__,
        str(os.getpid()),
        sys.executable,
        "-m",
        "cupola_platform.corpus.pipeline.driver",
    ]
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [*command, str(work), str(to)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "true"},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in lines(process.stdout):
            if progress:
                progress(*json.loads(line))
        status = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # nothing is lost: tasks with a completion marker are done
        process.wait()
    if status == 0:
        return dict(json.loads((work / "result.json").read_text(encoding="utf-8")))
    raise _failure(work, log, status)


def lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a pipe as they come. Each wait is short, so that an exception raised in this thread arrives soon."""
    read: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def pump() -> None:
        with stream:
            for line in stream:
                read.put(line)
        read.put(b"")

    threading.Thread(target=pump, name="progress of a preparation", daemon=True).start()
    while True:
        with suppress(queue.Empty):
            if not (line := read.get(timeout=0.5)):
                return
            yield line


def _failure(work: Path, log: Path, status: int) -> CupolaError:
    error_file = work / "error.json"
    if error_file.exists():
        error = json.loads(error_file.read_text(encoding="utf-8"))
        error_file.unlink()
        return BY_NAME[error["type"]](error["message"])
    if status == DEAD_WORKER:
        return StageFailedError(
            "A worker process of the preparation was killed, maybe for lack of memory. Try fewer executor.workers or a "
            f"smaller max_document_bytes. Finished work is kept. The log: {log}."
        )
    return StageFailedError(f"The preparation failed with exit status {status}. Finished work is kept. The log: {log}.")
