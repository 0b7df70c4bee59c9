"""Pruning of a checkpoint."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_flows.stages.base import Input, Stage, Taken, settings
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import LayoutSettings, ModelConfig, PruneJob, PruneSettings


class PruneStage(Stage, PruneSettings, LayoutSettings):
    """Prune whole layers, channels, heads, units and experts of a checkpoint, for further training."""

    gives: ClassVar[str] = "checkpoint"
    ready: ClassVar[bool] = False

    kind: Literal["prune"] = "prune"
    parent: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose checkpoint to prune."""
    tokens: Annotated[str | None, Input("tokens", optional=True)] = None
    """Stage whose held-out tokens measure importance; not needed if the layers to drop are named."""

    @model_validator(mode="after")
    def _can_be(self) -> "PruneStage":
        self.to.check(has_tokens=True)
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Prune the checkpoint and publish the result."""
        job = prune_job(self, taken.one("parent"), taken.maybe("tokens"), output=ctx.folder / "job", seed=ctx.seed)
        result = run_job(ctx, job)
        return ctx.publish(result.folder, parents=taken.all(), metrics=result.metrics)

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        return self.to.shape(parent) if parent else None


def prune_job(stage: PruneStage, parent: Artifact, tokens: Artifact | None, *, output: Path, seed: int) -> PruneJob:
    """The job of a prune stage."""
    return PruneJob(
        **settings(stage, PruneSettings),
        output=output,
        seed=seed,
        parent=parent.path,
        tokens=tokens.path if tokens else None,
        layout=stage.layout,
    )
