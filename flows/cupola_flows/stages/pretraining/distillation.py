"""Distillation of a teacher into a student."""

import json
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cupola_flows.execution.context import StageContext
from cupola_flows.execution.jobs import run_once
from cupola_flows.stages.base import Input, Taken, settings
from cupola_flows.stages.pretraining.shapes import ModelShape
from cupola_flows.stages.training import TrainStage, train
from cupola_platform.artifacts import Artifact
from cupola_trainer.config import DistillationData, DistillationSettings, LayoutConfig, ModelConfig, TeachJob


class DistillationStage(TrainStage, DistillationSettings):
    """Distill a teacher's next-token distributions into a student, on a corpus or on conversations."""

    renders: ClassVar[bool] = True

    kind: Literal["distillation"] = "distillation"
    teacher: Annotated[str | None, Input("checkpoint")] = None
    """Stage whose checkpoint is the teacher; None for the nearest earlier one."""
    parent: Annotated[str | None, Input("checkpoint", guess=None)] = None
    """Stage whose checkpoint is the student."""
    model: ModelShape | None = None
    """Shape of a new student, instead of `parent`: values, or a published shape (`preset: NAME`) with changes."""
    tokens: Annotated[str | None, Input("tokens", guess=None)] = None
    """Stage whose corpus to train on. Give this or `conversations`."""
    conversations: Annotated[str | None, Input("conversations", guess=None)] = None
    """Stage whose conversations to train on, with the loss on assistant tokens."""
    stored_top_k: int | None = Field(default=None, ge=1)
    """Run the teacher once before training and store this many top tokens per position, as an artifact that other
    students of the same text reuse. None runs the teacher during training."""
    teacher_layout: LayoutConfig | None = None
    """Layout of the teacher with `stored_top_k`; None for `layout`."""

    @model_validator(mode="after")
    def _one_student_one_text(self) -> "DistillationStage":
        if (self.model is None) == (self.parent is None):
            raise ValueError("give either `model` (a new student) or `parent` (a stage to start from), not both")
        if (self.tokens is None) == (self.conversations is None):
            raise ValueError("name either `tokens` or `conversations` to train on, not both")
        return self

    def run(self, ctx: StageContext, taken: Taken) -> Artifact:
        """Train the student on the teacher's next-token distributions."""
        teacher, tokens, conversations = taken.one("teacher"), taken.maybe("tokens"), taken.maybe("conversations")
        data = DistillationData(
            **settings(self, DistillationSettings) | {"pack": self.pack and self.layout.cp == 1},
            teacher=teacher.path,
            tokens=tokens.path if tokens else None,
            conversations=conversations.path if conversations else None,
        )
        parents = taken.all("teacher", "parent", "tokens", "conversations")
        if self.stored_top_k:
            taught = teachings(ctx, self, teacher, data, taken.all("tokens", "conversations"))
            data = data.but(teacher=None, stored=taught.path)
            parents.append(taught)
        vocabulary = json.loads((teacher.path / "model.json").read_text())["vocab_size"]
        model = replace(self.model, vocab_size=vocabulary) if self.model else None
        tokenizer = teacher.path / "tokenizer" if model else None
        parent = taken.maybe("parent")
        return train(ctx, self, taken, data, parent=parent, parents=parents, model=model, tokenizer=tokenizer)

    def shape(self, parent: ModelConfig | None) -> ModelConfig | None:
        return self.model or parent


def teachings(
    ctx: StageContext, stage: DistillationStage, teacher: Artifact, data: DistillationData, texts: list[Artifact]
) -> Artifact:
    """The teacher's top tokens for the stage's samples, computed once and reused by other students."""
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
    job = TeachJob(
        output=ctx.folder / "teach",
        seed=ctx.seed,
        template_date=ctx.template_date,
        parent=teacher.path,
        data=data.text,
        steps=stage.steps,
        batch=stage.batch,
        evaluate_batches=stage.evaluate_batches,
        top_k=stage.stored_top_k or 1,
        temperature=stage.temperature,
        layout=stage.teacher_layout or stage.layout,
    )
    return run_once(ctx, job, kind="teacher", config=config, parents=[teacher, *texts])
