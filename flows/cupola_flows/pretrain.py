"""Pretraining, and continued pretraining, on packed tokens."""

import json
from dataclasses import replace
from math import lcm

from cupola_flows.context import StageContext
from cupola_flows.sampling import sampling_weights
from cupola_flows.stages import PretrainStage
from cupola_flows.training import train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import ModelConfig, NextTokenData


def pretrain(ctx: StageContext, stage: PretrainStage, tokens: Artifact, parent: Artifact | None = None) -> Artifact:
    """Train one model on packed tokens, from random weights or from a parent checkpoint."""
    return train(
        ctx,
        stage,
        data=NextTokenData(
            tokens=tokens.path,
            weights=sampling_weights(stage, tokens),
            reset_at_documents=stage.reset_at_documents,
            copying=stage.copying,
        ),
        model=fit_vocabulary(stage.model, tokens, stage.layout.tp) if stage.model else None,
        parent=parent,
        tokenizer=None if parent else tokens.path / "tokenizer",
        parents=[tokens, *([parent] if parent else [])],
    )


def fit_vocabulary(model: ModelConfig, tokens: Artifact, tp: int) -> ModelConfig:
    """The model with an embedding row for every token, padded to a multiple of 64 and of tp, where the recipe left it open.

    64 is for the processors' sake; up to 64 tensor-parallel ranks that are powers of two so have one shape.
    """
    if model.vocab_size:
        return model
    size = int(json.loads((tokens.path / "index.json").read_text())["vocab_size"])
    unit = lcm(64, tp)
    return replace(model, vocab_size=-(-size // unit) * unit)
