"""Checkpoints made out of others, without training: merging, pruning."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.stages.base import Stage
from cupola_trainer.config import MergeMethod, ParallelConfig, PruneTarget, check_merge


class MergeStage(Stage):
    """Several checkpoints of one architecture -> one: their average, or SLERP, TIES or DARE."""

    gives: ClassVar[str] = "checkpoint"
    takes: ClassVar[dict[str, str]] = {"checkpoints": "checkpoint", "base": "checkpoint"}

    kind: Literal["merge"] = "merge"
    checkpoints: tuple[str, ...]
    """The stages whose checkpoints to merge; the first one gives the tokenizer and the precision."""
    base: str | None = None
    """The stage whose checkpoint all of them were trained from: ties and dare need it, slerp may have it."""
    method: MergeMethod = "average"
    weights: tuple[float, ...] | None = None
    """One for each checkpoint; only their proportions matter. None for equal ones."""
    density: float | None = Field(default=None, gt=0, le=1)
    """Share of each task vector that ties keeps by magnitude, and dare at random; none for 0.2."""
    scale: float = Field(default=1.0, gt=0)
    """What the merged task vector of ties and dare is multiplied with."""
    layout: ParallelConfig = Field(default_factory=ParallelConfig)

    @model_validator(mode="after")
    def _can_be(self) -> "MergeStage":
        check_merge(
            self.method,
            len(self.checkpoints),
            weights=self.weights,
            has_base=self.base is not None,
            density=self.density,
        )
        return self


class PruneStage(Stage):
    """A checkpoint -> a smaller one to go on training: whole layers, channels, heads, units and experts left out."""

    gives: ClassVar[str] = "checkpoint"
    takes: ClassVar[dict[str, str]] = {"parent": "checkpoint", "tokens": "tokens"}

    kind: Literal["prune"] = "prune"
    parent: str | None = None
    """The stage whose checkpoint to prune."""
    tokens: str | None = None
    """The stage whose held-out tokens show what matters; not needed for layers that are named."""
    to: PruneTarget
    """What the smaller model is to be."""
    max_tokens: int = Field(default=65_536, ge=1)
    """Held-out tokens to look at."""
    sequence_length: int = Field(default=512, ge=8)
    """Most tokens of one sequence of them; no more than the model can take."""
    layout: ParallelConfig = Field(default_factory=ParallelConfig)

    @model_validator(mode="after")
    def _can_be(self) -> "PruneStage":
        self.to.check(has_tokens=True)
        return self
