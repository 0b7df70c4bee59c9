"""A MergeJob: several checkpoints in, one merged checkpoint out."""

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
"""What two checkpoints of one shape may differ in; the first one's is kept."""


def run(job: MergeJob) -> None:
    """Write the merged checkpoint into `job.output`. Weights only: training starts at step 0.

    Each rank reads what its part of the layout needs, and holds that part and one tensor of one layer of every model:
    the same bytes in every layout.

    Raises:
        ConfigError: the checkpoints differ in shape, family or vocabulary, or the method's needs are not met.
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
    """The merged model's shape: the first checkpoint's.

    Raises:
        ConfigError: another checkpoint, or the base, cannot be merged with it.
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
                f"{_name(folder)} has {field.name}={_words(theirs)} and {_name(first)} has {_words(ours)}: only "
                "checkpoints of one architecture can be merged. Give ones that were trained from a common parent."
            )
    if not same_tokenizer(first / "tokenizer", folder / "tokenizer"):
        raise ConfigError(
            f"{_name(folder)} has another tokenizer than {_name(first)}: their embeddings mean other tokens. "
            "Give checkpoints with the same vocabulary."
        )


def _name(folder: Path) -> str:
    """A folder of the store by its artifact's id, another one by its name."""
    return folder.name[:12] if len(folder.name) == 64 else folder.name


def _words(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
