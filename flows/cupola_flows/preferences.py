"""Preference pairs: from a checkpoint's own answers, scored, or from files."""

from pathlib import Path

from cupola_flows.context import StageContext
from cupola_flows.dropping import say_dropped
from cupola_flows.jobs import run_job
from cupola_flows.stages import (
    PairsStage,
    PreferencesStage,
)
from cupola_flows.writing import rewards
from cupola_platform import json_lines
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import SampleJob
from cupola_trainer.data.preferences import make_preferences, make_prompts, read_preferences
from cupola_trainer.evaluation.execution import shares_passed


def preferences(
    ctx: StageContext,
    stage: PreferencesStage,
    parent: Artifact,
    conversations: Artifact,
    reward_model: Artifact | None = None,
) -> Artifact:
    """Ask a checkpoint the training questions several times, score its answers, and pair better with worse ones."""
    prompts = ctx.folder / "prompts.jsonl"
    needs = {"task": "task", "execution": "tests"}.get(stage.score_by)
    make_prompts(conversations.path, needs=needs, count=stage.max_prompts, seed=ctx.seed, to=prompts)
    job = SampleJob(
        output=ctx.folder / "job",
        seed=ctx.seed,
        template_date=ctx.template_date,
        initial=parent.path,
        prompts=prompts,
        num_samples=stage.num_samples,
        temperature=stage.temperature,
        top_p=stage.top_p,
        top_k=stage.top_k,
        max_new_tokens=stage.max_new_tokens,
        batch_size=stage.batch_size,
        parallel=stage.layout,
    )
    run_job(ctx, job)
    folder = ctx.empty("preferences")
    report = make_preferences(
        prompts,
        job.output / "samples.jsonl",
        scores=answer_scores(ctx, stage, prompts, job.output / "samples.jsonl", reward_model),
        min_gap=stage.min_gap if stage.score_by == "reward" else None,
        made_by={"model": parent.id, "filter": stage.score_by},
        heldout_fraction=stage.heldout_fraction,
        pairs_per_prompt=stage.pairs_per_prompt,
        seed=ctx.seed,
        to=folder,
    )
    told = {"sampled_accuracy": "accuracy", "mean_score": "mean_score"}
    metrics = {"answers": float(report["answers"])} | {name: report[key] for name, key in told.items() if key in report}
    metrics |= {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
    parents = [parent, conversations, *([reward_model] if reward_model else [])]
    return ctx.publish(folder, parents=parents, metrics=metrics | say_dropped(ctx, report))


def answer_scores(
    ctx: StageContext, stage: PreferencesStage, prompts: Path, samples: Path, reward_model: Artifact | None
) -> list[float | None] | None:
    """The score of each sampled answer, in order; none for one that a reward model cannot read, and in place of the list where
    their tasks score them."""
    if stage.score_by == "task":
        return None
    asked = {row["id"]: row for row in json_lines.read(prompts)}
    answered = list(json_lines.read(samples))
    if reward_model is None:
        return list(shares_passed([(row["answer"], asked[row["id"]]["tests"]) for row in answered]))
    ended = [row for row in answered if row["finished"]]  # the others make no pair
    told = (
        {
            "messages": [*asked[row["id"]]["messages"], {"role": "assistant", "content": row["answer"]}],
            "tools": asked[row["id"]].get("tools"),
        }
        for row in ended
    )
    found = iter(rewards(ctx, reward_model, told, stage.layout))
    return [next(found) if row["finished"] else 0.0 for row in answered]


def pairs(ctx: StageContext, stage: PairsStage) -> Artifact:
    """Take preference pairs of others from files."""
    folder = ctx.empty("preferences")
    report = read_preferences(stage.files, heldout_fraction=stage.heldout_fraction, seed=ctx.seed, to=folder)
    metrics = {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
    return ctx.publish(folder, parents=[], metrics=metrics | say_dropped(ctx, report))
