"""Runs one preparation in its own process: `python -m cupola_platform.corpus.pipeline.driver WORK TO`.

It needs its own process because its pools fork, which is unsafe in a caller with threads, and re-import the main
module.

It reads `WORK/config.json`, reports progress on stdout as one JSON list per line, and finally writes `WORK/result.json`
or `WORK/error.json`. Finished work stays in WORK, so the same command resumes from there.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from pydantic import TypeAdapter

from cupola_platform.clusters import AnyCluster, SlurmCluster
from cupola_platform.corpus.config import DeduplicationConfig, PrepareConfig
from cupola_platform.corpus.core.document_files import first_indices, read_array
from cupola_platform.corpus.core.documents import Step, Tally
from cupola_platform.corpus.core.tasks import die_with_parent, sum_tallies
from cupola_platform.corpus.deduplication.clusters import cluster_sizes
from cupola_platform.corpus.deduplication.duplicates import (
    RANGE_DOCUMENTS,
    Cluster,
    DropDuplicates,
    FindEqual,
    FindSimilar,
    Signatures,
    pairs_between,
)
from cupola_platform.corpus.deduplication.minhash import rows_per_band
from cupola_platform.corpus.deduplication.repeats import CollectUnits, DropRepeats, FindRepeats, Unit
from cupola_platform.corpus.filters.classifier import LearnClassifier
from cupola_platform.corpus.filters.decontamination import BuildTestItems, Decontamination
from cupola_platform.corpus.filters.perplexity import PercentileFilter, cutoffs_of
from cupola_platform.corpus.pipeline.blocks import Apply, Load, Read, Save
from cupola_platform.corpus.pipeline.checks import classifiers
from cupola_platform.corpus.pipeline.plan import document_steps, models, plan
from cupola_platform.corpus.pipeline.runner import Runner
from cupola_platform.corpus.report.account import Account, write_report
from cupola_platform.corpus.sources.formats import NO_TEXT
from cupola_platform.corpus.tokenizer.shards import token_dtype
from cupola_platform.corpus.tokenizer.tokenizing import MakeTokenizer, Tokenize, Written, join, write_index
from cupola_platform.durable import write_text
from cupola_platform.errors import CupolaError, SourceError


class Preparation:
    """From sources to the content of a `tokens` artifact, pipeline by pipeline."""

    def __init__(self, config: PrepareConfig, work: Path, to: Path, runner: Runner) -> None:
        self.config, self.work, self.to, self.runner = config, work, to, runner
        self.seconds: dict[str, float] = {}
        self.steps = document_steps(config, work)
        self.counted: list[dict[str, Tally]] = []
        """The tallies of each step, by source."""
        self.sources: list[str] = []
        """The source of each task."""

    @property
    def tasks(self) -> int:
        return len(self.sources)

    @property
    def tallies(self) -> list[Tally]:
        """The tally of each step over all sources."""
        return [Tally.total(of_sources.values()) for of_sources in self.counted]

    def run(self) -> None:
        """Do the remaining work, and write the result."""
        with self._timed("plan"):
            self.sources = plan(self.config, self.work)
        documents = self._clean()
        documents = self._deduplicate(documents)
        self._refuse_empty(documents)
        self._tokenize(documents)

    def _clean(self) -> Path:
        if self.config.decontamination:
            given = json.loads((self.work / "test_items.json").read_text(encoding="utf-8"))
            build = BuildTestItems(self.config.decontamination, given, self.work / "items")
            with self._timed("test items"):
                self.runner.run("test items", [build], 1)
        for key, config in classifiers(self.config).items():
            with self._timed(key):
                self.runner.run(key, [LearnClassifier(key, config, models(self.work) / key)], 1)
        limit = self.config.perplexity.max_percentile if self.config.perplexity else None
        names = [step.name for step in self.steps]
        first = len(names) if limit is None else names.index("perplexity") + 1
        documents = self.work / "cleaned"
        with self._timed("read and clean"):
            blocks = [Read(self.config, self.work), *self._apply(self.steps[:first]), Save(documents)]
            self.runner.run("read and clean", blocks, self.tasks)
        self._count("read", *names[:first])
        return documents if limit is None else self._keep_percentile(documents, limit, self.steps[first:])

    def _keep_percentile(self, documents: Path, percentile: float, then: Sequence[Step]) -> Path:
        """Keep each language's least surprising documents; the cutoffs are known once all documents are scored."""
        name, kept, cutoffs_file = PercentileFilter.name, self.work / "familiar", self.work / "cutoffs.json"
        with self._timed(name):
            if not self.runner.finished(name, self.tasks):
                cutoffs = cutoffs_of(documents, self.tasks, percentile)
                write_text(cutoffs_file, json.dumps(cutoffs))
                blocks = [Load(documents), *self._apply([PercentileFilter(cutoffs), *then]), Save(kept)]
                self.runner.run(name, blocks, self.tasks)
            shutil.rmtree(documents, ignore_errors=True)
        self._count(name, *(step.name for step in then))
        return kept

    def _apply(self, steps: Sequence[Step]) -> list[PipelineStep]:
        return [Apply(step, self.work, self._ledger(step)) for step in steps]

    def _ledger(self, step: Step) -> Path | None:
        """The ledger of the documents that the step drops, if it has one."""
        return self.work / "contaminated" if isinstance(step, Decontamination) else None

    def _deduplicate(self, documents: Path) -> Path:
        config, units = self.config.deduplication, self.config.repeats.units if self.config.repeats else ()
        near = [Signatures(config, self.config.seed, self.work / "signatures")] if config and config.near else []
        if config:
            documents = self._drop_equal(documents, [] if units else near)
        for unit in units:
            documents = self._drop_repeats(documents, unit, near if unit == units[-1] else [])
        if config and config.near:
            with self._timed("near deduplication"):
                if not self.runner.finished("near deduplication", 1):
                    self._find_near(config)
                shutil.rmtree(self.work / "signatures", ignore_errors=True)
        return documents

    def _drop_equal(self, documents: Path, then: Sequence[PipelineStep]) -> Path:
        step, equal, to = "exact deduplication", self.work / "equal", self.work / "distinct"
        with self._timed(step):
            if not self.runner.finished(step, self.tasks):
                ranges = max(1, -(-int(first_indices(documents, self.tasks)[-1]) // RANGE_DOCUMENTS))
                self.runner.run("find equal", [FindEqual(documents, self.tasks, equal)], ranges)
                clusters = cluster_sizes(equal, documents, first_indices(documents, self.tasks))
                # now, since the documents are removed below
                write_text(self.work / "clusters.json", json.dumps(clusters, ensure_ascii=False))
                drops = DropDuplicates(step, "exact duplicate", documents, self.tasks, equal, self.work)
                self.runner.run(step, [Load(documents), drops, *then, Save(to)], self.tasks)
            shutil.rmtree(documents, ignore_errors=True)
        self._count(step)
        return to

    def _drop_repeats(self, documents: Path, unit: Unit, then: Sequence[PipelineStep]) -> Path:
        config = self.config.repeats
        assert config is not None
        step = f"repeated {unit}s"
        digests, pairs, to = (self.work / f"{unit}-{what}" for what in ("digests", "repeats", "documents"))
        with self._timed(step):
            if not self.runner.finished(step, self.tasks):
                self.runner.run(f"find {unit}s", [Load(documents), CollectUnits(unit, config, digests)], self.tasks)
                count = sum(len(read_array(digests, task, "units")) for task in range(self.tasks))
                find = FindRepeats(digests, self.tasks, config.min_documents, pairs)
                self.runner.run(f"compare {unit}s", [find], max(1, -(-count // RANGE_DOCUMENTS)))
                drops = DropRepeats(unit, config, digests, pairs, self.work)
                self.runner.run(step, [Load(documents), drops, *then, Save(to)], self.tasks)
            shutil.rmtree(documents, ignore_errors=True)
        self._count(step)
        return to

    def _find_near(self, config: DeduplicationConfig) -> None:
        signatures, candidates = self.work / "signatures", self.work / "candidates"
        bands = config.num_permutations // rows_per_band(config.threshold, config.num_permutations)
        self.runner.run("find similar", [FindSimilar(signatures, self.tasks, candidates)], bands)
        blocks = [Cluster(signatures, self.tasks, candidates, config.threshold, self.work / "near")]
        self.runner.run("near deduplication", blocks, 1)

    def _refuse_empty(self, documents: Path) -> None:
        begins = first_indices(documents, self.tasks)
        left = dict.fromkeys(self.config.sources, 0)
        for task, source in enumerate(self.sources):
            removed = len(pairs_between(self.work / "near", begins[task], begins[task + 1]))
            left[source] += int(begins[task + 1] - begins[task]) - removed
        for name, count in left.items():
            if count == 0:
                reasons = sorted(
                    ((loss.documents, reason) for tally in self.tallies for reason, loss in tally.lost.items()),
                    reverse=True,
                )
                why = ", ".join(f"{reason} ({count:,})" for count, reason in reasons[:4]) or "it had no documents"
                unnamed = reasons and reasons[0][1] == NO_TEXT
                move = "Set text_field to the field with the text" if unnamed else "Loosen the steps that drop them"
                raise SourceError(
                    f"sources.{name}: no document is left after cleaning. Main reasons over all sources: {why}. "
                    f"{move}, or remove the source."
                )

    def _tokenize(self, documents: Path) -> None:
        tokenizer, near, parts = self.work / "tokenizer", self.work / "near", self.work / "shards"
        with self._timed("tokenizer"):
            self.runner.run("tokenizer", [MakeTokenizer(self.config, self.sources, documents, near, tokenizer)], 1)
        drops = DropDuplicates("near deduplication", "near duplicate", documents, self.tasks, near, self.work)
        with self._timed("tokenize"):
            blocks = [
                Load(documents),
                *([drops] if near.exists() else []),
                Tokenize(documents, tokenizer, parts, self.config.conversations),
            ]
            self.runner.run("tokenize", blocks, self.tasks)
            if near.exists():
                self._count("near deduplication")
            shutil.rmtree(self.to, ignore_errors=True)
            self.to.mkdir(parents=True)
            shutil.copytree(tokenizer / "tokenizer", self.to / "tokenizer")
            vocab_size = int((tokenizer / "vocab_size").read_text())
            dtype, max_bytes = token_dtype(vocab_size), self.config.max_shard_bytes
            written = join(parts, self.tasks, self.sources, self.to, dtype, max_bytes)
            write_index(self.config, written, tokenizer, self.to)
        with self._timed("report"):
            self._join("files", "sources.jsonl")
            if self.config.decontamination:
                self._join("contaminated", "contaminated.jsonl")
            if classifiers(self.config):
                shutil.copytree(models(self.work), self.to / "models")
            write_report(self.to, self._account(written, vocab_size, documents))
        result = {
            "steps": [asdict(tally) for tally in self.tallies],
            "sources": {
                name: {split: asdict(of) for split, of in written.splits[name].items()} for name in self.config.sources
            },
            "vocab_size": vocab_size,
            "seconds": self.seconds,
        }
        write_text(self.work / "result.json", json.dumps(result, ensure_ascii=False))

    def _clusters(self, documents: Path) -> dict[str, dict[str, Any]]:
        """Duplicate clusters by step; `documents` is the folder that near duplicates index."""
        clusters = {}
        if (self.work / "clusters.json").exists():
            clusters["exact deduplication"] = json.loads((self.work / "clusters.json").read_text(encoding="utf-8"))
        if (self.work / "near").exists():
            begins = first_indices(documents, self.tasks)
            clusters["near deduplication"] = cluster_sizes(self.work / "near", documents, begins)
        return clusters

    def _join(self, folder: str, name: str) -> None:
        """Concatenate all tasks' lines."""
        with (self.to / name).open("wb") as lines:
            for task in range(self.tasks):
                lines.write((self.work / folder / f"{task:05d}.jsonl").read_bytes())

    def _account(self, written: Written, vocab_size: int, documents: Path) -> Account:
        """The contents of the report."""
        counts = self.work / "items" / "counts.json"
        beside: dict[str, object] = {}
        if counts.exists():
            beside["test_items"] = json.loads(counts.read_text(encoding="utf-8"))
        if (cutoffs := self.work / "cutoffs.json").exists():
            beside["perplexity_cutoffs"] = json.loads(cutoffs.read_text(encoding="utf-8"))
        if trained := list(classifiers(self.config)):
            paths = (self.to / "models" / key / "classifier.json" for key in trained)
            beside["models"] = dict(
                zip(trained, (json.loads(path.read_text(encoding="utf-8")) for path in paths), strict=True)
            )
        return Account(
            steps=self.counted,
            written=written,
            vocab_size=vocab_size,
            weights={name: source.weight for name, source in self.config.sources.items() if source.weight},
            duplicates=self._clusters(documents),
            compare=self.config.tokenizer.compare,
            beside=beside,
            personal_data=self.config.personal_data,
        )

    def _count(self, *steps: str) -> None:
        """Sum the steps' tallies over all tasks, and check that each step got what the one before it kept."""
        for step in steps:
            of_sources = sum_tallies(self.work, step, self.sources)
            tally = Tally.total(of_sources.values())
            if self.tallies and tally.documents_in != self.tallies[-1].documents_out:
                raise AssertionError(
                    f"{step} got {tally.documents_in} documents, but {self.tallies[-1].step} kept "
                    f"{self.tallies[-1].documents_out}"
                )
            self.counted.append(of_sources)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def _cluster(file: Path) -> AnyCluster | None:
    """The cluster that runs the tasks; None, or no file, for this machine."""
    cluster: AnyCluster | None = TypeAdapter(AnyCluster).validate_json(file.read_bytes()) if file.is_file() else None
    return cluster


def main(work: Path, to: Path) -> int:
    """Run the preparation described in `work`, and return the exit status."""
    os.register_at_fork(after_in_child=die_with_parent)  # datatrove's Manager does not end by itself
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output goes to the log
    config = TypeAdapter(PrepareConfig).validate_json((work / "config.json").read_bytes())
    cluster = _cluster(work / "cluster.json")
    if cluster and not isinstance(cluster, SlurmCluster):
        os.environ.update(cluster.environment)  # its tasks are this process's children, or Ray's
    runner = Runner(config.executor, cluster, work, lambda *event: print(json.dumps(event), file=progress))
    try:
        Preparation(config, work, to, runner).run()
    except CupolaError as error:
        write_text(work / "error.json", json.dumps({"type": type(error).__name__, "message": str(error)}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
