"""Run a PruneJob: measure importance on held-out text and prune a checkpoint to a smaller one."""

from itertools import islice

import numpy as np
import torch
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.checkpoint.compatibility import check_tokenizer
from cupola_trainer.config import ModelConfig, PruneJob
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.checkpoint_writer import write
from cupola_trainer.evaluation.likelihood import heldout_documents
from cupola_trainer.pruning.choice import choose
from cupola_trainer.pruning.importance import Importance, measure
from cupola_trainer.pruning.tensors import Pruned
from cupola_trainer.reporting.progress import Report

ROWS = 8
"""Sequences per forward pass."""


def run(job: PruneJob) -> None:
    """Write the smaller checkpoint into `job.output`. Weights only: training starts at step 0.

    To measure importance, each rank holds the whole model (dp only). Dropping named layers needs no measurement, and
    no more memory than the result plus one tensor of one layer.

    Raises:
        ConfigError: a size exceeds the model's, or the layout splits the model.
        CorruptArtifactError: the checkpoint does not verify.
    """
    model = checkpoint.read_model(job.parent)
    small = job.to.shape(model)
    if job.layout.world_size != job.layout.dp or job.layout.ep > 1:
        raise ConfigError("layout: pruning needs the whole model on each rank. Use dp only.")
    validate_layout(small, job.layout)
    runtime.start(job.layout, job.seed)
    before, after = parameter_count(model), parameter_count(small)
    with Report(job.output, kind="prune", steps=2, parameters=after) as report:
        importance = _importance(job, model) if job.to.by_importance else None
        report.step(1)
        kept = choose(model, job.to, importance)
        stored = StoredTensors(job.parent)
        tokenizer = job.parent / "tokenizer"
        extra = {"pruning": {"kept_layers": list(kept.layers)}}
        if importance is not None:
            extra["pruning"]["block_influence"] = [round(score, 6) for score in importance.layers.tolist()]
        write(
            job.output / "checkpoint",
            job.to.shape(model, kept.layers),
            Pruned(model, kept, stored.read),
            layout=job.layout,
            dtype=stored.outline("embedding.word_embeddings.weight").dtype,
            seed=job.seed,
            objective="prune",
            tokenizer=tokenizer if tokenizer.is_dir() else None,
            extra=extra,
        )
        report.step(2)
        report.complete("checkpoint", {"parameters": after, "parameters_before": before})


def _importance(job: PruneJob, model: ModelConfig) -> Importance:
    assert job.tokens is not None
    check_tokenizer(job.parent / "tokenizer", job.tokens)
    [chunk] = models.build(model, job.layout, seed=None, plain_layers=True)  # to see what the norms give
    checkpoint.load_weights(job.parent, [chunk])
    rows = sequences(job, min(job.sequence_length, model.max_position_embeddings))
    importance: Importance = measure(model, chunk, list(islice(rows, runtime.rank(), None, runtime.world_size())))
    return importance


def sequences(job: PruneJob, length: int) -> list[Tensor]:
    """The held-out documents, concatenated and split into batches [at most ROWS, length].

    Raises:
        ConfigError: there are fewer tokens than one sequence.
    """
    assert job.tokens is not None
    stream = torch.from_numpy(np.concatenate(heldout_documents(job.tokens, job.max_tokens)))
    rows = stream[: len(stream) // length * length].view(-1, length)
    if not len(rows):
        raise ConfigError(
            f"{job.tokens} holds {len(stream)} held-out tokens, fewer than sequence_length={length}. Lower it."
        )
    return list(rows.split(ROWS))
