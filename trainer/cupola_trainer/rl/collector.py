"""Collect rollouts: generate responses with the model in training, score them and compute log-probabilities."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint.compatibility import check_tokenizer
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, Precision
from cupola_trainer.config.rl import ReinforcementData
from cupola_trainer.config.scorers import RewardModelReward
from cupola_trainer.forward import outputs
from cupola_trainer.forward.schedule import Chunks
from cupola_trainer.generation.engine import engine_of
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.objectives.losses.policy_gradient import length_penalty
from cupola_trainer.rl.inference import load_frozen, over_rows
from cupola_trainer.rl.prompts import Prompt
from cupola_trainer.rl.reward_model import RewardModel
from cupola_trainer.rl.rewards import Scores, combine, name_of, score_responses
from cupola_trainer.rl.rollouts import Rollout

MorePrompts = Callable[[int], Sequence[Prompt]]
"""Gives the next prompts, as many as it is asked for."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """The job's settings that a collector needs."""

    data: ReinforcementData
    parent: Path
    """Checkpoint folder of the initial policy, which is the reference and has the reward models' tokenizer."""
    batch: BatchConfig
    layout: LayoutConfig
    seed: int
    precision: Precision = "auto"


class RolloutCollector:
    """Collects rollouts with the model in training, its reference and the reward models."""

    def __init__(
        self,
        settings: RolloutSettings,
        tokenizer: Any,
        model: ModelConfig,
        chunks: Chunks,
        *,
        keeps_reference: bool,
        scores_policy: bool,
    ) -> None:
        """
        Args:
            chunks: the model in training.
            keeps_reference: whether to compute log-probabilities under the initial weights.
            scores_policy: whether to compute them under the current weights as training does.

        Raises:
            ConfigError: a reward function or reward model is not usable.
        """
        self.settings, self.data, self.config = settings, settings.data, settings.data.rollout
        self.tokenizer, self.chunks, self.scores_policy = tokenizer, chunks, scores_policy
        self.engine = engine_of(self.config, chunks, tokenizer, model)
        self.sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
        )
        self.reference = self._load_reference(model) if keeps_reference else None
        self.reward_models = {
            name_of(reward): self._load_reward_model(reward.checkpoint)
            for reward in self.data.rewards
            if isinstance(reward, RewardModelReward)
        }

    def _load_reference(self, model: ModelConfig) -> Chunks:
        moves = getattr(self.data, "ema_rate", 0.0) > 0  # its average needs fp32
        dtype = torch.float32 if moves else runtime.dtype(self.settings.precision)
        return load_frozen(self.settings.parent, model, self.settings.layout, dtype)

    def _load_reward_model(self, folder: Path) -> RewardModel:
        check_tokenizer(self.settings.parent / "tokenizer", folder)
        return RewardModel(folder, self.settings.layout, precision=self.settings.precision)

    def collect(self, prompts: Sequence[Prompt], number: int, more: MorePrompts | None = None) -> Rollout:
        """Collect rollout `number` of the job: `samples_per_prompt` responses to each prompt, grouped by prompt.

        Its arrays hold "rewards" [rows] (NaN if scoring failed) and, where they are computed, "logps" and "ref_logps"
        [rows, s]. Its metrics are of all responses drawn, but for those of log-probabilities.

        Args:
            more: gives as many further prompts as it is asked for, which take the place of prompts whose responses all
                have the same reward, up to `max_draws`. None to keep all.
        """
        began = time.monotonic()
        drawn, scores = self._draw(prompts, number, more)
        rollout = drawn.rows(rows_kept(scores.total, self.config.samples_per_prompt, len(prompts)))
        generation_seconds = time.monotonic() - began
        if self.scores_policy:
            rollout.arrays["logps"] = self.logps(self.chunks, rollout)
        if self.reference:
            rollout.arrays["ref_logps"] = self.logps(self.reference, rollout)
        rollout.metrics = self._report(drawn, rollout, scores) | {
            "rollout_tokens_per_second": float(drawn.lengths.sum()) / generation_seconds,
            "rollout_seconds": time.monotonic() - began,
        }
        return rollout

    def variances(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Variance of the rewards of `samples_per_prompt` responses to each prompt; 0 if scoring failed."""
        groups = self._sample(prompts, 0)[1].total.reshape(len(prompts), -1)
        known = ~np.isnan(groups)
        filled = np.where(known, groups, 0.0)
        count = np.maximum(known.sum(axis=1), 1)
        mean = filled.sum(axis=1) / count
        variances: np.ndarray = (np.where(known, groups - mean[:, None], 0.0) ** 2).sum(axis=1) / count
        return variances

    def measure(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Mean reward of greedy responses, the fraction that finished, and their mean length."""
        greedy = Sampling(max_new_tokens=self.config.max_new_tokens, temperature=0.0)
        rollout, scores = self._respond(list(prompts), greedy, seed=0)
        known = ~np.isnan(scores.total)
        return {
            "reward": float(scores.total[known].mean()) if known.any() else math.nan,
            "finished": float(rollout.finished.mean()),
            "length": float(rollout.lengths.mean()),
        }

    def logps(self, chunks: Chunks, rollout: Rollout) -> np.ndarray:
        """Log-probabilities of the response tokens [rows, s], computed as in training; 0 elsewhere."""
        size = self.settings.batch.micro_batch_size
        losses = over_rows(rollout, size, lambda batch: outputs.token_losses(chunks, batch))
        return np.where(rollout.mask, -losses, 0.0).astype(np.float32)

    def _draw(self, prompts: Sequence[Prompt], number: int, more: MorePrompts | None) -> tuple[Rollout, Scores]:
        """Responses to the prompts, then to others for those whose responses are alike: as many as give enough if their
        share stays what it was."""
        drawn, scores = self._sample(prompts, number + 1)
        for draw in range(1, self.config.max_draws if more else 1):
            differ = groups_differ(scores.total, self.config.samples_per_prompt)
            missing = len(prompts) - int(differ.sum())
            if missing <= 0:
                break
            count = min(len(prompts), math.ceil(missing * len(differ) / max(int(differ.sum()), 1)))
            assert more
            further = self._sample(more(count), (draw << 24) + number + 1)
            drawn, scores = drawn.followed_by(further[0]), scores.followed_by(further[1])
        if np.isnan(scores.total).all():
            reasons = ", ".join(f"{name} {count}" for name, count in scores.drops.items())
            raise ConfigError(
                f"rollout {number}: none of its {len(drawn)} responses has a reward ({reasons}). Try the rewards on "
                "some responses first."
            )
        return drawn, scores

    def _sample(self, prompts: Sequence[Prompt], stream: int) -> tuple[Rollout, Scores]:
        """`samples_per_prompt` scored responses to each prompt."""
        repeated = [prompt for prompt in prompts for _ in range(self.config.samples_per_prompt)]
        return self._respond(repeated, self.sampling, seed=(self.settings.seed << 32) + stream)

    def _respond(self, prompts: list[Prompt], sampling: Sampling, seed: int) -> tuple[Rollout, Scores]:
        tokens = [prompt.tokens for prompt in prompts]
        completions = self.engine.generate(tokens, sampling, seed=seed)
        rollout = Rollout.of(tokens, completions, self.settings.batch.sequence_length)
        responses = [self.tokenizer.decode(done.tokens, skip_special_tokens=True) for done in completions]
        verdicts = score_responses(self.data.rewards, [prompt.row for prompt in prompts], responses)
        for name, reward_model in self.reward_models.items():
            verdicts[name] = reward_model.score_rollout(rollout, self.settings.batch.micro_batch_size)
        scores = combine(self.data.rewards, verdicts)
        if self.config.length_buffer and sampling is self.sampling:  # not when measuring
            lengths = torch.from_numpy(np.asarray(rollout.lengths, dtype=np.float64))
            late = length_penalty(lengths, self.config.max_new_tokens, self.config.length_buffer).numpy()
            scores = Scores(scores.total + late, {**scores.parts, "length": late}, scores.drops)
        rollout.arrays["rewards"] = scores.total
        return rollout, scores

    def _report(self, drawn: Rollout, rollout: Rollout, scores: Scores) -> dict[str, float]:
        known = scores.total[~np.isnan(scores.total)]
        logps = rollout.arrays.get("logps", rollout.sampling_logps)
        tokens = max(int(rollout.mask.sum()), 1)
        metrics = {
            "reward": float(known.mean()) if len(known) else math.nan,
            "reward_std": float(known.std()) if len(known) else math.nan,
            "length": float(drawn.lengths.mean()),
            "truncated": float((~drawn.finished).sum()),
            "entropy": float(-logps.sum() / tokens),  # estimated by the mean surprisal of sampled tokens
        }
        if self.config.max_draws > 1:
            metrics["prompts_drawn"] = float(len(drawn) // self.config.samples_per_prompt)
        if "ref_logps" in rollout.arrays:
            metrics["reference_kl"] = float((logps - rollout.arrays["ref_logps"]).sum() / tokens)
        if len(scores.parts) > 1:
            metrics |= {f"reward_{name}": float(np.nanmean(part)) for name, part in scores.parts.items()}
        return metrics | {f"dropped_{name}": float(count) for name, count in scores.drops.items()}


def groups_differ(rewards: np.ndarray, samples_per_prompt: int) -> np.ndarray:
    """Whether the known rewards [rows] of each prompt's responses differ [prompts]."""
    groups = rewards.reshape(-1, samples_per_prompt)
    unknown = np.isnan(groups)
    differ: np.ndarray = np.where(unknown, -np.inf, groups).max(axis=1) > np.where(unknown, np.inf, groups).min(axis=1)
    return differ


def rows_kept(rewards: np.ndarray, samples_per_prompt: int, prompts: int) -> np.ndarray:
    """The rows of `prompts` groups, in the order they were drawn in: those whose rewards differ, then, if these are too
    few, others."""
    first = np.argsort(~groups_differ(rewards, samples_per_prompt), kind="stable")[:prompts]
    rows: np.ndarray = (np.sort(first)[:, None] * samples_per_prompt + np.arange(samples_per_prompt)).reshape(-1)
    return rows
