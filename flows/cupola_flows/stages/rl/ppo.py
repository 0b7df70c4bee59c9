"""Proximal policy optimization."""

from typing import Annotated, Literal

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Input, Taken
from cupola_flows.stages.rl.own_responses import OwnResponsesStage
from cupola_flows.stages.training import train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import PpoData, PpoSettings


class PpoStage(OwnResponsesStage, PpoSettings):
    """Proximal policy optimization with a value model and the frozen parent as the reference. Defaults are Qwen's."""

    kind: Literal["ppo"] = "ppo"
    value_model: Annotated[str | None, Input("reward_model", guess=None)] = None
    """Stage whose model with a scalar head initializes the value model, such as the reward model. None uses the
    parent's weights with a zero head."""
    pretraining: Annotated[str | None, Input("tokens", guess=None)] = None
    """Stage whose tokens add a next-token loss; None for no such loss."""

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Train the policy on its own responses, together with a value model."""
        value_model, pretraining = taken.maybe("value_model"), taken.maybe("pretraining")
        data = PpoData(
            **self.reads(taken, PpoSettings),
            value_model=value_model.path if value_model else None,
            pretraining=pretraining.path if pretraining else None,
        )
        return train(ctx, self, taken, data, parent=taken.one("parent"))
