"""Publishing for stages that train low-rank adapters: the adapters, and the merged checkpoint."""

import shutil
from collections.abc import Sequence

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import JobResult, run_job
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import LayoutConfig, MergeAdapterJob

FINGERPRINTED = False  # only stages with `lora` run this; TrainStage.code adds it for them


def folded(
    ctx: StageContext, result: JobResult, parent: Artifact, layout: LayoutConfig, parents: Sequence[Artifact]
) -> tuple[JobResult, Artifact]:
    """Merge a job's adapters into the parent's weights. Returns the merged checkpoint and the adapters' artifact."""
    adapter = _publish(ctx, result, parents)
    job = MergeAdapterJob(output=ctx.folder / "merge", parent=parent.path, adapter=result.folder, layout=layout)
    return JobResult(run_job(ctx, job).folder, result.metrics), adapter


def _publish(ctx: StageContext, result: JobResult, parents: Sequence[Artifact]) -> Artifact:
    """Publish a copy of the adapters as an artifact. The job keeps its own until they are merged."""
    folder = ctx.empty("adapter")
    shutil.copytree(result.folder, folder, dirs_exist_ok=True)
    return ctx.publish_aside(folder, kind="adapter", parents=parents, metrics=result.metrics)
