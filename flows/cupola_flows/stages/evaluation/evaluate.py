"""Evaluation of checkpoints on held-out text and tasks."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_flows.stages.base import Input, Stage, Taken, every_trained, settings
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_trainer.config import EvaluateJob, EvaluateSettings, LayoutConfig, LayoutSettings, ModelConfig
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.long_context import method
from cupola_trainer.evaluation.long_context_page import page


class EvaluateStage(Stage, EvaluateSettings, LayoutSettings):
    """Evaluate checkpoints: held-out bits per byte, task accuracy and generations."""

    gives: ClassVar[str] = "evaluation"
    renders: ClassVar[bool] = True

    kind: Literal["evaluate"] = "evaluate"
    checkpoints: Annotated[tuple[str, ...], Input("checkpoint", guess=every_trained)] = ()
    """Stages whose checkpoints to evaluate; empty for every earlier stage that trained."""
    tokens: Annotated[str | None, Input("tokens")] = None
    """Stage whose held-out shards to use."""
    conversations: Annotated[str | None, Input("conversations", optional=True)] = None
    """Stage whose held-out tasks to use."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Measure bits per byte, task accuracy with its interval, and generations of each checkpoint."""
        job = evaluation_job(
            ctx,
            self,
            taken.named("checkpoints"),
            tokens=taken.one("tokens"),
            conversations=taken.maybe("conversations"),
        )
        run_job(ctx, job)
        results = json.loads((job.output / "results.json").read_text())
        folder = ctx.empty("evaluation")
        (folder / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False))
        if self.long_context:
            reach = {name: measured["long_context"] for name, measured in results["checkpoints"].items()}
            (folder / "long-context.html").write_text(page(reach), encoding="utf-8")
        return ctx.publish(
            folder, parents=taken.all("checkpoints", "tokens", "conversations"), metrics=headline(results)
        )

    def check_model(self, model: ModelConfig, layout: LayoutConfig) -> None:
        """Refuse layouts and lengths that a checkpoint does not allow, before it is trained."""
        longest = model.max_position_embeddings
        if self.window and self.window > longest:
            raise ConfigError(
                f"window={self.window} is above a checkpoint's max_position_embeddings={longest}. Use window={longest}."
            )
        if reach := self.long_context:
            for name in reach.methods:
                method(model, name, trained=reach.trained_length or longest, longest=max(reach.lengths))
        validate_layout(model, layout)

    @staticmethod
    def summary(metrics: Mapping[str, float]) -> str:
        return f"unigram {metrics['unigram_bits_per_byte']:.3f} bits per byte"


def evaluation_job(
    ctx: StageContext,
    stage: EvaluateStage,
    checkpoints: Mapping[str, Artifact],
    *,
    tokens: Artifact,
    conversations: Artifact | None,
) -> EvaluateJob:
    """The job that evaluates the checkpoints with the settings of `stage`."""
    return EvaluateJob(
        **settings(stage, EvaluateSettings),
        output=ctx.folder / "job",
        seed=ctx.seed,
        template_date=ctx.template_date,
        checkpoints={name: artifact.path for name, artifact in checkpoints.items()},
        tokens=tokens.path,
        conversations=conversations.path if conversations else None,
        layout=stage.layout,
    )


def headline(results: dict[str, Any]) -> dict[str, float]:
    """The main numbers of `results.json` as metrics, such as `bits_per_byte/sft` and `accuracy/sft`."""
    metrics = {"unigram_bits_per_byte": float(results["unigram_bits_per_byte"])}
    for name, measured in results["checkpoints"].items():
        metrics[f"bits_per_byte/{name}"] = float(measured["bits_per_byte"])
        if measured.get("accuracy"):
            metrics[f"accuracy/{name}"] = float(measured["accuracy"]["accuracy"])
    return metrics
