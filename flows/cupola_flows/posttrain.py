"""After pretraining: fine-tuning on conversations, reward models and alignment by preference pairs."""

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job
from cupola_flows.stage_code import REFERENCE
from cupola_flows.stages import (
    DpoStage,
    RewardStage,
    SftStage,
)
from cupola_flows.training import train
from cupola_platform.artifacts import Artifact, code_version, fingerprint
from cupola_platform.errors import ConfigError
from cupola_trainer.config import DpoData, ReferenceJob, RewardData, SftData

EPOCHS = 2.0
"""Of fine-tuning, where a recipe says nothing (Qwen2's)."""


def sft(
    ctx: StageContext,
    stage: SftStage,
    parent: Artifact,
    conversations: Artifact,
    base: Artifact | None = None,
    pretraining: Artifact | None = None,
) -> Artifact:
    """Fine-tune a checkpoint on conversations: loss on the assistant's tokens, and on text where that is mixed in."""
    epochs = None if stage.steps else stage.epochs or EPOCHS
    data = SftData(
        conversations=conversations.path,
        epochs=epochs,
        pack=stage.pack,
        pretraining=pretraining.path if pretraining else None,
        pretraining_share=stage.pretraining_share,
    )
    parents = [artifact for artifact in (parent, conversations, pretraining) if artifact]
    return train(ctx, stage, data=data, parent=parent, parents=parents, base=base)


def dpo(
    ctx: StageContext, stage: DpoStage, parent: Artifact, preferences: Artifact, base: Artifact | None = None
) -> Artifact:
    """Align a checkpoint by pairs, against itself frozen."""
    asked = None if base else reference(ctx, stage, parent, preferences)
    data = DpoData(
        preferences=preferences.path,
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
        loss_type=stage.loss_type,
        sft_weight=stage.sft_weight,
        reference=asked.path if asked else None,
    )
    parents = [artifact for artifact in (parent, preferences, asked) if artifact]
    return train(ctx, stage, data=data, parent=parent, parents=parents, base=base)


def reference(ctx: StageContext, stage: DpoStage, parent: Artifact, preferences: Artifact) -> Artifact:
    """What the frozen parent says of every answer: computed once, whatever is then tried with it."""
    config = {
        "sequence_length": stage.batch.sequence_length,
        "precision": stage.precision,
        "template_date": ctx.template_date.isoformat() if ctx.template_date else None,
    }
    mark = fingerprint({"reference": config}, [parent.digest, preferences.digest], code_version(*REFERENCE))
    found = ctx.workspace.find(mark)
    if found:
        return found
    job = ReferenceJob(
        output=ctx.folder / "reference",
        seed=ctx.seed,
        template_date=ctx.template_date,
        initial=parent.path,
        data=DpoData(preferences=preferences.path),
        batch=stage.batch,
        parallel=stage.layout,
        precision=stage.precision,
    )
    result = run_job(ctx, job)
    return ctx.workspace.publish(
        result.folder,
        kind="reference",
        parents=[parent, preferences],
        stage=f"{ctx.name}-reference",
        recipe=ctx.recipe.name,
        fingerprint=mark,
        config=config,
        metrics=result.metrics,
    )


def reward(
    ctx: StageContext, stage: RewardStage, preferences: Artifact, parent: Artifact | None, reward: Artifact | None
) -> Artifact:
    """Train a reward model on pairs: from a language model, or from another reward model."""
    initial = reward or parent
    if initial is None:
        raise ConfigError(f"stage {ctx.name} has nothing to start from: name `parent` or `reward`.")
    data = RewardData(
        preferences=preferences.path, margin=stage.margin, center=stage.center, balance_tags=stage.balance_tags
    )
    return train(ctx, stage, data=data, parent=initial, parents=[initial, preferences])
