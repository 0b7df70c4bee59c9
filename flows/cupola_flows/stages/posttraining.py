"""After pretraining: conversations, fine-tuning, preferences, alignment."""

from typing import ClassVar, Literal

from pydantic import Field

from cupola_flows.stages.base import Stage, TrainStage
from cupola_trainer.config import ParallelConfig
from cupola_trainer.data.instructions import TaskSource


class ConversationsStage(Stage):
    """Verifiable tasks and corpus documents -> conversations to learn from, and tasks to be scored on."""

    gives: ClassVar[str] = "conversations"
    takes: ClassVar[dict[str, str]] = {"tokens": "tokens"}

    kind: Literal["conversations"] = "conversations"
    tokens: str | None = None
    """The stage whose documents and tokenizer to use."""
    tasks: tuple[TaskSource, ...] = ()
    """Generators of verifiable questions."""
    corpus_conversations: int = Field(default=0, ge=0)
    """Training conversations to make from the corpus's documents."""
    heldout_per_task: int = Field(default=100, ge=1)
    """Questions of each task kept from training, to be scored on."""


class SftStage(TrainStage):
    """Supervised fine-tuning: ChatML, loss on assistant tokens only."""

    takes: ClassVar[dict[str, str]] = {
        "parent": "checkpoint",
        "conversations": "conversations",
        "base": "checkpoint",
    }

    kind: Literal["sft"] = "sft"
    parent: str | None = None
    """The stage whose checkpoint to fine-tune."""
    conversations: str | None = None
    """The stage that made the conversations."""
    pack: bool = True
    """Several conversations share a row, each seeing only itself. Off, or with cp > 1: one a row, padded."""


class PreferencesStage(Stage):
    """Answers sampled from a checkpoint and scored -> pairs of a better and a worse one."""

    gives: ClassVar[str] = "preferences"
    takes: ClassVar[dict[str, str]] = {"parent": "checkpoint", "conversations": "conversations"}

    kind: Literal["preferences"] = "preferences"
    parent: str | None = None
    """The stage whose checkpoint answers."""
    conversations: str | None = None
    """The stage whose tasks are asked."""
    num_samples: int = Field(default=4, ge=2)
    """Answers per prompt."""
    max_prompts: int = Field(default=512, ge=1)
    """Tasks asked, at most."""
    pairs_per_prompt: int = Field(default=2, ge=1)
    """Pairs made of one prompt's answers, at most."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts whose pairs are kept from training."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Likeliest tokens to draw from; 0 for all."""
    max_new_tokens: int = Field(default=32, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Answers sampled together."""
    layout: ParallelConfig = Field(default_factory=ParallelConfig)


class DpoStage(TrainStage):
    """Direct preference optimization against the frozen parent."""

    takes: ClassVar[dict[str, str]] = {
        "parent": "checkpoint",
        "preferences": "preferences",
        "base": "checkpoint",
    }

    kind: Literal["dpo"] = "dpo"
    parent: str | None = None
    """The stage whose checkpoint to align; it is the frozen reference too."""
    preferences: str | None = None
    """The stage that made the pairs."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong (conservative DPO)."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's own loss, or IPO's squared one, which does not run off on pairs that are already told apart."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answers' mean token loss beside it: keeps them likely while the margin grows."""
