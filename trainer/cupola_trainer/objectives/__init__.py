"""What a model is trained for: one file an objective, and the losses as pure functions of tensors."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from cupola_platform.errors import ConfigError
from cupola_trainer.config import DistillationData, ModelConfig, NextTokenData, RewardData, SftData, TrainJob
from cupola_trainer.config.reinforcement import ReinforcementData
from cupola_trainer.data.tokenizer_folders import load_tokenizer
from cupola_trainer.identity import check_tokenizer
from cupola_trainer.objectives.distillation_losses import distillation_loss, topk_distillation_loss
from cupola_trainer.objectives.objective import Batch, Forward, Objective, Reads
from cupola_trainer.objectives.preference_losses import dpo_loss, reward_loss

if TYPE_CHECKING:
    from cupola_trainer.objectives.sft import SftObjective

__all__ = [
    "Batch",
    "Forward",
    "Objective",
    "Reads",
    "build_objective",
    "distillation_loss",
    "dpo_loss",
    "reward_loss",
    "topk_distillation_loss",
]


def build_objective(job: TrainJob, tokenizer: Path | None, model: ModelConfig | None = None) -> Objective:
    """The job's objective over its data. `runtime.start` comes first.

    Args:
        tokenizer: the model's tokenizer folder.
        model: the model that learns; distillation needs it.

    Raises:
        ConfigError, SourceError: the data are missing, malformed or too few.
    """
    length, data = job.batch.sequence_length, job.data
    if isinstance(data, DistillationData):
        from cupola_trainer.objectives.distillation import LiveTeacher, StoredTeacher

        text = build_objective(job.but(data=data.text), tokenizer)
        if data.stored:
            return StoredTeacher(data, text)
        assert model
        assert data.teacher
        check_tokenizer(tokenizer, data.teacher)
        return LiveTeacher(data, text, student=model, parallel=job.parallel)
    if isinstance(data, NextTokenData):
        from cupola_trainer.objectives.next_token import NextTokenObjective

        samples = job.steps * job.batch.global_batch_size
        cache = job.output / "index"
        return NextTokenObjective(data, batch=job.batch, samples=samples, seed=job.seed, cache=cache)
    if tokenizer is None:
        raise ConfigError(
            f"the objective {data.objective} needs a tokenizer: name its folder, or an initial checkpoint."
        )
    loaded = load_tokenizer(tokenizer, job.template_date)
    if isinstance(data, SftData):
        from cupola_trainer.objectives.sft import SftObjective

        data = data.but(pack=data.pack and job.parallel.cp == 1)  # attention over cp ranks takes no mask
        sft = SftObjective(data, tokenizer=loaded, sequence_length=length, seed=job.seed)
        return _with_replay(sft, job, data, tokenizer) if data.pretraining else sft
    if isinstance(data, RewardData):
        from cupola_trainer.objectives.reward import RewardObjective

        return RewardObjective(data, tokenizer=loaded, sequence_length=length, seed=job.seed)
    if isinstance(data, ReinforcementData):
        from cupola_trainer.reinforcement import build

        return build(job, loaded, tokenizer)
    from cupola_trainer.objectives.dpo import DpoObjective

    pairs = job.batch.micro_batch_size
    return DpoObjective(data, tokenizer=loaded, sequence_length=length, pairs_per_pass=pairs, seed=job.seed)


def _with_replay(sft: "SftObjective", job: TrainJob, data: SftData, tokenizer: Path) -> Objective:
    """The same with pretraining text among its rows."""
    from cupola_trainer.objectives.next_token import NextTokenObjective
    from cupola_trainer.objectives.replay import ReplayObjective, rows_with_text, text_rows

    assert data.pretraining
    check_tokenizer(tokenizer, data.pretraining)
    rows = job.steps * job.batch.global_batch_size
    if data.epochs:
        rows = math.ceil(data.epochs * rows_with_text(sft.epoch or 0, data.pretraining_share))
    text = NextTokenObjective(
        NextTokenData(tokens=data.pretraining),
        batch=job.batch,
        samples=text_rows(rows, data.pretraining_share) + 1,
        seed=job.seed,
        cache=job.output / "index",
    )
    return ReplayObjective(sft, text, data.pretraining_share)
