"""Synthetic conversations, each with its prompt, model and score."""

import json
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.drops import say_dropped
from cupola_flows.stages.base import Input, Stage, Taken
from cupola_flows.stages.data import texts
from cupola_flows.stages.data.synthesis import SynthesisSettings
from cupola_flows.stages.data.writers import CheckpointWriter, EndpointWriter, Writer, rewards
from cupola_platform import json_lines
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_platform.rows.drops import in_words
from cupola_trainer.config import LayoutSettings


class SynthesizeStage(Stage, SynthesisSettings, LayoutSettings):
    """Write conversations with a model, and drop those with low scores."""

    gives: ClassVar[str] = "conversations"
    renders: ClassVar[bool] = True

    kind: Literal["synthesize"] = "synthesize"
    conversations: Annotated[str | None, Input("conversations", guess=None)] = None
    """Stage whose conversations get new responses, are reworded or are revised."""
    tokens: Annotated[str | None, Input("tokens", guess=None)] = None
    """Stage whose documents to use with `make: prompts`."""
    writer: Annotated[str | None, Input("checkpoint", guess=None)] = None
    """Stage whose checkpoint writes, instead of an endpoint."""
    reward_model: Annotated[str | None, Input("reward_model", guess=None)] = None
    """Stage whose reward model to use with `scorer: reward_model`."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SynthesizeStage":
        if (self.endpoint is None) == (self.writer is None):
            raise ValueError("give either `endpoint` or `writer` (a stage's checkpoint), not both")
        if (self.make == "prompts") != (self.tokens is not None) or (self.tokens is None) == (
            self.conversations is None
        ):
            raise ValueError(
                "give `tokens` for make=prompts, or `conversations` for responses, variants and revisions, not both"
            )
        if (self.scorer == "reward_model") != (self.reward_model is not None):
            raise ValueError("scorer=reward_model and `reward_model` need each other. Give both or neither")
        if self.make in {"variants", "prompts"} and self.scorer in {"task", "execution"}:
            why = (
                "variants keep their original responses, so "
                if self.make == "variants"
                else "prompts have no task, so "
            )
            outcome = "would pass all of them" if self.make == "variants" else "cannot score them"
            raise ValueError(f"{why}scorer={self.scorer} {outcome}. Use judge, reward_model or none")
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Write texts, score them and publish those that pass. Resumes after an interruption.

        Raises:
            ConfigError: there are no usable prompts, no rows for the scorer, or no texts that pass.
            ServiceError: the endpoint does not respond.
        """
        corpus = taken.maybe("tokens")
        prompts = (
            texts.documents(corpus.path, self, ctx.seed)
            if corpus
            else texts.prompts(taken.one("conversations").path, self, ctx.seed)
        )
        written = list(texts.written(ctx, self, self._writer(ctx, taken), prompts, ctx.folder / "written.jsonl"))
        if model := taken.maybe("reward_model"):
            usable = [text for text in written if text["messages"] and text["finished"]]
            to_score = ({"messages": text["messages"], "tools": text.get("tools")} for text in usable)
            for text, value in zip(usable, rewards(ctx, model, to_score, self.layout), strict=True):
                text["synthesis"]["score"] = value
        kept, drops = texts.filtered(self, written)
        heldout = {row["id"] for row in prompts[: max(1, round(len(prompts) * self.heldout_fraction))]}
        splits = {
            "train": [row for row in kept if row["synthesis"]["of"] not in heldout],
            "heldout": [row for row in kept if row["synthesis"]["of"] in heldout],
        }
        if not splits["train"]:
            raise ConfigError(
                f"stage {ctx.name}: none of {len(written)} texts is left for training ({in_words(drops, {})}). Lower "
                "min_score, use another model, or take more rows."
            )
        folder = ctx.empty("conversations")
        for split, rows in splits.items():
            json_lines.write(folder / f"{split}.jsonl", rows)
        counts = {split: len(rows) for split, rows in splits.items()}
        report = {"asked": len(written), "kept": len(kept), "dropped": dict(drops), "conversations": counts}
        (folder / "report.json").write_text(json.dumps(report, indent=2))
        metrics = {f"{split}_conversations": float(count) for split, count in counts.items()}
        metrics |= {"asked": float(len(written)), "kept": float(len(kept)), "mean_score": texts.mean_score(kept)}
        return ctx.publish(folder, parents=taken.all(), metrics=metrics | say_dropped(ctx, report))

    def _writer(self, ctx: StageContext, taken: Taken) -> Writer:
        if writer := taken.maybe("writer"):
            return CheckpointWriter(ctx, writer, self.layout)
        assert self.endpoint is not None, "validated: there is either an endpoint or a writer"
        return EndpointWriter(self.endpoint)
