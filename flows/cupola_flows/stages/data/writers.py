"""Writers of the stage `synthesize`: a model behind an endpoint, or a checkpoint."""

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
        """The model's name in the rows."""

    @property
    def at_once(self) -> int:
        """Conversations per batch, which are lost if it is interrupted."""

    def say(
        self, requests: Sequence[Row], *, temperature: float, length: int, seed: int, step: str
    ) -> list[Completion]:
        """Respond to each request, {"messages", "tools"}, with at most `length` tokens. A finished `step` is not
        repeated."""


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

    def say(
        self, requests: Sequence[Row], *, temperature: float, length: int, seed: int, step: str
    ) -> list[Completion]:
        responses = Endpoint(self.config).map(
            [row["messages"] for row in requests],
            temperature=temperature,
            max_new_tokens=length,
            seeds=range(seed, seed + len(requests)),
            tools=[row.get("tools") for row in requests],
        )
        return list(responses)


@dataclass(frozen=True)
class CheckpointWriter:
    """A checkpoint, sampled in a job with all requests at once."""

    ctx: StageContext
    checkpoint: Artifact
    layout: LayoutConfig

    @property
    def name(self) -> str:
        return self.checkpoint.id

    @property
    def at_once(self) -> int:
        return 1 << 30

    def say(
        self, requests: Sequence[Row], *, temperature: float, length: int, seed: int, step: str
    ) -> list[Completion]:
        output = self.ctx.folder / f"write-{step}"
        prompts = self.ctx.folder / f"write-{step}.jsonl"
        json_lines.write(prompts, ({**row, "id": str(number)} for number, row in enumerate(requests)))
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
    """The reward model's score of the last response of each conversation, {"messages", "tools"}, in order; None for one
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
