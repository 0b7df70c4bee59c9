"""Series of small training runs, derived from a recipe, for `cupola mix` and `cupola fit-laws`.

A series has a fingerprint and a work folder, like a stage: finished runs are not repeated, interrupted runs resume, and
a finished series is reused from the registry.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any

from cupola_flows.execution.code_version import code_version
from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import JobResult, run_job
from cupola_flows.experiments.layout_comparison import prepared_tokens
from cupola_flows.recipe.schema import Recipe
from cupola_flows.recipe.validation import model_of
from cupola_flows.stages.pretraining.mixture import source_weights
from cupola_flows.stages.pretraining.pretrain import PretrainStage, fit_vocabulary
from cupola_flows.terminal.display import Display
from cupola_platform.artifacts import Artifact, fingerprint
from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean
from cupola_platform.workspace import Workspace
from cupola_trainer.config import AnyJob, NextTokenData, OptimizerConfig, TrainJob


@dataclass(frozen=True)
class Basis:
    """A recipe's pretraining stage, from which small runs are derived."""

    recipe: Recipe
    name: str
    stage: PretrainStage
    tokens: Artifact
    job: TrainJob
    """The stage's job, on one process."""

    @property
    def sources(self) -> dict[str, dict[str, dict[str, int]]]:
        """Counts by source and split."""
        sources: dict[str, dict[str, dict[str, int]]] = json.loads((self.tokens.path / "index.json").read_text())[
            "sources"
        ]
        return sources

    @property
    def weights(self) -> dict[str, float]:
        """The stage's sampling weights."""
        tokens = {name: float(splits["train"]["tokens"]) for name, splits in self.sources.items()}
        return self.stage.weights or source_weights(self.tokens) or tokens

    def optimizer(self, steps: int, **changes: Any) -> OptimizerConfig:
        """The stage's optimizer for `steps`, with the same shares of warm-up and decay."""
        of = self.job.optimizer
        warmup, decay = (round(part * steps / self.stage.steps) for part in (of.warmup_steps, of.decay_steps))
        decay = max(decay, 1) if of.decay_steps else 0
        return replace(of, warmup_steps=warmup, decay_steps=decay, **changes)

    def with_batch(self, sequences: int, **changes: Any) -> TrainJob:
        """The job with another global batch size."""
        batch = self.job.batch
        micro = gcd(sequences, batch.micro_batch_size)
        return self.job.but(batch=replace(batch, global_batch_size=sequences, micro_batch_size=micro), **changes)


def basis_of(workspace: Workspace, recipe: Recipe, stage_name: str = "") -> Basis:
    """The recipe's pretraining stage and its prepared tokens.

    Raises:
        ConfigError: there is no such stage, or its tokens are not prepared.
    """
    pretraining = [name for name in recipe.order() if isinstance(recipe.stages[name], PretrainStage)]
    name = stage_name or next(iter(pretraining), "")
    stage = recipe.stages.get(name)
    if not isinstance(stage, PretrainStage):
        raise ConfigError(f"{name or recipe.name!r} is not a pretraining stage.{did_you_mean(name, pretraining)}")
    model = model_of(recipe, name)
    if model is None:
        raise ConfigError(
            f"stages.{name}: its model comes from an artifact. Name a stage whose shape is in the recipe."
        )
    tokens = prepared_tokens(workspace, recipe, name)
    if tokens is None:
        raise ConfigError(
            f"the tokens of {recipe.name!r} are not prepared yet. Run cupola run {recipe.name} --only "
            f"{recipe.inputs(name)['tokens'][0]} first."
        )
    job = TrainJob(
        output=workspace.root,
        seed=recipe.stage_seed(name),
        model=fit_vocabulary(model, tokens, 1),
        tokenizer=tokens.path / "tokenizer",
        steps=stage.steps,
        optimizer=stage.optimizer,
        batch=stage.batch,
        data=NextTokenData(tokens=tokens.path, reset_at_documents=stage.reset_at_documents, copying=stage.copying),
        precision=stage.precision,
        fp8=stage.fp8,
    )
    return Basis(recipe, name, stage, tokens, job)


@dataclass
class Series:
    """Small runs whose results become one artifact."""

    workspace: Workspace
    basis: Basis
    kind: str
    config: Mapping[str, Any]
    display: Callable[[Mapping[str, str]], Display]
    code: str
    """Name of the module that runs the series and fits its results."""
    mark: str = field(init=False)

    def __post_init__(self) -> None:
        config = {"kind": self.kind, "config": dict(self.config), "stage": self.basis.stage.model_dump(mode="json")}
        self.mark = fingerprint(config, [self.basis.tokens.digest], code_version(self.code))

    @property
    def folder(self) -> Path:
        return self.workspace.work_folder(self.mark)

    def published(self) -> Artifact | None:
        """The artifact of an earlier identical series, if any."""
        return self.workspace.find(self.mark)

    def run(self, jobs: Mapping[str, AnyJob]) -> dict[str, JobResult]:
        """Run or resume each job in its own folder; finished jobs are not repeated."""
        display = self.display(dict.fromkeys(jobs, self.kind))
        results = {}
        with display.shown():
            for name, job in jobs.items():
                display.started(name)
                ctx = StageContext(
                    workspace=self.workspace,
                    recipe=self.basis.recipe.name,
                    name=name,
                    gives=self.kind,
                    config=self.config,
                    seed=job.seed,
                    fingerprint=self.mark,
                    run_id="",
                    folder=self.folder,
                    display=display,
                )
                results[name] = run_job(ctx, job.but(output=self.folder / name))
                display.finished(name, "completed")
        return results

    def publish(self, files: Mapping[str, str], metrics: Mapping[str, float]) -> Artifact:
        """Publish the files as an artifact with the tokens as its parent, and delete the runs."""
        folder = self.folder / "artifact"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        artifact = self.workspace.publish(
            folder,
            kind=self.kind,
            parents=[self.basis.tokens],
            stage=self.kind,
            recipe=self.basis.recipe.name,
            fingerprint=self.mark,
            config=dict(self.config),
            metrics=dict(metrics),
        )
        shutil.rmtree(self.folder, ignore_errors=True)
        return artifact


def numbers(option: str, text: str, least: float = 0) -> list[float]:
    """Parse numbers such as `1e-3,3e-3`. Raises ConfigError with the option's name."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: give numbers separated by commas, such as 1e-3,3e-3.") from None
    if not all(number > least for number in values):
        raise ConfigError(f"{option} {text}: every number must be above {least:g}.")
    return values


def pair_of(option: str, text: str) -> tuple[float, float]:
    """Parse two numbers such as `1e7,5e7`. Raises ConfigError with the option's name."""
    values = numbers(option, text)
    if len(values) != 2:
        raise ConfigError(f"{option} {text}: give two numbers, parameters and tokens, such as 1e7,5e7.")
    return values[0], values[1]


def by_source(option: str, given: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Parse numbers by source, such as `web=0.5`. Raises ConfigError with the option's name."""
    values = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            raise ConfigError(f"{option} {text}: there is no source {name!r}.{did_you_mean(name, known)}")
        (values[name],) = numbers(f"{option} {name}", value)
    return values
