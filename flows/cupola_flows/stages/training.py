"""What every stage that trains has in common: its settings, its job, and what it publishes."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
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

HELDOUT_MEANS = ("loss", "margin", "accuracy", "ece", "reward")
"""Held-out means in the summary of a stage that trains, before and after."""


class TrainStage(Stage, TrainSettings, LayoutSettings):
    """What every stage that trains has in common."""

    gives: ClassVar[str] = "checkpoint"
    merges_online: ClassVar[bool] = False
    """Whether `optimizer.merging` may be asked for: there is a fine-tuned parent to hold on to."""

    @classmethod
    def inputs(cls) -> dict[str, Input]:
        """The fields that say so, and the base of online merging."""
        return super().inputs() | ({"base": Input("checkpoint", guess=None)} if cls.merges_online else {})

    @property
    def code(self) -> tuple[str, ...]:
        return (*super().code, adapters.__name__) if self.lora else super().code

    @property
    def base(self) -> str | None:
        """The stage whose checkpoint `optimizer.merging` starts at."""
        merging = self.optimizer.merging
        return str(merging.base) if merging else None

    @model_validator(mode="after")
    def _base_is_taken(self) -> "TrainStage":
        if self.base is not None and not self.merges_online:
            raise ValueError(
                "optimizer.merging: this kind of stage has no fine-tuned parent to hold on to. Leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_steps(self) -> "TrainStage":
        if not self.steps and "epochs" not in type(self).model_fields:
            raise ValueError(f"steps={self.steps}: give the number of optimizer steps, 1 or more")
        return self

    def check(self, recipe: Stages) -> None:
        self.batch.num_microbatches(self.layout.dp)

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
            pack=getattr(self, "pack", False) and layout.cp == 1,
        )

    def lengths(self) -> LengthSchedule | None:
        """The lengths of the sequences, where they are several; none otherwise."""
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
    """Train as a recipe's stage says, and publish the last checkpoint.

    Args:
        parent: whose weights it starts from.
        parents: of the lineage; none for all that the stage takes.
        changes: fields of the job that only some stages give: `model`, `positions`, `tokenizer`.
    """
    made = train_job(
        ctx, stage, data=data, parent=parent.path if parent else None, output=ctx.folder / "job", seed=ctx.seed
    )
    optimizer = made.optimizer
    base = taken.maybe("base") if stage.merges_online else None
    if base and optimizer.merging:
        optimizer = replace(optimizer, merging=replace(optimizer.merging, base=base.path))
    job = made.but(optimizer=optimizer, profile=ctx.profile, **changes)
    result = run_job(ctx, job)
    if (job.output / "profile").is_dir():
        ctx.display.say(f"{ctx.name}: traces of steps {ctx.profile} are in {job.output / 'profile'}")
    everything = list(taken.all() if parents is None else parents)
    if stage.lora and parent:
        result, adapter = adapters.folded(ctx, result, parent, stage.layout, everything)
        everything.append(adapter)
    artifact = ctx.publish(result.folder, parents=everything, metrics=result.metrics)
    shutil.rmtree(job.output / "checkpoints", ignore_errors=True)  # the last one is in the store
    discard(ctx, job)
    return artifact


def train_job(
    ctx: StageContext, stage: TrainStage, *, data: TrainingData, parent: Path | None, output: Path, seed: int
) -> TrainJob:
    """The job that trains as a recipe's stage says."""
    return TrainJob(
        **settings(stage, TrainSettings),
        output=output,
        seed=seed,
        template_date=ctx.template_date,
        parent=parent,
        layout=stage.layout,
        data=data,
    )
