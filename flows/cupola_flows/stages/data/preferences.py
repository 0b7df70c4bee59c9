"""Preference pairs from a checkpoint's own responses, scored."""

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
    """Responses sampled from a checkpoint and scored -> pairs of a better and a worse one."""

    gives: ClassVar[str] = "preferences"
    renders: ClassVar[bool] = True

    kind: Literal["preferences"] = "preferences"
    parent: Annotated[str | None, Input("checkpoint")] = None
    """The stage whose checkpoint is sampled."""
    conversations: Annotated[str | None, Input("conversations")] = None
    """The stage whose prompts it responds to."""
    scorer: PreferenceScorer = "task"
    """`task`: the prompts' verifiable tasks. `execution`: a response's Python code must run, the tests of the
    prompt's row (`tests`) after it. `reward_model`: what that model gives; the widest differences make the pairs."""
    reward_model: Annotated[str | None, Input("reward_model", guess=None)] = None
    """The stage whose reward model scores (`scorer: reward_model`)."""
    min_gap: float = Field(default=0.0, ge=0)
    """Least difference between the two scores of a pair."""
    samples_per_prompt: int = Field(default=4, ge=2)
    """Responses to each prompt."""
    max_prompts: int = Field(default=512, ge=1)
    """Prompts to sample, at most."""
    pairs_per_prompt: int = Field(default=2, ge=1)
    """Pairs made of one prompt's responses, at most."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts whose pairs are kept from training."""
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _scorer_is_there(self) -> "PreferencesStage":
        if (self.scorer == "reward_model") != (self.reward_model is not None):
            raise ValueError("scorer=reward_model and `reward_model` go together: give both or neither")
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Sample a checkpoint's responses to training prompts, score them, and pair better with worse ones."""
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
    """The score of each sampled response, in order; none for one that a reward model cannot read, and in place of the
    list where their tasks score them."""
    if stage.scorer == "task":
        return None
    asked = {row["id"]: row for row in json_lines.read(prompts)}
    sampled = list(json_lines.read(samples))
    if reward_model is None:
        return list(shares_passed([(row["response"], asked[row["id"]]["tests"]) for row in sampled]))
    ended = [row for row in sampled if row["finished"]]  # the others make no pair
    conversations = (
        {
            "messages": [*asked[row["id"]]["messages"], {"role": "assistant", "content": row["response"]}],
            "tools": asked[row["id"]].get("tools"),
        }
        for row in ended
    )
    scores = iter(rewards(ctx, reward_model, conversations, stage.layout))
    return [next(scores) if row["finished"] else 0.0 for row in sampled]
