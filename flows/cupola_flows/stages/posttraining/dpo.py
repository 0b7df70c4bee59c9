"""Direct preference optimization."""

from typing import Annotated, ClassVar, Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_once
from cupola_flows.stages.base import Input, Taken, settings
from cupola_flows.stages.training import TrainStage, train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import DpoData, DpoSettings, ReferenceJob


class DpoStage(TrainStage, DpoSettings):
    """Direct preference optimization against the frozen parent, or one of its variants without a reference."""

    renders: ClassVar[bool] = True
    merges_online: ClassVar[bool] = True

    kind: Literal["dpo"] = "dpo"
    parent: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose checkpoint to align; also the frozen reference."""
    preferences: Annotated[str | None, Input("preferences")] = None
    """Stage that made the pairs."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Align a checkpoint on preference pairs, with itself as the frozen reference."""
        parent, preferences = taken.one("parent"), taken.one("preferences")
        compares = self.needs_reference and not taken.maybe("base")
        stored = reference(ctx, self, parent, preferences) if compares else None
        data = DpoData(
            **settings(self, DpoSettings), preferences=preferences.path, reference=stored.path if stored else None
        )
        parents = [parent, preferences, *([stored] if stored else taken.all("base"))]
        return train(ctx, self, taken, data, parent=parent, parents=parents)


def reference(ctx: StageContext, stage: DpoStage, parent: Artifact, preferences: Artifact) -> Artifact:
    """Log-probabilities of every response under the frozen parent, computed once and reused by later runs."""
    config = {
        "sequence_length": stage.batch.sequence_length,
        "precision": stage.precision,
        "template_date": ctx.template_date.isoformat() if ctx.template_date else None,
        "mismatched": stage.loss_type == "kto",
    }
    job = ReferenceJob(
        output=ctx.folder / "reference",
        seed=ctx.seed,
        template_date=ctx.template_date,
        parent=parent.path,
        data=DpoData(preferences=preferences.path, loss_type="kto" if stage.loss_type == "kto" else "sigmoid"),
        batch=stage.batch,
        layout=stage.layout,
        precision=stage.precision,
    )
    return run_once(ctx, job, kind="reference", config=config, parents=[parent, preferences])
