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
    """Read preference pairs from files."""

    gives: ClassVar[str] = "preferences"

    kind: Literal["pairs"] = "pairs"
    files: tuple[RowFiles, ...] = Field(min_length=1)
    """Files in any row format, or a Hugging Face dataset, with `prompt`, `chosen` and `rejected`, or the columns of a
    known published dataset."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of prompts whose pairs are held out."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Read preference pairs from files and publish them."""
        folder = ctx.empty("preferences")
        report = read_preferences(self.files, heldout_fraction=self.heldout_fraction, seed=ctx.seed, to=folder)
        metrics = {f"{split}_pairs": float(count) for split, count in report["pairs"].items()}
        return ctx.publish(folder, parents=[], metrics=metrics | say_dropped(ctx, report))

    def content(self, stages: Mapping[str, Strict], seeds: Mapping[str, int]) -> dict[str, Any]:
        """State of the files."""
        return {"sources": {str(place): state(source) for place, source in enumerate(self.files)}}
