"""Proximal policy optimization."""

from typing import Annotated, Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Input, Taken
from cupola_flows.stages.rl.own_responses import OwnResponsesStage
from cupola_flows.stages.training import train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import PpoData, PpoSettings


class PpoStage(OwnResponsesStage, PpoSettings):
    """Proximal policy optimization with a value model, against the frozen parent. Defaults are Qwen's."""

    kind: Literal["ppo"] = "ppo"
    value_model: Annotated[str | None, Input("reward_model", guess=None)] = None
    """The stage whose model with a scalar head the value model starts from, such as the reward model; none for the
    parent's weights and a head of zeros."""
    pretraining: Annotated[str | None, Input("tokens", guess=None)] = None
    """The stage whose tokens' next-token loss is mixed in; none for no mixing."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Train on the policy's own responses, and a value model beside it."""
        value_model, pretraining = taken.maybe("value_model"), taken.maybe("pretraining")
        data = PpoData(
            **self.reads(taken, PpoSettings),
            value_model=value_model.path if value_model else None,
            pretraining=pretraining.path if pretraining else None,
        )
        return train(ctx, self, taken, data, parent=taken.one("parent"))
