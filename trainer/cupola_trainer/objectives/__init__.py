"""What a model is trained for: one file an objective, and the losses as pure functions of tensors."""

from dataclasses import replace
from pathlib import Path

from cupola_platform.errors import ConfigError
from cupola_trainer.config import NextTokenData, SftData, TrainJob
from cupola_trainer.objectives.objective import Batch, Forward, Objective, Reads
from cupola_trainer.objectives.preference_losses import dpo_loss

__all__ = ["Batch", "Forward", "Objective", "Reads", "build_objective", "dpo_loss"]


def build_objective(job: TrainJob, tokenizer: Path | None) -> Objective:
    """The job's objective over its data; `tokenizer` is the model's tokenizer folder. `runtime.start` comes first.

    Raises:
        ConfigError, SourceError: the data are missing, malformed or too few.
    """
    length = job.batch.sequence_length
    if isinstance(job.data, NextTokenData):
        from cupola_trainer.objectives.next_token import NextTokenObjective

        samples = job.steps * job.batch.global_batch_size
        cache = job.output / "index"
        return NextTokenObjective(job.data, batch=job.batch, samples=samples, seed=job.seed, cache=cache)
    if tokenizer is None:
        raise ConfigError(
            f"the objective {job.data.objective} needs a tokenizer: name its folder, or an initial checkpoint."
        )
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(job.data, SftData):
        from cupola_trainer.objectives.sft import SftObjective

        data = replace(job.data, pack=job.data.pack and job.parallel.cp == 1)  # attention over cp ranks takes no mask
        return SftObjective(data, tokenizer=loaded, sequence_length=length, seed=job.seed)
    from cupola_trainer.objectives.dpo import DpoObjective

    pairs = job.batch.micro_batch_size
    return DpoObjective(job.data, tokenizer=loaded, sequence_length=length, pairs_per_pass=pairs, seed=job.seed)
