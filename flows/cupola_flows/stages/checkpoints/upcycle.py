"""Upcycling of a dense checkpoint to a mixture of experts."""

from typing import Annotated, ClassVar, Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_flows.stages.base import Input, Stage, Taken, settings
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import LayoutSettings, ModelConfig, UpcycleJob, UpcycleSettings
from cupola_trainer.config.model.experts import mixture_of


class UpcycleStage(Stage, UpcycleSettings, LayoutSettings):
    """Upcycle a dense checkpoint to a mixture of experts, like Qwen2."""

    gives: ClassVar[str] = "checkpoint"
    ready: ClassVar[bool] = False

    kind: Literal["upcycle"] = "upcycle"
    parent: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose dense checkpoint to upcycle."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Copy the FFNs of a dense checkpoint to experts, shuffled and partly reinitialized (Qwen2, section 3.1)."""
        job = UpcycleJob(
            **settings(self, UpcycleSettings),
            output=ctx.folder / "job",
            seed=ctx.seed,
            parent=taken.one("parent").path,
            layout=self.layout,
        )
        result = run_job(ctx, job)
        return ctx.publish(result.folder, parents=taken.all(), metrics=result.metrics)

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        return mixture_of(parent, self.moe, router=self.router, match_dense=self.match_dense) if parent else None
