"""A student that learns from a teacher."""

import json
from dataclasses import replace

from cupola_flows.context import StageContext
from cupola_flows.jobs import run_job
from cupola_flows.stage_code import TEACHER
from cupola_flows.stages import (
    DistillationStage,
)
from cupola_flows.training import train
from cupola_platform.artifacts import Artifact, code_version, fingerprint
from cupola_trainer.config import DistillationData, TeachJob


def distillation(
    ctx: StageContext,
    stage: DistillationStage,
    teacher: Artifact,
    parent: Artifact | None,
    tokens: Artifact | None,
    conversations: Artifact | None,
) -> Artifact:
    """Train a student on what a teacher says of each next token."""
    data = DistillationData(
        teacher=teacher.path,
        tokens=tokens.path if tokens else None,
        conversations=conversations.path if conversations else None,
        divergence=stage.divergence,
        beta=stage.beta,
        temperature=stage.temperature,
        token_loss=stage.token_loss,
        weights=stage.weights,
        pack=stage.pack and stage.layout.cp == 1,
    )
    sources = [artifact for artifact in (parent, tokens, conversations) if artifact]
    if stage.stored_top_k:
        taught = teachings(ctx, stage, teacher, data, [artifact for artifact in (tokens, conversations) if artifact])
        data = replace(data, teacher=None, stored=taught.path)
        sources.append(taught)
    vocabulary = json.loads((teacher.path / "model.json").read_text())["vocab_size"]
    model = replace(stage.model, vocab_size=vocabulary) if stage.model else None
    tokenizer = teacher.path / "tokenizer" if model else None
    return train(ctx, stage, data=data, parent=parent, parents=[teacher, *sources], model=model, tokenizer=tokenizer)


def teachings(
    ctx: StageContext, stage: DistillationStage, teacher: Artifact, data: DistillationData, texts: list[Artifact]
) -> Artifact:
    """What the teacher says of the stage's samples: asked once, whatever students then learn from it."""
    config = {
        "seed": ctx.seed,
        "samples": stage.steps * stage.batch.global_batch_size,
        "heldout": stage.evaluate_batches * stage.batch.global_batch_size,
        "sequence_length": stage.batch.sequence_length,
        "top_k": stage.stored_top_k,
        "temperature": stage.temperature,
        "weights": stage.weights,
        "pack": data.pack,
        "template_date": ctx.template_date.isoformat() if ctx.template_date else None,
    }
    mark = fingerprint({"teacher": config}, [teacher.digest, *(text.digest for text in texts)], code_version(*TEACHER))
    found = ctx.workspace.find(mark)
    if found:
        return found
    job = TeachJob(
        output=ctx.folder / "teach",
        seed=ctx.seed,
        template_date=ctx.template_date,
        initial=teacher.path,
        data=data.text,
        steps=stage.steps,
        batch=stage.batch,
        evaluate_batches=stage.evaluate_batches,
        top_k=stage.stored_top_k or 1,
        temperature=stage.temperature,
        parallel=stage.teacher_layout or stage.layout,
    )
    result = run_job(ctx, job)
    return ctx.workspace.publish(
        result.folder,
        kind="teacher",
        parents=[teacher, *texts],
        stage=f"{ctx.name}-teacher",
        recipe=ctx.recipe.name,
        fingerprint=mark,
        config=config,
        metrics=result.metrics,
    )
