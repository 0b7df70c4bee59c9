"""Run a MergeJob: merge several checkpoints into one."""

import dataclasses
from pathlib import Path

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import read_model
from cupola_trainer.checkpoint.compatibility import same_tokenizer
from cupola_trainer.config import MergeJob, ModelConfig
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.checkpoint_writer import write
from cupola_trainer.data.tokenizer_folders import tokenizer_of
from cupola_trainer.merging.tensors import Merged
from cupola_trainer.reporting.progress import Report

WITHOUT_SHAPE = ("init_std", "max_position_embeddings")
"""Settings in which checkpoints of the same shape may differ; those of the first are kept."""


def run(job: MergeJob) -> None:
    """Write the merged checkpoint into `job.output`. Weights only: training starts at step 0.

    Each rank reads only its part of the layout, and holds that part plus one tensor of one layer of every model. The
    result has the same bytes in every layout.

    Raises:
        ConfigError: the checkpoints differ in shape, family or vocabulary, or the method's requirements are not met.
        CorruptArtifactError: a checkpoint does not verify.
    """
    model = check(job)
    validate_layout(model, job.layout)
    runtime.start(job.layout, job.seed)
    parameters = parameter_count(model)
    with Report(job.output, kind="merge", steps=1, parameters=parameters) as report:
        merged = Merged(
            job, model, [StoredTensors(folder) for folder in job.checkpoints],
            StoredTensors(job.base) if job.base else None,
        )  # fmt: skip
        write(
            job.output / "checkpoint",
            model,
            merged,
            layout=job.layout,
            dtype=merged.stored[0].outline("embedding.word_embeddings.weight").dtype,
            seed=job.seed,
            objective="merge",
            tokenizer=tokenizer_of(job.checkpoints),
        )
        report.step(1)
        report.complete("checkpoint", {"parameters": parameters, "merged": len(job.checkpoints)})


def check(job: MergeJob) -> ModelConfig:
    """The merged model's configuration, which is the first checkpoint's.

    Raises:
        ConfigError: the base or another checkpoint cannot be merged with it.
    """
    first, *others = job.checkpoints
    model = read_model(first)
    for folder in [*others, *([job.base] if job.base else [])]:
        _check_alike(first, model, folder, read_model(folder))
    return model


def _check_alike(first: Path, model: ModelConfig, folder: Path, other: ModelConfig) -> None:
    for field in dataclasses.fields(model):
        ours, theirs = getattr(model, field.name), getattr(other, field.name)
        if ours != theirs and field.name not in WITHOUT_SHAPE:
            raise ConfigError(
                f"{_name(folder)} has {field.name}={_shortened(theirs)} and {_name(first)} has {_shortened(ours)}: "
                "only checkpoints of one architecture can be merged. Give checkpoints trained from a common parent."
            )
    if not same_tokenizer(first / "tokenizer", folder / "tokenizer"):
        raise ConfigError(
            f"{_name(folder)} has a different tokenizer from {_name(first)}, so their embeddings stand for different "
            "tokens. Give checkpoints with the same vocabulary."
        )


def _name(folder: Path) -> str:
    """A folder's name; in the store, its shortened artifact id."""
    return folder.name[:12] if len(folder.name) == 64 else folder.name


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
