"""Run a ReferenceJob: compute a frozen model's log-probabilities of the responses of preference pairs."""

import numpy as np

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import ReferenceJob
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.data.batches import row_unit
from cupola_trainer.forward import outputs
from cupola_trainer.objectives.dpo import DpoObjective
from cupola_trainer.objectives.inputs import required_tokenizer
from cupola_trainer.reporting.progress import Report


def run(job: ReferenceJob) -> None:
    """Write `output/reference/reference.npz`: "reference" [pairs, rows], in the objective's order.

    Raises:
        ConfigError: the checkpoint has no tokenizer or no language-model head or does not fit the layout,
            or no pair is usable.
        CorruptArtifactError: the checkpoint does not verify.
    """
    model = checkpoint.read_model(job.parent)
    if model.is_scalar:
        raise ConfigError(
            f"{job.parent} is a reward model (head=scalar), without a language-model head. Give a language model."
        )
    validate_layout(model, job.layout, job.batch, ranks=runtime.world_size())
    runtime.start(job.layout, job.seed)
    tokenizer = job.parent / "tokenizer"
    objective = DpoObjective(
        job.data,
        tokenizer=required_tokenizer(tokenizer if tokenizer.is_dir() else None, job.template_date, job.data.objective),
        sequence_length=job.batch.sequence_length,
        pairs_per_pass=job.batch.micro_batch_size,
        seed=job.seed,
    )
    objective.row_unit = row_unit()
    chunks = models.build(model, job.layout, seed=None, dtype=runtime.dtype(job.precision))
    checkpoint.load_weights(job.parent, chunks)
    for chunk in chunks:
        chunk.eval()
    with Report(job.output, kind="reference", steps=1, parameters=parameter_count(model)) as report:
        reference = objective.reference(lambda batch: outputs.token_losses(chunks, batch))
        if runtime.rank() == 0:
            (job.output / "reference").mkdir(exist_ok=True)
            np.savez(job.output / "reference" / "reference.npz", reference=reference)
        report.step(1)
        report.complete("reference", {"pairs": float(len(reference)), "mean_logprob": float(reference.mean())})
