"""A ReferenceJob: pairs in, a frozen model's log-probabilities of their answers out."""

import numpy as np

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, passes, runtime
from cupola_trainer.config import ReferenceJob, TrainJob
from cupola_trainer.layout import validate_layout
from cupola_trainer.objectives import build_objective
from cupola_trainer.reporting import Report
from cupola_trainer.sizes import parameter_count


def run(job: ReferenceJob) -> None:
    """Write `output/reference/reference.npz`, "reference" [pairs, 2], in the order of the objective.

    Raises:
        ConfigError: the checkpoint has no tokenizer, gives no words, or does not fit the layout; or there is no usable pair.
        CorruptArtifactError: the checkpoint does not verify.
    """
    model = checkpoint.read_model(job.initial)
    if model.is_scalar:
        raise ConfigError(f"{job.initial} is a reward model (head=scalar): it says nothing. Name a language model.")
    validate_layout(model, job.parallel, job.batch, ranks=runtime.world_size())
    runtime.start(job.parallel, job.seed)
    training = TrainJob(
        output=job.output, initial=job.initial, steps=1, parallel=job.parallel, batch=job.batch, data=job.data,
        template_date=job.template_date,
    )  # fmt: skip
    tokenizer = job.initial / "tokenizer"
    objective = build_objective(training, tokenizer if tokenizer.is_dir() else None)
    chunks = models.build(model, job.parallel, seed=None, dtype=runtime.dtype(job.precision))
    checkpoint.load_weights(job.initial, chunks)
    for chunk in chunks:
        chunk.eval()
    with Report(job.output, kind="reference", steps=1, parameters=parameter_count(model)) as report:
        objective.prepare(lambda batch: passes.token_losses(chunks, batch))
        found = objective.state()["reference"]
        if runtime.rank() == 0:
            (job.output / "reference").mkdir(exist_ok=True)
            np.savez(job.output / "reference" / "reference.npz", reference=found)
        report.step(1)
        report.complete("reference", {"pairs": float(len(found)), "mean_logprob": float(found.mean())})
