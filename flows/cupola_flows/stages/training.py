"""The base of every stage that trains: its settings, its job and its publishing."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_flows.execution.optimizer_state import split_off
from cupola_flows.execution.places import Place
from cupola_flows.execution.uploading import discard
from cupola_flows.stages import adapters
from cupola_flows.stages.base import Input, Stage, Stages, Taken, settings
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import (
    LayoutConfig,
    LayoutSettings,
    LengthSchedule,
    ModelConfig,
    TrainingData,
    TrainJob,
    TrainSettings,
)
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.memory import forecast
from cupola_trainer.config.precision import bytes_per_value
from cupola_trainer.config.precision_rules import check_memory, refuse_without_gpu, validate_precision

HELDOUT_MEANS = ("loss", "margin", "accuracy", "ece", "reward")
"""Held-out metrics in the summary of a training stage, before and after."""


class TrainStage(Stage, TrainSettings, LayoutSettings):
    """Base of every stage that trains."""

    gives: ClassVar[str] = "checkpoint"
    merges_online: ClassVar[bool] = False
    """Whether `optimizer.merging` is allowed, which needs a fine-tuned parent."""

    layouts: tuple[LayoutConfig, ...] = ()
    """In place of `layout`: layouts to try in turn, the best first. The next one runs where the cluster has no room for
    the one before, or has lost nodes. Losses and samples stay the same, up to rounding."""

    @classmethod
    def inputs(cls) -> dict[str, Input]:
        """Input fields by name, including the base of online merging."""
        return super().inputs() | ({"base": Input("checkpoint", guess=None)} if cls.merges_online else {})

    @property
    def code(self) -> tuple[str, ...]:
        return (*super().code, adapters.__name__) if self.lora else super().code

    @property
    def base(self) -> str | None:
        """The stage whose checkpoint is the base of `optimizer.merging`."""
        merging = self.optimizer.merging
        return str(merging.base) if merging else None

    @model_validator(mode="before")
    @classmethod
    def _first_layout(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("layouts"):
            first, *_ = given["layouts"]
            if given.get("layout", first) != first:
                raise ValueError("layout and layouts: give one of them; the first of layouts is the preferred one")
            return {**given, "layout": first}
        return given

    @model_validator(mode="after")
    def _base_is_taken(self) -> "TrainStage":
        if self.base is not None and not self.merges_online:
            raise ValueError(
                "optimizer.merging: not supported by this kind of stage, which has no fine-tuned parent. Leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_steps(self) -> "TrainStage":
        if not self.steps and "epochs" not in type(self).model_fields:
            raise ValueError(f"steps={self.steps}: give the number of optimizer steps, 1 or more")
        return self

    def check(self, recipe: Stages) -> None:
        for layout in (self.layout, *self.layouts):
            self.batch.num_microbatches(layout.dp)

    def check_model(self, model: ModelConfig, layout: LayoutConfig) -> None:
        if self.lora:
            self.lora.check(model, layout)
        validate_layout(
            model,
            layout,
            self.batch,
            reset_at_documents=getattr(self, "reset_at_documents", False),
            lengths=self.lengths(),
            copying=getattr(self, "copying", None),
        )
        validate_precision(model, self, layout)

    def check_place(self, place: Place, model: ModelConfig | None, layout: LayoutConfig) -> None:
        if not place.has_gpus:
            refuse_without_gpu(self.precision, layout, place.name)
        held = place.memory_of_rank(layout.world_size)
        if model is None or held is None:
            return
        size = bytes_per_value(self.precision, gpu=place.has_gpus)
        frozen = self.lora is not None
        check_memory(forecast(model, layout, self.batch, self.optimizer, size, frozen=frozen), held)

    def lengths(self) -> LengthSchedule | None:
        """The schedule of sequence lengths; None for a single length."""
        return None

    @staticmethod
    def summary(metrics: Mapping[str, float]) -> str:
        parts = []
        for name in HELDOUT_MEANS:
            before, after = metrics.get(f"initial_heldout_{name}"), metrics.get(f"final_heldout_{name}")
            if after is not None:
                parts.append(f"held-out {name} " + (f"{before:.3f} -> " if before is not None else "") + f"{after:.3f}")
        return ", ".join(parts) or Stage.summary(metrics)


def train(
    ctx: StageContext,
    stage: TrainStage,
    taken: Taken,
    data: TrainingData,
    *,
    parent: Artifact | None,
    parents: Sequence[Artifact] | None = None,
    **changes: Any,
) -> Artifact:
    """Train with a stage's settings and publish the last checkpoint, and its optimizer state beside it.

    Args:
        parent: the checkpoint to start from.
        parents: for the lineage; None for all of the stage's inputs.
        changes: fields of the job that only some stages set: `model`, `positions`, `tokenizer`.
    """
    job = train_job(
        ctx, stage, data=data, parent=parent.path if parent else None, output=ctx.folder / "job", seed=ctx.seed
    )
    optimizer = job.optimizer
    base = taken.maybe("base") if stage.merges_online else None
    if base and optimizer.merging:
        optimizer = replace(optimizer, merging=replace(optimizer.merging, base=base.path))
    job = job.but(optimizer=optimizer, profile=ctx.profile, **changes)
    result = run_job(ctx, job, stage.layouts)
    trained = split_off(ctx, result.folder, publish=job.checkpoint.publish_optimizer)
    if (job.output / "profile").is_dir():
        ctx.display.say(f"{ctx.name}: traces of steps {ctx.profile} saved to {job.output / 'profile'}")
    everything = list(taken.all() if parents is None else parents)
    if stage.lora and parent:
        trained, adapter = adapters.folded(ctx, trained, result.metrics, parent, stage.layout, everything)
        everything.append(adapter)
    artifact = ctx.publish(trained.path, parents=everything, metrics=result.metrics, known=trained.manifest.known)
    shutil.rmtree(job.output / "checkpoints", ignore_errors=True)  # the last one is in the store
    discard(ctx, job)
    return artifact


def train_job(
    ctx: StageContext, stage: TrainStage, *, data: TrainingData, parent: Path | None, output: Path, seed: int
) -> TrainJob:
    """The training job of a stage."""
    return TrainJob(
        **settings(stage, TrainSettings),
        output=output,
        seed=seed,
        template_date=ctx.template_date,
        parent=parent,
        layout=stage.layout,
        data=data,
    )
