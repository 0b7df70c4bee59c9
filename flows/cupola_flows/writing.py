"""Who writes in the stage `synthesize`: a model behind an endpoint, or a checkpoint of ours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job
from cupola_platform import json_lines
from cupola_platform.artifacts import Artifact
from cupola_platform.endpoint import Completion, Endpoint, EndpointConfig
from cupola_trainer.config import ParallelConfig, SampleJob, ScoreJob

Messages = Sequence[dict[str, Any]]


class Writer(Protocol):
    """Answers conversations."""

    @property
    def name(self) -> str:
        """As rows tell it."""

    @property
    def at_once(self) -> int:
        """Conversations to give it together: what is lost when it is stopped."""

    def say(
        self, asked: Sequence[Messages], *, temperature: float, length: int, seed: int, step: str
    ) -> list[Completion]:
        """An answer to each, of `length` tokens at most. `step` names the work: a step that was done is not done again."""


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
        self, asked: Sequence[Messages], *, temperature: float, length: int, seed: int, step: str
    ) -> list[Completion]:
        seeds = range(seed, seed + len(asked))
        return list(Endpoint(self.config).map(asked, temperature=temperature, max_new_tokens=length, seeds=seeds))


@dataclass(frozen=True)
class CheckpointWriter:
    """A checkpoint of ours, in a job of its own: everything is asked in one go."""

    ctx: StageContext
    checkpoint: Artifact
    layout: ParallelConfig

    @property
    def name(self) -> str:
        return self.checkpoint.id

    @property
    def at_once(self) -> int:
        return 1 << 30

    def say(
        self, asked: Sequence[Messages], *, temperature: float, length: int, seed: int, step: str
    ) -> list[Completion]:
        output = self.ctx.folder / f"write-{step}"
        prompts = self.ctx.folder / f"write-{step}.jsonl"
        rows = [{"id": str(number), "messages": list(messages)} for number, messages in enumerate(asked)]
        json_lines.write(prompts, rows)
        job = SampleJob(
            output=output,
            seed=seed,
            initial=self.checkpoint.path,
            prompts=prompts,
            temperature=temperature,
            max_new_tokens=length,
            parallel=self.layout,
        )
        run_job(self.ctx, job)
        answered = json_lines.read(output / "samples.jsonl")
        return [Completion(row["answer"], row["finished"]) for row in answered]


def rewards(
    ctx: StageContext, reward_model: Artifact, conversations: Sequence[Messages], layout: ParallelConfig
) -> list[float]:
    """What a reward model gives the last answer of each conversation, in order."""
    file = ctx.folder / "to-score.jsonl"
    json_lines.write(file, ({"messages": list(messages)} for messages in conversations))
    job = ScoreJob(
        output=ctx.folder / "score", seed=ctx.seed, initial=reward_model.path, conversations=file, parallel=layout
    )
    run_job(ctx, job)
    found: list[float] = json.loads((job.output / "rewards.json").read_text())
    return found
