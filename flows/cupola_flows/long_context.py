"""A pretrained model that learns to read further."""

from cupola_flows.context import StageContext
from cupola_flows.sampling import sampling_weights
from cupola_flows.stages import LongContextStage
from cupola_flows.training import train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import NextTokenData


def long_context(ctx: StageContext, stage: LongContextStage, tokens: Artifact, parent: Artifact) -> Artifact:
    """Go on with next-token training on longer sequences, step by step, with other positions."""
    return train(
        ctx,
        stage,
        data=NextTokenData(
            tokens=tokens.path,
            weights=sampling_weights(stage, tokens),
            reset_at_documents=stage.reset_at_documents,
            copying=stage.copying,
            lengths=stage.lengths(),
        ),
        positions=stage.positions,
        parent=parent,
        parents=[tokens, parent],
    )
