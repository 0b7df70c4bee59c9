"""Group relative policy optimization."""

from typing import Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Taken
from cupola_flows.stages.rl.own_responses import OwnResponsesStage
from cupola_flows.stages.training import train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import GrpoData, GrpoSettings


class GrpoStage(OwnResponsesStage, GrpoSettings):
    """Group relative policy optimization, with the frozen parent or the policy's moving average as the reference."""

    kind: Literal["grpo"] = "grpo"

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Train on groups of the policy's own responses."""
        return train(ctx, self, taken, GrpoData(**self.reads(taken, GrpoSettings)), parent=taken.one("parent"))
