"""A PruneJob: held-out text shows what matters, and a smaller checkpoint is cut out of the larger one."""

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
"""Sequences of one forward pass."""


def run(job: PruneJob) -> None:
    """Write the smaller checkpoint into `job.output`. Weights only: training starts at step 0.

    To measure, each rank holds the whole model (dp only). Named layers are dropped without: then no more than one
    tensor of one layer beside what is written.

    Raises:
        ConfigError: a size above the model's, or a layout that splits the model.
        CorruptArtifactError: the checkpoint does not verify.
    """
    model = checkpoint.read_model(job.parent)
    small = job.to.shape(model)
    if job.layout.world_size != job.layout.dp or job.layout.ep > 1:
        raise ConfigError("layout: pruning looks at the whole model on each rank. Use dp alone.")
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
    [chunk] = models.build(model, job.layout, seed=None)
    checkpoint.load_weights(job.parent, [chunk])
    rows = sequences(job, min(job.sequence_length, model.max_position_embeddings))
    importance: Importance = measure(model, chunk, list(islice(rows, runtime.rank(), None, runtime.world_size())))
    return importance


def sequences(job: PruneJob, length: int) -> list[Tensor]:
    """The held-out documents one after the other, cut into rows [at most ROWS, length].

    Raises:
        ConfigError: there are fewer tokens than one row.
    """
    assert job.tokens is not None
    stream = torch.from_numpy(np.concatenate(heldout_documents(job.tokens, job.max_tokens)))
    rows = stream[: len(stream) // length * length].view(-1, length)
    if not len(rows):
        raise ConfigError(f"{job.tokens} holds {len(stream)} held-out tokens, and sequence_length={length}. Lower it.")
    return list(rows.split(ROWS))
