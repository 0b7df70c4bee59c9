"""Online DPO, on the policy's own responses."""

from typing import Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Taken
from cupola_flows.stages.rl.own_responses import OwnResponsesStage
from cupola_flows.stages.training import train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import OnlineDpoData, OnlineDpoSettings


class OnlineDpoStage(OwnResponsesStage, OnlineDpoSettings):
    """DPO on pairs of the policy's own responses, the best and the worst of each group."""

    learns_pairs = True

    kind: Literal["online_dpo"] = "online_dpo"

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Train on pairs of the policy's own responses."""
        data = OnlineDpoData(**self.reads(taken, OnlineDpoSettings))
        return train(ctx, self, taken, data, parent=taken.one("parent"))
