"""Checkpoints made out of others, without training."""

from collections.abc import Sequence
from pathlib import Path

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job
from cupola_flows.stages import MergeStage, PruneStage
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import MergeJob, PruneJob


def merge(ctx: StageContext, stage: MergeStage, checkpoints: Sequence[Artifact], base: Artifact | None) -> Artifact:
    """Merge checkpoints of one architecture into one."""
    result = run_job(ctx, merge_job(stage, checkpoints, base, output=ctx.folder / "job", seed=ctx.seed))
    return ctx.publish(result.folder, parents=[*checkpoints, *([base] if base else [])], metrics=result.metrics)


def merge_job(
    stage: MergeStage, checkpoints: Sequence[Artifact], base: Artifact | None, *, output: Path, seed: int
) -> MergeJob:
    """The job of a merge stage."""
    return MergeJob(
        output=output,
        seed=seed,
        checkpoints=tuple(checkpoint.path for checkpoint in checkpoints),
        method=stage.method,
        weights=stage.weights,
        base=base.path if base else None,
        density=stage.density,
        scale=stage.scale,
        parallel=stage.layout,
    )


def prune(ctx: StageContext, stage: PruneStage, parent: Artifact, tokens: Artifact | None) -> Artifact:
    """Cut a smaller checkpoint out of a larger one."""
    result = run_job(ctx, prune_job(stage, parent, tokens, output=ctx.folder / "job", seed=ctx.seed))
    return ctx.publish(result.folder, parents=[parent, *([tokens] if tokens else [])], metrics=result.metrics)


def prune_job(stage: PruneStage, parent: Artifact, tokens: Artifact | None, *, output: Path, seed: int) -> PruneJob:
    """The job of a prune stage."""
    return PruneJob(
        output=output,
        seed=seed,
        initial=parent.path,
        to=stage.to,
        tokens=tokens.path if tokens else None,
        max_tokens=stage.max_tokens,
        sequence_length=stage.sequence_length,
        parallel=stage.layout,
    )
