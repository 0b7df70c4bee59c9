"""Every checkpoint measured on held-out text and held-out tasks."""

import json
from collections.abc import Mapping
from typing import Any

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job
from cupola_flows.stages import EvaluateStage
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import EvaluateJob
from cupola_trainer.evaluation.long_context_page import page


def evaluate(
    ctx: StageContext,
    stage: EvaluateStage,
    checkpoints: list[Artifact],
    tokens: Artifact,
    conversations: Artifact | None = None,
) -> Artifact:
    """Held-out bits per byte, task accuracy with its interval, and generations, of each checkpoint."""
    names = ctx.recipe.inputs(ctx.name)["checkpoints"]
    named = dict(zip(names, checkpoints, strict=True))
    job = evaluation_job(ctx, stage, named, tokens=tokens, conversations=conversations)
    run_job(ctx, job)
    results = json.loads((job.output / "results.json").read_text())
    folder = ctx.empty("evaluation")
    (folder / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False))
    if stage.long_context:
        reach = {name: measured["long_context"] for name, measured in results["checkpoints"].items()}
        (folder / "long-context.html").write_text(page(reach), encoding="utf-8")
    parents = [*checkpoints, tokens, *([conversations] if conversations else [])]
    return ctx.publish(folder, parents=parents, metrics=headline(results))


def evaluation_job(
    ctx: StageContext,
    stage: EvaluateStage,
    checkpoints: Mapping[str, Artifact],
    *,
    tokens: Artifact,
    conversations: Artifact | None,
) -> EvaluateJob:
    """The job that measures the named checkpoints as `stage` says."""
    return EvaluateJob(
        output=ctx.folder / "job",
        seed=ctx.seed,
        template_date=ctx.template_date,
        checkpoints={name: artifact.path for name, artifact in checkpoints.items()},
        tokens=tokens.path,
        conversations=conversations.path if conversations else None,
        max_heldout_tokens=stage.max_heldout_tokens,
        window=stage.window,
        max_tasks=stage.max_tasks,
        max_new_tokens=stage.max_new_tokens,
        sample_prompts=stage.sample_prompts,
        long_context=stage.long_context,
        parallel=stage.layout,
    )


def headline(results: dict[str, Any]) -> dict[str, float]:
    """The numbers of `results.json` that fit a table: `bits_per_byte/sft`, `accuracy/sft`."""
    metrics = {"unigram_bits_per_byte": float(results["unigram_bits_per_byte"])}
    for name, measured in results["checkpoints"].items():
        metrics[f"bits_per_byte/{name}"] = float(measured["bits_per_byte"])
        if measured.get("accuracy"):
            metrics[f"accuracy/{name}"] = float(measured["accuracy"]["accuracy"])
    return metrics
