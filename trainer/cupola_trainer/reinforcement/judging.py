"""Reward models: what a checkpoint with a scalar head says of whole answers."""

from pathlib import Path

import numpy as np

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, passes
from cupola_trainer.config import TrainJob
from cupola_trainer.identity import check_tokenizer
from cupola_trainer.layout import validate_layout
from cupola_trainer.reinforcement.forwarding import frozen, over_rows
from cupola_trainer.reinforcement.rollouts import Rollout


class RewardModel:
    """A frozen model in the job's layout."""

    def __init__(self, job: TrainJob, folder: Path) -> None:
        """
        Raises:
            ConfigError: the checkpoint is no reward model, has another tokenizer, or does not fit the layout.
            CorruptArtifactError: it does not verify.
        """
        model = checkpoint.read_model(folder)
        if not model.is_scalar:
            raise ConfigError(f"{folder} is a language model, no reward model. Give a checkpoint of a reward stage.")
        if job.initial:
            check_tokenizer(job.initial / "tokenizer", folder)
        validate_layout(model, job.parallel)
        self.job = job
        self.chunks = frozen(job, folder, model)

    def judge(self, rollout: Rollout) -> list[float | str]:
        """The number at each answer's last token [rows]."""
        values = over_rows(rollout, self.job, lambda batch: passes.values(self.chunks, batch))
        scores = values[np.arange(len(rollout)), np.minimum(rollout.ends(), values.shape[1] - 1)]
        return [float(score) if np.isfinite(score) else "reward_not_finite" for score in scores]
