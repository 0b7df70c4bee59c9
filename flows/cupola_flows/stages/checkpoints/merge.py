"""Merging of checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_flows.stages.base import Input, Stage, Taken, settings
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import LayoutSettings, MergeJob, MergeSettings


class MergeStage(Stage, MergeSettings, LayoutSettings):
    """Merge checkpoints of the same architecture by averaging, SLERP, TIES or DARE."""

    gives: ClassVar[str] = "checkpoint"

    kind: Literal["merge"] = "merge"
    checkpoints: Annotated[tuple[str, ...], Input("checkpoint")]
    """Stages whose checkpoints to merge. Tokenizer and precision come from the first."""
    base: Annotated[str | None, Input("checkpoint", guess=None)] = None
    """Stage whose checkpoint all of them were trained from. Required for ties and dare, optional for slerp."""

    @model_validator(mode="after")
    def _can_be(self) -> "MergeStage":
        self.check_count(len(self.checkpoints), has_base=self.base is not None)
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Merge the checkpoints and publish the result."""
        checkpoints, base = taken.all("checkpoints"), taken.maybe("base")
        result = run_job(ctx, merge_job(self, checkpoints, base, output=ctx.folder / "job", seed=ctx.seed))
        return ctx.publish(result.folder, parents=taken.all(), metrics=result.metrics)


def merge_job(
    stage: MergeStage, checkpoints: Sequence[Artifact], base: Artifact | None, *, output: Path, seed: int
) -> MergeJob:
    """The job of a merge stage."""
    return MergeJob(
        **settings(stage, MergeSettings),
        output=output,
        seed=seed,
        checkpoints=tuple(checkpoint.path for checkpoint in checkpoints),
        base=base.path if base else None,
        layout=stage.layout,
    )
