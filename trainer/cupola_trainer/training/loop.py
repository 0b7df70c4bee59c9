"""The training loop: `train` runs a job to its last step, across interruptions."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint.compatibility import check_architecture, check_head, check_tokenizer
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.memory import forecast
from cupola_trainer.config.model.long_context import stretch
from cupola_trainer.config.precision_rules import check_memory, fp8_unit, validate_precision
from cupola_trainer.data.batches import row_unit
from cupola_trainer.data.tokenizer_folders import keep_date
from cupola_trainer.forward import outputs
from cupola_trainer.lora import attaching
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.online import OnlineObjective
from cupola_trainer.runtime import folders
from cupola_trainer.runtime.precision import check_device, memory
from cupola_trainer.training.identity import check_resumable, data_identity
from cupola_trainer.training.objective_table import build_objective
from cupola_trainer.training.resume import resume
from cupola_trainer.training.run import BeginAgain, Run


def train(job: TrainJob, terminated: Callable[[], bool]) -> bool:
    """Train to `job.steps`, from the newest checkpoint in `job.output` that verifies. Called on every rank.

    Args:
        terminated: whether this process received a termination request; the job then saves after the current step.

    Returns:
        whether the job is complete; False if it was terminated before.

    Raises:
        ConfigError, SourceError, NotFoundError, CorruptArtifactError: the job cannot be started.
        StageFailedError: more faults than `job.faults` allows, or the last checkpoint could not be saved.
    """
    while True:
        try:
            return _train(job, terminated)
        except BeginAgain:
            continue


def _train(job: TrainJob, terminated: Callable[[], bool]) -> bool:
    run = begin(job)
    run.start()
    try:
        while run.progress.step < run.job.steps:
            if runtime.any_rank(terminated()):
                run.preempt()
                return False
            run.step()
        run.complete()
    finally:
        run.close()
    return True


def begin(job: TrainJob) -> Run:
    """Build the job's model, data and optimizer, and load its newest checkpoint. Called on every rank.

    Raises:
        ConfigError, SourceError, NotFoundError, CorruptArtifactError: the job cannot be started.
    """
    model, tokenizer = _model_and_tokenizer(job)
    validate_layout(
        model,
        job.layout,
        job.batch,
        reset_at_documents=getattr(job.data, "reset_at_documents", False),
        lengths=getattr(job.data, "lengths", None),
        copying=getattr(job.data, "copying", None),
        ranks=runtime.world_size(),
    )
    validate_precision(model, job, job.layout)
    check_device(job.precision, job.fp8, job.layout)
    size, frozen = runtime.dtype(job.precision).itemsize, job.lora is not None
    check_memory(forecast(model, job.layout, job.batch, job.optimizer, size, frozen=frozen), memory())
    if job.parent:
        check_head(job.parent, checkpoint.read_model(job.parent), model)
    if job.parent and job.model:
        check_architecture(job.parent, model, replace(checkpoint.read_model(job.parent), head=model.head))
    if (tokens := getattr(job.data, "tokens", None)) is not None:
        check_tokenizer(tokenizer, tokens)
    runtime.start(job.layout, job.seed)
    tokenizer = folders.on_each_folder(lambda: _tokenizer_with_date(job, tokenizer))
    data = runtime.on_first_rank(lambda: data_identity(job))
    check_resumable(job.output / "checkpoints", model, {} if job.allow_data_change else data)
    objective = build_objective(_inputs(job, tokenizer, model))
    objective.row_unit = math.lcm(row_unit(), fp8_unit(job.layout, job.precision, job.fp8))
    job = _with_steps(job, objective)
    dtype = runtime.dtype(job.precision)
    fp8 = job.fp8 if job.precision == "fp8" else None
    chunks = models.build(model, job.layout, seed=job.seed, dtype=dtype, plain_layers=job.lora is not None, fp8=fp8)
    if job.parent:
        checkpoint.load_weights(job.parent, chunks)
    if job.lora:
        attaching.attach(chunks, job.lora, model, job.layout, job.seed)
    trainee = optim.build(chunks, job.layout, job.optimizer, job.steps)
    if job.optimizer.merging:
        optim.merge_online(trainee, job.optimizer.merging, job.parent, model, job.seed)
    if isinstance(objective, OnlineObjective):
        objective.attach(trainee, model)
    objective.prepare(lambda batch: outputs.token_losses(trainee.chunks, batch))
    progress = resume(job.output / "checkpoints", trainee)
    if isinstance(objective, OnlineObjective):
        objective.resume(progress)
    run = Run(job, model, tokenizer, objective, trainee, progress, data)
    attaching.check_resumed(run.progress, run.adapter)
    return run


def _with_steps(job: TrainJob, objective: Objective) -> TrainJob:
    """The job with `epochs` converted to steps, rounded up."""
    epochs: float | None = getattr(job.data, "epochs", None)
    if epochs is None:
        return job
    assert objective.epoch
    steps = math.ceil(epochs * objective.epoch / job.batch.global_batch_size)
    data: Any = job.data
    return job.but(steps=steps, data=data.but(epochs=None))


def _inputs(job: TrainJob, tokenizer: Path | None, model: ModelConfig) -> ObjectiveInputs:
    return ObjectiveInputs(
        name=job.objective_name,
        data=job.data,
        batch=job.batch,
        steps=job.steps,
        seed=job.seed,
        output=job.output,
        tokenizer=tokenizer,
        template_date=job.template_date,
        model=model,
        parent=job.parent,
        layout=job.layout,
        precision=job.precision,
        dry=job.dry,
    )


def _model_and_tokenizer(job: TrainJob) -> tuple[ModelConfig, Path | None]:
    model = job.model or (checkpoint.read_model(job.parent) if job.parent else None)
    if model and job.positions:
        if job.model:
            raise ConfigError(
                "the job sets both model and positions, but positions are changed in a parent checkpoint. "
                "Set parent instead of model."
            )
        model = stretch(model, job.positions, job.batch.sequence_length)
    if model is None:
        raise ConfigError("the job has neither a model nor a parent checkpoint. Set one of them.")
    model = replace(model, head=getattr(job.data, "head", "language_model"))
    if not model.vocab_size:
        raise ConfigError("model.vocab_size=0 is not set. Set it to the tokenizer's size, padded to a multiple of 64.")
    if job.tokenizer and not job.tokenizer.is_dir():
        raise NotFoundError(f"tokenizer {job.tokenizer} is not a folder. Give the folder of a saved tokenizer.")
    inherited = job.parent / "tokenizer" if job.parent else None
    return model, job.tokenizer or (inherited if inherited and inherited.is_dir() else None)


def _tokenizer_with_date(job: TrainJob, tokenizer: Path | None) -> Path | None:
    """The tokenizer to save with checkpoints, with the job's date in it, so that generation uses the same date."""
    if tokenizer is None or job.template_date is None:
        return tokenizer
    return keep_date(tokenizer, job.template_date, to=job.output / "tokenizer")
