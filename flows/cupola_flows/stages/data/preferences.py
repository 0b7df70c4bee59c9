"""Preference pairs from a checkpoint's own scored responses."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.drops import say_dropped
from cupola_flows.execution.jobs import run_job
from cupola_flows.stages.base import Input, Stage, Taken, settings
from cupola_flows.stages.data.writers import rewards
from cupola_platform import json_lines
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import ROW_FIELDS, LayoutSettings, PreferenceScorer, SampleJob, SamplingSettings
from cupola_trainer.data.preferences import make_preferences, make_prompts
from cupola_trainer.scoring.execution import shares_passed


class PreferencesStage(Stage, SamplingSettings, LayoutSettings):
    """Sample and score a checkpoint's responses, and pair better with worse ones."""

    gives: ClassVar[str] = "preferences"
    renders: ClassVar[bool] = True

    kind: Literal["preferences"] = "preferences"
    parent: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose checkpoint to sample."""
    conversations: Annotated[str | None, Input("conversations")] = None
    """Stage whose prompts to respond to."""
    scorer: PreferenceScorer = "task"
    """`task`: the prompts' verifiable tasks. `execution`: the response's Python code must run, followed by the `tests`
    of the prompt's row. `reward_model`: its score; the largest differences make the pairs."""
    reward_model: Annotated[str | None, Input("reward_model", guess=None)] = None
    """Stage whose reward model to use with `scorer: reward_model`."""
    min_gap: float = Field(default=0.0, ge=0)
    """Minimum difference between the scores of a pair."""
    samples_per_prompt: int = Field(default=4, ge=2)
    """Responses per prompt."""
    max_prompts: int = Field(default=512, ge=1)
    """Maximum number of prompts."""
    pairs_per_prompt: int = Field(default=2, ge=1)
    """Maximum pairs per prompt."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of prompts whose pairs are held out."""
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _scorer_is_there(self) -> "PreferencesStage":
        if (self.scorer == "reward_model") != (self.reward_model is not None):
            raise ValueError("scorer=reward_model and `reward_model` need each other. Give both or neither")
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Sample responses to training prompts, score them, and publish pairs."""
        parent, prompts = taken.one("parent"), ctx.folder / "prompts.jsonl"
        needs = ROW_FIELDS.get(self.scorer)
        make_prompts(taken.one("conversations").path, needs=needs, count=self.max_prompts, seed=ctx.seed, to=prompts)
        job = SampleJob(
            **settings(self, SamplingSettings),
            output=ctx.folder / "job",
            seed=ctx.seed,
            template_date=ctx.template_date,
            parent=parent.path,
            prompts=prompts,
            layout=self.layout,
        )
        run_job(ctx, job)
        folder, samples = ctx.empty("preferences"), job.output / "samples.jsonl"
        report = make_preferences(
            prompts,
            samples,
            scores=response_scores(ctx, self, prompts, samples, taken.maybe("reward_model")),
            min_gap=self.min_gap if self.scorer == "reward_model" else None,
            made_by={"model": parent.id, "scorer": self.scorer},
            heldout_fraction=self.heldout_fraction,
            pairs_per_prompt=self.pairs_per_prompt,
            seed=ctx.seed,
            to=folder,
        )
        names = {"sampled_accuracy": "accuracy", "mean_score": "mean_score"}
        metrics = {"responses": float(report["responses"])}
        metrics |= {name: report[key] for name, key in names.items() if key in report}
        metrics |= {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
        return ctx.publish(folder, parents=taken.all(), metrics=metrics | say_dropped(ctx, report))


def response_scores(
    ctx: StageContext, stage: PreferencesStage, prompts: Path, samples: Path, reward_model: Artifact | None
) -> list[float | None] | None:
    """Score of each sampled response, in order; None for one that the reward model cannot read. Returns None instead of
    a list for `scorer: task`."""
    if stage.scorer == "task":
        return None
    prompt_by_id = {row["id"]: row for row in json_lines.read(prompts)}
    sampled = list(json_lines.read(samples))
    if reward_model is None:
        return list(shares_passed([(row["response"], prompt_by_id[row["id"]]["tests"]) for row in sampled]))
    ended = [row for row in sampled if row["finished"]]  # unfinished ones make no pairs
    conversations = (
        {
            "messages": [*prompt_by_id[row["id"]]["messages"], {"role": "assistant", "content": row["response"]}],
            "tools": prompt_by_id[row["id"]].get("tools"),
        }
        for row in ended
    )
    scores = iter(rewards(ctx, reward_model, conversations, stage.layout))
    return [next(scores) if row["finished"] else 0.0 for row in sampled]
