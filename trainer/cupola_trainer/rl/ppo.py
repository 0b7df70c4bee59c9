"""Proximal policy optimization with a value model (Schulman et al. 2017; Ziegler et al. 2019), as in Qwen's report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.checkpoint import Progress
from cupola_trainer.checkpoint.compatibility import check_tokenizer
from cupola_trainer.config import ModelConfig, NextTokenData
from cupola_trainer.config.rl import PpoData
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.losses.actor_critic import (
    AdaptiveKl,
    FixedKl,
    KlController,
    generalized_advantages,
    token_rewards,
    whiten,
)
from cupola_trainer.objectives.losses.policy_gradient import clipped_ratio_loss, kl_estimate, token_weights
from cupola_trainer.objectives.next_token import NextTokenObjective
from cupola_trainer.optim import Trainee
from cupola_trainer.rl.grpo import collate_rows, row_of
from cupola_trainer.rl.rollout_objective import RolloutObjective
from cupola_trainer.rl.rollouts import Rollout
from cupola_trainer.rl.sampler_gap import correction, gap_metrics, gap_sums
from cupola_trainer.rl.value_model import ValueModel


def build(inputs: ObjectiveInputs) -> "PpoObjective":
    """Build PPO on the prompts of a `conversations` artifact.

    Raises:
        ConfigError: there is no parent checkpoint, no usable prompt, or sizes are inconsistent.
    """
    return PpoObjective(inputs)


class PpoObjective(RolloutObjective):
    """A sample is a prompt with one response, plus a pretraining sequence if that is mixed in.

    The losses of policy and value model are means over all tokens of a step's responses. A value is stored at the token
    that it precedes.
    """

    name = "ppo"
    scores_policy = True  # rewards contain the KL to the reference

    def __init__(self, inputs: ObjectiveInputs) -> None:
        data: PpoData = inputs.data
        self.ppo = data
        self.kl: KlController = FixedKl(data.kl_coef)
        if data.kl_target is not None:
            self.kl = AdaptiveKl(data.kl_coef, data.kl_target, data.kl_horizon)
        self._step_weights: tuple[int, np.ndarray] = (-1, np.empty(0))
        """First sample of the current step, and the weights of its tokens."""
        self.step = 0
        super().__init__(inputs)
        self.pretraining: NextTokenObjective | None = None
        if data.pretraining:
            check_tokenizer(inputs.tokenizer, data.pretraining)
            text = NextTokenData(tokens=data.pretraining)
            self.pretraining = NextTokenObjective(text, batch=inputs.batch, seed=inputs.seed)

    def attach(self, trainee: Trainee, model: ModelConfig) -> None:
        super().attach(trainee, model)
        self.value = ValueModel(self.inputs, self.ppo, model)

    def complete(self, rollout: Rollout) -> None:
        """Add "values", "returns" and whitened "advantages" [rows, s], and update the KL weight."""
        arrays = rollout.arrays
        arrays["values"] = self.value.values(rollout)
        valid = ~np.isnan(arrays["rewards"])
        kept = valid & (rollout.finished if self.config.truncated == "mask" else True)
        arrays["trained_on"] = rollout.mask & kept[:, None]
        if self.config.truncated == "mask":
            rollout.metrics["dropped_truncated"] = float((valid & ~rollout.finished).sum())
        kl = kl_estimate(torch.from_numpy(arrays["logps"]), torch.from_numpy(arrays["ref_logps"]), "k1").double()
        scores = torch.from_numpy(np.nan_to_num(arrays["rewards"]))
        mask = torch.from_numpy(rollout.mask).double()
        columns, taken = (torch.from_numpy(array) for array in responses_first(rollout.mask))
        values = torch.from_numpy(arrays["values"]).double().gather(1, columns)
        rewards = token_rewards(scores, kl.gather(1, columns), taken, self.kl.value)
        advantages, returns = generalized_advantages(
            rewards, values, taken, gamma=self.ppo.gamma, gae_lambda=self.ppo.gae_lambda
        )
        advantages = whiten(advantages, taken * torch.from_numpy(kept).double()[:, None])
        for name, tensor in (("advantages", advantages), ("returns", returns)):
            whole = torch.zeros_like(mask).scatter_add(1, columns, tensor * taken)
            arrays[name] = whole.float().numpy()
        of_responses = (kl * mask).sum(dim=1).numpy()
        rollout.metrics |= {"kl_coef": self.kl.value, "kl": float(of_responses.mean())}
        self.kl.update(float(of_responses.mean()), len(rollout))

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        assert self.current
        step, at = self.step_of(index)
        if self._step_weights[0] != index - at:
            mask = torch.from_numpy(self.current.arrays["trained_on"][step])
            self._step_weights = index - at, token_weights(mask, "token", self.config.max_new_tokens).numpy()
        row = row_of(self.current, step[at], self._step_weights[1][at])
        for name, array in (("old_values", "values"), ("returns", "returns")):
            row[name] = self.current.arrays[array][step[at]]
        return row if self.pretraining is None else row | _prefixed(self.pretraining.sample(index))

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """`collate_rows`' tensors. If pretraining is mixed in, its rows follow, with weights in "pretraining" and zeros
        in all tensors that only responses have."""
        batch = collate_rows([{key: row[key] for key in row if not key.startswith(MIXED)} for row in samples])
        if self.pretraining is None:
            return batch
        more = {key: torch.from_numpy(np.stack([row[f"{MIXED}{key}"] for row in samples])) for key in SEQUENCE}
        whole = {}
        for name, tensor in batch.items():
            added = more[name].to(tensor.dtype) if name in SEQUENCE else torch.zeros_like(tensor)
            whole[name] = torch.cat([tensor, added])
        trained = more["loss_mask"].float()
        weights = self.ppo.pretraining_coef * trained / trained.sum(dim=1, keepdim=True).clamp(min=1)
        return {**whole, "pretraining": torch.cat([torch.zeros_like(weights), weights])}

    def count(self, batch: Batch) -> Tensor:
        return batch["row_starts"].sum()

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over responses, their number, and sums over responses of clipped fraction and KL from the policy that
        generated them."""
        old = batch["old_logps"]
        logps = torch.where(batch["loss_mask"] > 0, -output.float(), 0.0)
        losses, clipped = clipped_ratio_loss(logps - old, batch["advantages"], low=self.ppo.clip, high=self.ppo.clip)
        if (weights := correction(old, batch["sampling_logps"], self.config)) is not None:
            losses = losses * weights
        total = (losses * batch["weights"]).sum()
        sums = {
            "clip_fraction": (clipped * batch["shares"]).sum().float(),
            "policy_kl": (kl_estimate(old, logps.detach()) * batch["shares"]).sum(),
            **gap_sums(old, batch["sampling_logps"], batch["quarters"]),
        }
        if "pretraining" in batch:
            mixed = (output.float() * batch["pretraining"]).sum()
            total, sums["pretraining_loss"] = total + mixed, mixed.detach() / self.ppo.pretraining_coef
        return total, self.count(batch), sums

    def report(self, means: dict[str, float]) -> dict[str, float]:
        return gap_metrics(means, self.config.max_gap)

    # value model

    def train_others(self, batches: Sequence[Batch]) -> dict[str, float]:
        rows = self.inputs.batch.micro_batch_size  # pretraining rows have no returns
        return self.value.train([{name: tensor[:rows] for name, tensor in batch.items()} for batch in batches])

    def update(self, trainee: Trainee) -> tuple[float, bool]:
        """Update the policy, unless the value model is still warming up."""
        self.step += 1
        if self.step > self.ppo.value_warmup_steps:
            return trainee.update()
        trainee.optimizer.zero_grad()
        return 0.0, True

    def save(self, progress: Progress) -> dict[str, Any]:
        state = super().save(progress)
        self.value.save(progress, self.inputs.tokenizer)
        return state | {"kl_coef": self.kl.value}

    def resume(self, progress: Progress) -> None:
        super().resume(progress)
        self.step = progress.step
        if progress.step:
            self.kl.value = progress.extra["objective_state"]["kl_coef"]
            self.value.resume(progress)


MIXED = "pretraining_"
"""Prefix of a pretraining sequence's arrays in a sample."""
SEQUENCE = ("tokens", "labels", "loss_mask", "position_ids")


def _prefixed(sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{MIXED}{name}": sample[name] for name in SEQUENCE}


def responses_first(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column indices [rows, s] that move each row's response tokens to the front, and the moved mask."""
    columns = np.argsort(~mask, axis=1, kind="stable")
    return columns, np.take_along_axis(mask, columns, axis=1).astype(np.float64)
