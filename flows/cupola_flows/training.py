"""A stage that trains: its job, and what it publishes."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cupola_flows.context import StageContext
from cupola_flows.jobs import JobResult, run_job
from cupola_flows.stages import TrainStage
from cupola_flows.uploading import discard
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import MergeAdapterJob, ModelConfig, PositionChange, TrainingData, TrainJob


def train(
    ctx: StageContext,
    stage: TrainStage,
    *,
    data: TrainingData,
    parents: Sequence[Artifact],
    parent: Artifact | None,
    model: ModelConfig | None = None,
    positions: PositionChange | None = None,
    tokenizer: Path | None = None,
    base: Artifact | None = None,
) -> Artifact:
    """Train as a recipe's stage says, and publish the last checkpoint.

    Args:
        base: what the stage's `optimizer.merging` names.
    """
    initial = parent.path if parent else None
    made = train_job(ctx, stage, data=data, initial=initial, output=ctx.folder / "job", seed=ctx.seed)
    optimizer = made.optimizer
    if base and optimizer.merging:
        optimizer = replace(optimizer, merging=replace(optimizer.merging, base=base.path))
    job = replace(made, model=model, positions=positions, tokenizer=tokenizer, optimizer=optimizer, profile=ctx.profile)
    result = run_job(ctx, job)
    if (job.output / "profile").is_dir():
        ctx.display.say(f"{ctx.name}: traces of steps {ctx.profile} are in {job.output / 'profile'}")
    everything = [*parents, *([base] if base else [])]
    if stage.lora and parent:
        adapter = _publish_adapter(ctx, result, everything)
        fold = MergeAdapterJob(
            output=ctx.folder / "merge", initial=parent.path, adapter=result.folder, parallel=stage.layout
        )
        result = JobResult(run_job(ctx, fold).folder, result.metrics)
        everything.append(adapter)
    artifact = ctx.publish(result.folder, parents=everything, metrics=result.metrics)
    shutil.rmtree(job.output / "checkpoints", ignore_errors=True)  # the last one is in the store
    discard(ctx, job)
    return artifact


def train_job(
    ctx: StageContext, stage: TrainStage, *, data: TrainingData, initial: Path | None, output: Path, seed: int
) -> TrainJob:
    """The job that trains as a recipe's stage says."""
    return TrainJob(
        output=output,
        seed=seed,
        template_date=ctx.template_date,
        initial=initial,
        steps=stage.steps,
        parallel=stage.layout,
        optimizer=stage.optimizer,
        lora=stage.lora,
        batch=stage.batch,
        data=data,
        checkpoint=stage.checkpoint,
        faults=stage.faults,
        log_every=stage.log_every,
        evaluate_every=stage.evaluate_every,
        evaluate_batches=stage.evaluate_batches,
        precision=stage.precision,
    )


def _publish_adapter(ctx: StageContext, result: JobResult, parents: Sequence[Artifact]) -> Artifact:
    """The adapters as an artifact of their own, beside what they are folded into. The job keeps its copy until then."""
    folder = ctx.empty("adapter")
    shutil.copytree(result.folder, folder, dirs_exist_ok=True)
    return ctx.workspace.publish(
        folder,
        kind="adapter",
        parents=parents,
        stage=ctx.name,
        recipe=ctx.recipe.name,
        config=ctx.config,
        metrics=result.metrics,
    )
