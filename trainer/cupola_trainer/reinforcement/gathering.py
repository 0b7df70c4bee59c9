"""Making a rollout: questions are asked of the model in training, its answers scored, and their log-probabilities computed."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cupola_trainer import passes
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.config.reinforcement import ModelReward, ReinforcementData
from cupola_trainer.reinforcement.forwarding import Chunks, frozen, initial_of, over_rows
from cupola_trainer.reinforcement.judging import RewardModel
from cupola_trainer.reinforcement.queries import Query
from cupola_trainer.reinforcement.rewards import Scores, combine, judge, name_of
from cupola_trainer.reinforcement.rollouts import Rollout
from cupola_trainer.rollout.engine import engine_of
from cupola_trainer.rollout.sampling import Sampling


class Gatherer:
    """The models that a rollout takes: the one in training, its frozen reference, reward models."""

    def __init__(
        self,
        job: TrainJob,
        data: ReinforcementData,
        tokenizer: Any,
        model: ModelConfig,
        chunks: Chunks,
        keeps_reference: bool,
    ) -> None:
        """
        Args:
            chunks: of the model in training.
            keeps_reference: whether log-probabilities under the initial weights are wanted.

        Raises:
            ConfigError: a reward's function or model cannot be used.
        """
        self.job, self.data, self.config = job, data, data.rollout
        self.tokenizer, self.chunks = tokenizer, chunks
        self.engine = engine_of(self.config, chunks, tokenizer, model)
        self.sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
        )
        exact = torch.float32 if getattr(data, "anchor_rate", 0.0) else None  # a reference that moves
        self.reference = frozen(job, initial_of(job), model, exact) if keeps_reference else None
        self.reward_models = {
            name_of(reward): RewardModel(job, reward.checkpoint)
            for reward in data.rewards
            if isinstance(reward, ModelReward)
        }

    def gather(self, queries: Sequence[Query], number: int) -> Rollout:
        """Rollout `number` of the job: each question answered `group_size` times, all answers to one together.

        Its arrays then hold "rewards" [rows] (NaN: none could be had), "logps" and, with a reference, "ref_logps" [rows, s].
        """
        began = time.monotonic()
        asked = [query for query in queries for _ in range(self.config.group_size)]
        rollout, scores = self._ask(asked, self.sampling, seed=(self.job.seed << 32) + number + 1)
        drawn = time.monotonic() - began
        rollout.arrays["logps"] = self.logps(self.chunks, rollout)
        if self.reference:
            rollout.arrays["ref_logps"] = self.logps(self.reference, rollout)
        tokens = float(rollout.lengths.sum())
        rollout.metrics = self._report(rollout, scores) | {
            "rollout_tokens_per_second": tokens / drawn,
            "rollout_seconds": time.monotonic() - began,
        }
        return rollout

    def variances(self, queries: Sequence[Query]) -> np.ndarray:
        """Variance of the rewards of `group_size` answers to each question; 0 where none could be had."""
        asked = [query for query in queries for _ in range(self.config.group_size)]
        rewards = self._ask(asked, self.sampling, seed=self.job.seed << 32)[1].total
        groups = rewards.reshape(len(queries), -1)
        known = ~np.isnan(groups)
        filled = np.where(known, groups, 0.0)
        count = np.maximum(known.sum(axis=1), 1)
        mean = filled.sum(axis=1) / count
        found: np.ndarray = (np.where(known, groups - mean[:, None], 0.0) ** 2).sum(axis=1) / count
        return found

    def measure(self, queries: Sequence[Query]) -> dict[str, float]:
        """Mean reward of the greedy answers, and how many of them ended."""
        greedy = Sampling(max_new_tokens=self.config.max_new_tokens, temperature=0.0)
        rollout, scores = self._ask(list(queries), greedy, seed=0)
        known = ~np.isnan(scores.total)
        return {
            "reward": float(scores.total[known].mean()) if known.any() else math.nan,
            "finished": float(rollout.finished.mean()),
            "length": float(rollout.lengths.mean()),
        }

    def logps(self, chunks: Chunks, rollout: Rollout) -> np.ndarray:
        """log p of each answer's tokens as training computes them [rows, s]; 0 elsewhere."""
        losses = over_rows(rollout, self.job, lambda batch: passes.token_losses(chunks, batch))
        return np.where(rollout.mask, -losses, 0.0).astype(np.float32)

    def _ask(self, queries: list[Query], sampling: Sampling, seed: int) -> tuple[Rollout, Scores]:
        prompts = [query.prompt for query in queries]
        completions = self.engine.generate(prompts, sampling, seed=seed)
        rollout = Rollout.of(prompts, completions, self.job.batch.sequence_length)
        answers = [self.tokenizer.decode(done.tokens, skip_special_tokens=True) for done in completions]
        verdicts = judge(self.data.rewards, [query.row for query in queries], answers)
        for name, reward_model in self.reward_models.items():
            verdicts[name] = reward_model.judge(rollout)
        scores = combine(self.data.rewards, verdicts)
        rollout.arrays["rewards"] = scores.total
        return rollout, scores

    def _report(self, rollout: Rollout, scores: Scores) -> dict[str, float]:
        rewards, mask = scores.total, rollout.mask
        known = rewards[~np.isnan(rewards)]
        logps = rollout.arrays["logps"]
        tokens = max(int(mask.sum()), 1)
        told = {
            "reward": float(known.mean()) if len(known) else math.nan,
            "reward_std": float(known.std()) if len(known) else math.nan,
            "length": float(rollout.lengths.mean()),
            "cut": float((~rollout.finished).sum()),
            "entropy": float(-logps.sum() / tokens),  # the mean surprise of what was drawn estimates it
            "sampling_gap": float(np.abs(logps - rollout.sampling_logps).max()),
        }
        if "ref_logps" in rollout.arrays:
            told["reference_kl"] = float((logps - rollout.arrays["ref_logps"]).sum() / tokens)
        if len(scores.parts) > 1:
            told |= {f"reward_{name}": float(np.nanmean(part)) for name, part in scores.parts.items()}
        return told | {f"dropped_{name}": float(count) for name, count in scores.drops.items()}
