"""What a model is worth: evaluation, promotion."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from cupola_flows.stages.base import Stage
from cupola_platform.aliases import fault
from cupola_trainer.config import LongContextConfig, ParallelConfig


class EvaluateStage(Stage):
    """Held-out bits per byte, task accuracy and generations, for every checkpoint."""

    gives: ClassVar[str] = "evaluation"
    takes: ClassVar[dict[str, str]] = {
        "checkpoints": "checkpoint",
        "tokens": "tokens",
        "conversations": "conversations",
    }
    renders: ClassVar[bool] = True

    kind: Literal["evaluate"] = "evaluate"
    checkpoints: tuple[str, ...] = ()
    """The stages whose checkpoints to measure; empty for every earlier one that trained."""
    tokens: str | None = None
    """The stage whose held-out shards to use."""
    conversations: str | None = None
    """The stage whose held-out tasks to ask."""
    max_heldout_tokens: int = Field(default=65_536, ge=1)
    window: int | None = Field(default=None, ge=8)
    """Most tokens of context in a held-out loss; none for the model's longest sequence. Give the length that it was
    trained at where that is shorter: positions that were never trained make a model look worse."""
    max_tasks: int = Field(default=200, ge=1)
    """Held-out tasks per task name."""
    max_new_tokens: int = Field(default=32, ge=1)
    sample_prompts: tuple[str, ...] = ()
    """Plain texts that each checkpoint continues, greedily, to be read by people."""
    long_context: LongContextConfig | None = None
    """How far each checkpoint reads: loss by position and needles; none to leave it unmeasured."""
    layout: ParallelConfig = Field(default_factory=ParallelConfig)


class PromoteStage(Stage):
    """Move an alias to the best of several checkpoints, if the numbers allow it."""

    gives: ClassVar[str] = "promotion"
    takes: ClassVar[dict[str, str]] = {
        "checkpoints": "checkpoint",
        "baseline": "checkpoint",
        "evaluation": "evaluation",
    }
    renders: ClassVar[bool] = True

    kind: Literal["promote"] = "promote"
    checkpoints: tuple[str, ...] = ()
    """The stages whose checkpoints may be promoted: the best of them is. Empty for all that the evaluation measures."""
    baseline: str | None = None
    """The stage whose checkpoint the best must beat on tasks, and whose bits per byte it must keep; none for the last
    pretraining. It is no candidate."""
    evaluation: str | None = None
    """The stage whose numbers decide."""
    alias: str = "champion"
    """The name that moves."""
    bits_per_byte_tolerance: float = Field(default=0.05, ge=0)
    """How much worse, relative, held-out bits per byte may be than the baseline's and than the incumbent's."""

    @field_validator("alias")
    @classmethod
    def _is_an_alias(cls, alias: str) -> str:
        if wrong := fault(alias):
            raise ValueError(wrong)
        return alias
