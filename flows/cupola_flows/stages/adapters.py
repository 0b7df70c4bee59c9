"""What a stage that trains low-rank adapters publishes: the adapters, and the checkpoint that they are folded into."""

import shutil
from collections.abc import Sequence

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import JobResult, run_job
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import LayoutConfig, MergeAdapterJob

FINGERPRINTED = False  # only stages with `lora` run this: TrainStage.code names it then


def folded(
    ctx: StageContext, result: JobResult, parent: Artifact, layout: LayoutConfig, parents: Sequence[Artifact]
) -> tuple[JobResult, Artifact]:
    """The parent with a job's adapters folded into its weights, and the adapters as an artifact of their own."""
    adapter = _publish(ctx, result, parents)
    job = MergeAdapterJob(output=ctx.folder / "merge", parent=parent.path, adapter=result.folder, layout=layout)
    return JobResult(run_job(ctx, job).folder, result.metrics), adapter


def _publish(ctx: StageContext, result: JobResult, parents: Sequence[Artifact]) -> Artifact:
    """The adapters as an artifact. The job keeps its copy until it is folded."""
    folder = ctx.empty("adapter")
    shutil.copytree(result.folder, folder, dirs_exist_ok=True)
    return ctx.publish_aside(folder, kind="adapter", parents=parents, metrics=result.metrics)
