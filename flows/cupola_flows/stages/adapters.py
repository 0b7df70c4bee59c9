"""Publishing for stages that train low-rank adapters: the adapters, and the merged checkpoint."""

import shutil
from collections.abc import Sequence

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_platform import artifacts
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import LayoutConfig, MergeAdapterJob

FINGERPRINTED = False  # only stages with `lora` run this; TrainStage.code adds it for them


def folded(
    ctx: StageContext,
    trained: Artifact,
    metrics: dict[str, float],
    parent: Artifact,
    layout: LayoutConfig,
    parents: Sequence[Artifact],
) -> tuple[Artifact, Artifact]:
    """Merge a job's adapters into the parent's weights.

    Args:
        trained: the job's checkpoint of adapters.

    Returns:
        The merged checkpoint, to publish, and the adapters' artifact.
    """
    adapter = _publish(ctx, trained, metrics, parents)
    job = MergeAdapterJob(output=ctx.folder / "merge", parent=parent.path, adapter=trained.path, layout=layout)
    return artifacts.read(run_job(ctx, job).folder), adapter


def _publish(ctx: StageContext, trained: Artifact, metrics: dict[str, float], parents: Sequence[Artifact]) -> Artifact:
    """Publish a copy of the adapters as an artifact. The job keeps its own until they are merged."""
    folder = ctx.empty("adapter")
    shutil.copytree(trained.path, folder, dirs_exist_ok=True)
    return ctx.publish_aside(folder, kind="adapter", parents=parents, metrics=metrics)
