"""Who writes in the stage `synthesize`: a model behind an endpoint, or a checkpoint of ours."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_job
from cupola_platform import json_lines
from cupola_platform.artifacts import Artifact
from cupola_platform.endpoint import Completion, Endpoint, EndpointConfig
from cupola_trainer.config import LayoutConfig, SampleJob, ScoreJob

Row = Mapping[str, Any]


class Writer(Protocol):
    """Writes responses to conversations."""

    @property
    def name(self) -> str:
        """As rows tell it."""

    @property
    def at_once(self) -> int:
        """Conversations to give it together: what is lost when it is stopped."""

    def say(self, asked: Sequence[Row], *, temperature: float, length: int, seed: int, step: str) -> list[Completion]:
        """A response to each, {"messages", "tools"}, of `length` tokens at most. `step` names the work: a step that was
        done is not done again."""


@dataclass(frozen=True)
class EndpointWriter:
    """A model behind an endpoint."""

    config: EndpointConfig

    @property
    def name(self) -> str:
        return self.config.model

    @property
    def at_once(self) -> int:
        return 4 * self.config.concurrency

    def say(self, asked: Sequence[Row], *, temperature: float, length: int, seed: int, step: str) -> list[Completion]:
        responses = Endpoint(self.config).map(
            [row["messages"] for row in asked],
            temperature=temperature,
            max_new_tokens=length,
            seeds=range(seed, seed + len(asked)),
            tools=[row.get("tools") for row in asked],
        )
        return list(responses)


@dataclass(frozen=True)
class CheckpointWriter:
    """A checkpoint of ours, in a job of its own: everything is asked in one go."""

    ctx: StageContext
    checkpoint: Artifact
    layout: LayoutConfig

    @property
    def name(self) -> str:
        return self.checkpoint.id

    @property
    def at_once(self) -> int:
        return 1 << 30

    def say(self, asked: Sequence[Row], *, temperature: float, length: int, seed: int, step: str) -> list[Completion]:
        output = self.ctx.folder / f"write-{step}"
        prompts = self.ctx.folder / f"write-{step}.jsonl"
        json_lines.write(prompts, ({**row, "id": str(number)} for number, row in enumerate(asked)))
        job = SampleJob(
            output=output,
            seed=seed,
            template_date=self.ctx.template_date,
            parent=self.checkpoint.path,
            prompts=prompts,
            temperature=temperature,
            max_new_tokens=length,
            layout=self.layout,
        )
        run_job(self.ctx, job)
        sampled = json_lines.read(output / "samples.jsonl")
        return [Completion(row["response"], row["finished"]) for row in sampled]


def rewards(
    ctx: StageContext, reward_model: Artifact, conversations: Iterable[Row], layout: LayoutConfig
) -> list[float | None]:
    """What a reward model gives the last response of each conversation, {"messages", "tools"}, in order; none for one
    that its tokenizer refuses."""
    file = ctx.folder / "to-score.jsonl"
    json_lines.write(file, conversations)
    job = ScoreJob(
        output=ctx.folder / "score",
        seed=ctx.seed,
        template_date=ctx.template_date,
        parent=reward_model.path,
        conversations=file,
        layout=layout,
    )
    run_job(ctx, job)
    values: list[float | None] = json.loads((job.output / "rewards.json").read_text())
    return values
