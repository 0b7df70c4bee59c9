"""A dense checkpoint to a mixture of experts."""

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job
from cupola_flows.stages import UpcycleStage
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import UpcycleJob


def upcycle(ctx: StageContext, stage: UpcycleStage, parent: Artifact) -> Artifact:
    """Copy, shuffle and partly redraw the FFNs of a dense checkpoint into experts (Qwen2, section 3.1)."""
    job = UpcycleJob(
        output=ctx.folder / "job",
        seed=ctx.seed,
        initial=parent.path,
        moe=stage.moe,
        reinit_fraction=stage.reinit_fraction,
        reinit=stage.reinit,
        shuffle=stage.shuffle,
        router=stage.router,
        match_dense=stage.match_dense,
        parallel=stage.layout,
    )
    result = run_job(ctx, job)
    return ctx.publish(result.folder, parents=[parent], metrics=result.metrics)
