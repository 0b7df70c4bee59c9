"""Proximal policy optimization with a value model (Schulman et al. 2017; Ziegler et al. 2019),
as Qwen's report has it."""

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
from cupola_trainer.objectives import next_token
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
from cupola_trainer.rl.value_model import ValueModel


def build(inputs: ObjectiveInputs) -> "PpoObjective":
    """PPO on the prompts of a `conversations` artifact.

    Raises:
        ConfigError: no parent checkpoint, no usable prompt, or sizes that do not fit each other.
    """
    return PpoObjective(inputs)


class PpoObjective(RolloutObjective):
    """A sample is one response with its prompt, and a sequence of pretraining's where that is mixed in.

    The loss of policy and value model is the mean over all tokens of a step's responses. A value belongs to the token
    that it comes before.
    """

    name = "ppo"

    def __init__(self, inputs: ObjectiveInputs) -> None:
        data: PpoData = inputs.data
        self.ppo = data
        self.kl: KlController = FixedKl(data.kl_coef)
        if data.kl_target is not None:
            self.kl = AdaptiveKl(data.kl_coef, data.kl_target, data.kl_horizon)
        self._weighed: tuple[int, np.ndarray] = (-1, np.empty(0))
        """First sample of a step, and the weights of its tokens."""
        self.step = 0
        super().__init__(inputs)
        self.pretraining: NextTokenObjective | None = None
        if data.pretraining:
            check_tokenizer(inputs.tokenizer, data.pretraining)
            self.pretraining = next_token.text(inputs, NextTokenData(tokens=data.pretraining), inputs.samples)

    def attach(self, trainee: Trainee, model: ModelConfig) -> None:
        super().attach(trainee, model)
        self.value = ValueModel(self.inputs, self.ppo, model)

    def complete(self, rollout: Rollout) -> None:
        """ "values", "returns" and whitened "advantages" [rows, s], and the KL weight's next value."""
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
        if self._weighed[0] != index - at:
            mask = torch.from_numpy(self.current.arrays["trained_on"][step])
            self._weighed = index - at, token_weights(mask, "token", self.config.max_new_tokens).numpy()
        row = row_of(self.current, step[at], self._weighed[1][at])
        for name, array in (("old_values", "values"), ("returns", "returns")):
            row[name] = self.current.arrays[array][step[at]]
        return row if self.pretraining is None else row | _named_pretraining(self.pretraining.sample(index))

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """`collate_rows`' tensors; where pretraining is mixed in, its rows follow: nothing but "pretraining",
        its weights."""
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
        """Sum over responses, their number, and sums over responses of clipped share and change."""
        old = batch["old_logps"]
        logps = torch.where(batch["loss_mask"] > 0, -output.float(), 0.0)
        losses, clipped = clipped_ratio_loss(logps, old, batch["advantages"], low=self.ppo.clip, high=self.ppo.clip)
        total = (losses * batch["weights"]).sum()
        sums = {
            "clip_fraction": (clipped * batch["shares"]).sum().float(),
            "policy_kl": (kl_estimate(old, logps.detach()) * batch["shares"]).sum(),
        }
        if "pretraining" in batch:
            mixed = (output.float() * batch["pretraining"]).sum()
            total, sums["pretraining_loss"] = total + mixed, mixed.detach() / self.ppo.pretraining_coef
        return total, self.count(batch), sums

    # beside the policy

    def train_others(self, batches: Sequence[Batch]) -> dict[str, float]:
        rows = self.inputs.batch.micro_batch_size  # pretraining's rows have no returns
        return self.value.train([{name: tensor[:rows] for name, tensor in batch.items()} for batch in batches])

    def update(self, trainee: Trainee) -> tuple[float, bool]:
        """The policy stays while the value model warms up."""
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
"""What comes before the names of a pretraining sequence's arrays in a sample."""
SEQUENCE = ("tokens", "labels", "loss_mask", "position_ids")


def _named_pretraining(sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{MIXED}{name}": sample[name] for name in SEQUENCE}


def responses_first(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns [rows, s] that bring each row's masked ones to its front, in order; and 1 where they are such ones."""
    columns = np.argsort(~mask, axis=1, kind="stable")
    return columns, np.take_along_axis(mask, columns, axis=1).astype(np.float64)
