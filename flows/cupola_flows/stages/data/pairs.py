"""Preference pairs from files."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.drops import say_dropped
from cupola_flows.stages.base import Stage, Taken
from cupola_platform.artifacts import Artifact
from cupola_platform.strict import Strict
from cupola_trainer.data.files import RowFiles, state
from cupola_trainer.data.preferences import read_preferences


class PairsStage(Stage):
    """Preference pairs of others, from files, -> pairs to learn from."""

    gives: ClassVar[str] = "preferences"

    kind: Literal["pairs"] = "pairs"
    files: tuple[RowFiles, ...] = Field(min_length=1)
    """Files of rows in any format, or a Hugging Face dataset: `prompt`, `chosen` and `rejected`,
    or a published set's columns."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts whose pairs are kept from training."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Take preference pairs of others from files."""
        folder = ctx.empty("preferences")
        report = read_preferences(self.files, heldout_fraction=self.heldout_fraction, seed=ctx.seed, to=folder)
        metrics = {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
        return ctx.publish(folder, parents=[], metrics=metrics | say_dropped(ctx, report))

    def content(self, stages: Mapping[str, Strict], seeds: Mapping[str, int]) -> dict[str, Any]:
        """What the files hold."""
        return {"sources": {str(place): state(source) for place, source in enumerate(self.files)}}
