"""Conversations for training and evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.drops import say_dropped
from cupola_flows.stages.base import Input, Stage, Taken
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_platform.strict import Strict
from cupola_trainer.data.files import RowFiles, state
from cupola_trainer.data.instructions import TaskSource, make_conversations


class ConversationsStage(Stage):
    """Make training conversations and scored held-out tasks, from task generators, corpus documents and files."""

    gives: ClassVar[str] = "conversations"

    kind: Literal["conversations"] = "conversations"
    tokens: Annotated[str | None, Input("tokens", optional=True)] = None
    """Stage whose documents and tokenizer to use."""
    tasks: tuple[TaskSource, ...] = ()
    """Generators of verifiable tasks."""
    corpus_conversations: int = Field(default=0, ge=0)
    """Training conversations to make from the corpus's documents."""
    heldout_per_task: int = Field(default=100, ge=1)
    """Held-out prompts per task, for scoring. Of files, 5% is held out, up to as many."""
    files: tuple[RowFiles, ...] = ()
    """Conversations from files in any row format, or from a Hugging Face dataset."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Make conversations from verifiable tasks, corpus documents and files."""
        tokens = taken.maybe("tokens")
        if self.corpus_conversations and tokens is None:
            raise ConfigError(f"stage {ctx.name}: corpus_conversations needs a corpus. Name its stage in `tokens`.")
        folder = ctx.empty("conversations")
        report = make_conversations(
            tasks=self.tasks,
            corpus=tokens.path if tokens and self.corpus_conversations else None,
            corpus_conversations=self.corpus_conversations,
            heldout_per_task=self.heldout_per_task,
            seed=ctx.seed,
            to=folder,
            files=self.files,
        )
        metrics = {f"{split}_conversations": float(sum(report[split].values())) for split in ("train", "heldout")}
        return ctx.publish(folder, parents=taken.all(), metrics=metrics | say_dropped(ctx, report))

    def content(self, stages: Mapping[str, Strict], seeds: Mapping[str, int]) -> dict[str, Any]:
        """State of the files."""
        return {"sources": {str(place): state(source) for place, source in enumerate(self.files)}}
