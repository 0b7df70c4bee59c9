"""Run an UpcycleJob: convert a dense checkpoint to a mixture of experts. `plan` is its dry run."""

from dataclasses import dataclass, replace

import torch

from cupola_trainer import checkpoint, runtime
from cupola_trainer.config import ModelConfig, UpcycleJob
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.experts import mixture_of
from cupola_trainer.config.model.sizes import active_parameters, parameter_count
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.conversion.checkpoint_writer import outline, write
from cupola_trainer.conversion.model_writer import fill, whole_shapes
from cupola_trainer.reporting.progress import Report
from cupola_trainer.upcycling.layers import Upcycled


@dataclass(frozen=True)
class Plan:
    """The result of upcycling a dense model."""

    copies: int
    """Copies of each layer's FFN."""
    units: int
    """Intermediate units of all copies in a layer."""
    used: int
    """Units used in experts; the rest is discarded."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the full model's tensors, by checkpoint key."""


def run(job: UpcycleJob) -> None:
    """Write the mixture-of-experts checkpoint into `job.output`. Weights only: training starts at step 0.

    Each rank reads the dense layers that it needs, one at a time, and builds its own experts, so no rank holds the
    whole model. The result has the same bytes in every layout.

    Raises:
        ConfigError: the checkpoint already is a mixture of experts, or the layout does not fit the new model.
        CorruptArtifactError: the checkpoint does not verify.
    """
    dense = checkpoint.read_model(job.parent)
    model = mixture_of(dense, job.moe, router=job.router, match_dense=job.match_dense)
    validate_layout(model, job.layout)
    runtime.start(job.layout, job.seed)
    parameters = parameter_count(model)
    with Report(job.output, kind="upcycle", steps=1, parameters=parameters) as report:
        stored = StoredTensors(job.parent)
        tokenizer = job.parent / "tokenizer"
        write(
            job.output / "checkpoint",
            model,
            Upcycled(dense, job, stored.read),
            layout=job.layout,
            dtype=stored.outline("embedding.word_embeddings.weight").dtype,
            seed=job.seed,
            objective="upcycle",
            tokenizer=tokenizer if tokenizer.is_dir() else None,
        )
        report.step(1)
        report.complete("checkpoint", {"parameters": parameters, "active_parameters": active_parameters(model)})


def plan(dense: ModelConfig, job: UpcycleJob) -> Plan:
    """Dry-run an upcycling on the meta device: tensors have shapes but no data.

    Call `runtime.start` with `job.layout` first.

    Raises:
        ConfigError: see `mixture_of`.
    """
    model = mixture_of(dense, job.moe, router=job.router, match_dense=job.match_dense)
    source = whole_shapes(outline(dense, replace(job.layout, ep=1, etp=None)))
    chunks = outline(model, job.layout)
    upcycled = Upcycled(dense, job, lambda key, index: torch.empty(source[key][len(index) :], device="meta"))
    fill(chunks, upcycled)
    cut = upcycled.routed_cut(0)
    copies = cut.copies(dense.ffn_hidden_size)
    used = cut.num_experts * cut.expert_intermediate_size
    return Plan(copies, copies * dense.ffn_hidden_size, used, whole_shapes(chunks))
