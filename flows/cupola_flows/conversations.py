"""Conversations to learn from and to be asked."""

from cupola_flows.context import StageContext
from cupola_flows.dropping import say_dropped
from cupola_flows.stages import (
    ConversationsStage,
)
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_trainer.data.instructions import make_conversations


def conversations(ctx: StageContext, stage: ConversationsStage, tokens: Artifact | None) -> Artifact:
    """Make conversations from verifiable tasks, from the corpus's own documents, and from files."""
    if stage.corpus_conversations and tokens is None:
        raise ConfigError(f"stage {ctx.name}: corpus_conversations needs a corpus. Name the stage `tokens`.")
    folder = ctx.empty("conversations")
    report = make_conversations(
        tasks=stage.tasks,
        corpus=tokens.path if tokens and stage.corpus_conversations else None,
        corpus_conversations=stage.corpus_conversations,
        heldout_per_task=stage.heldout_per_task,
        seed=ctx.seed,
        to=folder,
        files=stage.files,
    )
    metrics = {f"{split}_conversations": float(sum(report[split].values())) for split in ("train", "heldout")}
    return ctx.publish(folder, parents=[tokens] if tokens else [], metrics=metrics | say_dropped(ctx, report))
