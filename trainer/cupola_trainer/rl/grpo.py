"""Group relative policy optimization (Shao et al. 2024), as used for Qwen2.5."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.checkpoint import Progress
from cupola_trainer.config import ModelConfig
from cupola_trainer.config.rl import GrpoData
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.dpo import over_rows
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.losses.policy_gradient import (
    clipped_ratio_loss,
    clipped_weight_loss,
    group_advantages,
    kl_estimate,
    token_weights,
)
from cupola_trainer.optim import Trainee
from cupola_trainer.rl.ema import EmaReference
from cupola_trainer.rl.rollout_objective import RolloutObjective
from cupola_trainer.rl.rollouts import Rollout
from cupola_trainer.rl.sampler_gap import QUARTERS, correction, gap_metrics, gap_sums


def build(inputs: ObjectiveInputs) -> "GrpoObjective":
    """Build GRPO on the prompts of a `conversations` artifact.

    Raises:
        ConfigError: there is no parent checkpoint, no usable prompt, or sizes are inconsistent.
    """
    return GrpoObjective(inputs)


class GrpoObjective(RolloutObjective):
    """A sample is a prompt with one response. The step's loss is the mean over its responses: see `token_weights`."""

    name = "grpo"

    def __init__(self, inputs: ObjectiveInputs) -> None:
        data: GrpoData = inputs.data
        self.grpo = data
        self.ema: EmaReference | None = None
        self.keeps_reference = data.kl_coef > 0
        self.normalization = data.normalization
        self._step_weights: tuple[int, np.ndarray] = (-1, np.empty(0))
        """First sample of the current step, and the weights of its tokens."""
        super().__init__(inputs)

    def attach(self, trainee: Trainee, model: ModelConfig) -> None:
        super().attach(trainee, model)
        reference = self.collector.reference
        if self.grpo.ema_rate and reference:
            self.ema = EmaReference(self.inputs, model, reference, trainee.chunks, self.grpo.ema_rate)

    def update(self, trainee: Trainee) -> tuple[float, bool]:
        norm, moved = super().update(trainee)
        if self.ema and moved:
            self.ema.update()
        return norm, moved

    def save(self, progress: Progress) -> dict[str, Any]:
        state = super().save(progress)
        if self.ema:
            self.ema.save(progress)
        return state

    def resume(self, progress: Progress) -> None:
        super().resume(progress)
        if self.ema and progress.step:
            self.ema.resume(progress)

    def complete(self, rollout: Rollout) -> None:
        groups = rollout.arrays["rewards"].reshape(-1, self.config.samples_per_prompt)
        rewards = torch.from_numpy(groups)
        valid = ~rewards.isnan()
        advantages = group_advantages(rewards, valid, baseline=self.grpo.baseline, scale=self.grpo.scale_rewards)
        advantages = advantages.float().numpy()
        rollout.arrays["advantages"] = np.where(rollout.mask, advantages.reshape(-1, 1), 0.0).astype(np.float32)
        rollout.arrays["trained_on"] = (
            rollout.mask & trained_on(rollout, self.config.truncated, self.config.samples_per_prompt)[:, None]
        )
        rollout.metrics["groups_alike"] = float((advantages == 0).all(axis=1).mean())

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        assert self.current
        step, at = self.step_of(index)
        if self._step_weights[0] != index - at:
            mask = torch.from_numpy(self.current.arrays["trained_on"][step])
            weights = token_weights(mask, self.normalization, self.config.max_new_tokens)
            self._step_weights = index - at, weights.numpy()
        return row_of(self.current, step[at], self._step_weights[1][at])

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        return collate_rows(samples)

    def count(self, batch: Batch) -> Tensor:
        return batch["row_starts"].sum()

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over responses, their number, and sums over responses of token means: KL to the reference, clipped
        fraction, KL from the policy that generated them. Without "old_logps" that is the policy of this very step."""
        logps = torch.where(batch["loss_mask"] > 0, -output.float(), 0.0)  # those of padding are arbitrary
        data, old = self.grpo, batch.get("old_logps", logps.detach())
        log_ratio = logps - old
        if data.ratio == "sequence":
            log_ratio = over_rows(log_ratio, batch["shares"])[:, None].expand_as(logps)
        if data.clipping == "weight":
            losses, clipped = clipped_weight_loss(logps, log_ratio, batch["advantages"], high=data.clip_high)
        else:
            losses, clipped = clipped_ratio_loss(log_ratio, batch["advantages"], low=data.clip_low, high=data.clip_high)
        if (weights := correction(old, batch["sampling_logps"], self.config)) is not None:
            losses = losses * weights
        sums = {
            "clip_fraction": (clipped * batch["shares"]).sum().float(),
            "policy_kl": (kl_estimate(old, logps.detach()) * batch["shares"]).sum(),
            **gap_sums(old, batch["sampling_logps"], batch["quarters"]),
        }
        if data.kl_coef:
            kl = kl_estimate(logps, batch["ref_logps"], data.kl_estimator)
            losses = losses + data.kl_coef * kl
            sums["kl"] = (kl.detach() * batch["shares"]).sum()
        return (losses * batch["weights"]).sum(), self.count(batch), sums

    def report(self, means: dict[str, float]) -> dict[str, float]:
        return gap_metrics(means, self.config.max_gap)


def trained_on(rollout: Rollout, truncated: str, samples_per_prompt: int) -> np.ndarray:
    """Which responses are trained on [rows]: those with a reward and at least one other to compare with, without
    truncated ones if `truncated` is "mask". Counts those left out in the rollout's metrics."""
    valid = ~np.isnan(rollout.arrays["rewards"])
    alone = valid & (valid.reshape(-1, samples_per_prompt).sum(axis=1) < 2).repeat(samples_per_prompt)
    if alone.any():
        rollout.metrics["dropped_group_of_one"] = float(alone.sum())
    kept: np.ndarray = valid & ~alone & (rollout.finished if truncated == "mask" else True)
    if truncated == "mask":
        rollout.metrics["dropped_truncated"] = float((valid & ~rollout.finished).sum())
    return kept


def row_of(rollout: Rollout, place: int, weights: np.ndarray) -> dict[str, np.ndarray]:
    """One response as a sample: arrays [s], and tokens [s + 1]."""
    mask = rollout.arrays["trained_on"][place].astype(np.float32)
    row = {
        "tokens": rollout.tokens[place],
        "loss_mask": mask,
        "shares": mask / max(mask.sum(), 1),
        "quarters": mask * (1 + QUARTERS * (mask.cumsum() - 1) // max(mask.sum(), 1)),
        "weights": weights.astype(np.float32),
        "advantages": rollout.arrays["advantages"][place],
        "sampling_logps": rollout.sampling_logps[place],
    }
    arrays = {"old_logps": "logps", "ref_logps": "ref_logps"}
    return row | {name: rollout.arrays[array][place] for name, array in arrays.items() if array in rollout.arrays}


def collate_rows(samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """tokens, labels, position_ids, loss_mask and `row_of`'s other arrays, [b, s] each, plus "row_starts", 1 in each
    row's first column, whose sum counts rows even when columns are split over ranks."""
    tokens = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))
    rows, length = tokens.size(0), tokens.size(1) - 1
    starts = torch.zeros(rows, length)
    starts[:, 0] = 1
    floats = {name: np.stack([sample[name] for sample in samples]) for name in samples[0] if name != "tokens"}
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "position_ids": torch.arange(length).expand(rows, -1).contiguous(),
        "row_starts": starts,
        **{name: torch.from_numpy(values.astype(np.float32)) for name, values in floats.items()},
    }
