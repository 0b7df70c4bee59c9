"""Pretraining and continued pretraining on packed tokens."""

import json
from dataclasses import replace
from math import lcm
from typing import Annotated, Literal

from pydantic import model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.base import Input, Taken, settings
from cupola_flows.stages.pretraining.mixture import Mixture, sampling_weights
from cupola_flows.stages.pretraining.shapes import ModelShape
from cupola_flows.stages.training import TrainStage, train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import ModelConfig, NextTokenData, NextTokenSettings


class PretrainStage(TrainStage, NextTokenSettings):
    """Next-token training on packed tokens, from random weights (`model`) or from a checkpoint (`parent`)."""

    kind: Literal["pretrain"] = "pretrain"
    tokens: Annotated[str | None, Input("tokens")] = None
    """Stage that prepared the tokens."""
    parent: Annotated[str | None, Input("checkpoint", guess=None)] = None
    """Stage whose checkpoint to continue."""
    model: ModelShape | None = None
    """Shape of a new model: values, or a published shape (`preset: NAME`) with changes."""
    mixture: Mixture | None = None
    """Adjusts the weights: temperature over languages, caps on epochs."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "PretrainStage":
        if (self.model is None) == (self.parent is None):
            raise ValueError("give either `model` (a new model) or `parent` (a stage to start from), not both")
        if self.lora and self.model:
            raise ValueError("lora: adapters need a pretrained model. Give `parent`, or leave lora out")
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Train one model on packed tokens, from random weights or from a parent checkpoint."""
        tokens, parent = taken.one("tokens"), taken.maybe("parent")
        return train(
            ctx,
            self,
            taken,
            pretraining_data(self, tokens),
            parent=parent,
            model=fit_vocabulary(self.model, tokens, self.layout.tp) if self.model else None,
            tokenizer=None if parent else tokens.path / "tokenizer",
        )

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        return self.model or parent


def pretraining_data(stage: PretrainStage, tokens: Artifact) -> NextTokenData:
    """The training data of the stage's job."""
    values = settings(stage, NextTokenSettings) | {"weights": sampling_weights(stage, tokens)}
    return NextTokenData(tokens=tokens.path, **values)


def fit_vocabulary(model: ModelConfig, tokens: Artifact, tp: int) -> ModelConfig:
    """Set the vocabulary size from the tokens if the recipe leaves it open, padded to a multiple of 64 and of tp.

    Multiples of 64 make matrix products efficient, and give the same shape for every power of two up to tp = 64.
    """
    if model.vocab_size:
        return model
    size = int(json.loads((tokens.path / "index.json").read_text())["vocab_size"])
    unit = lcm(64, tp)
    return replace(model, vocab_size=-(-size // unit) * unit)
