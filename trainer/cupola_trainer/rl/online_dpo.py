"""Online DPO, as used for Qwen2: the best and the worst response to a prompt form a pair."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.config.rl import OnlineDpoData
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.dpo import over_rows
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.losses.preference import dpo_loss
from cupola_trainer.rl.grpo import collate_rows, row_of, trained_on
from cupola_trainer.rl.rollout_objective import RolloutObjective
from cupola_trainer.rl.rollouts import Rollout


def build(inputs: ObjectiveInputs) -> "OnlineDpoObjective":
    """Build DPO on pairs of the model's own responses to the prompts of a `conversations` artifact.

    Raises:
        ConfigError: there is no parent checkpoint, no usable prompt, or sizes are inconsistent.
    """
    return OnlineDpoObjective(inputs)


class OnlineDpoObjective(RolloutObjective):
    """A sample is the pair of one prompt. If all responses have the same reward, its weight is 0 and it is counted."""

    name = "online_dpo"
    scores_policy = False  # its loss has no ratio to the policy that sampled

    def __init__(self, inputs: ObjectiveInputs) -> None:
        self.dpo: OnlineDpoData = inputs.data
        super().__init__(inputs)

    @property
    def units(self) -> int:
        return self.config.prompts

    def complete(self, rollout: Rollout) -> None:
        """ "pairs" [prompts, 2], the rows of the best and the worst response; "kept" [prompts], whether they differ."""
        size = self.config.samples_per_prompt
        kept = trained_on(rollout, self.config.truncated, size).reshape(-1, size)
        rewards = rollout.arrays["rewards"].reshape(-1, size)
        best = np.where(kept, rewards, -np.inf).argmax(axis=1)
        worst = np.where(kept, rewards, np.inf).argmin(axis=1)
        groups = np.arange(len(rewards))
        rollout.arrays["kept"] = kept.any(axis=1) & (rewards[groups, best] > rewards[groups, worst])
        rollout.arrays["pairs"] = groups[:, None] * size + np.stack([best, worst], axis=1)
        rollout.arrays["trained_on"] = rollout.mask
        rollout.arrays["advantages"] = np.zeros_like(rollout.sampling_logps)
        rollout.metrics["dropped_equal"] = float((~rollout.arrays["kept"]).sum())

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        assert self.current
        step, at = self.step_of(index)
        place, kept = step[at], self.current.arrays["kept"]
        weight = (
            float(kept[place]) * len(step) / max(kept[step].sum(), 1)
        )  # makes the loss the mean over the kept pairs
        best, worst = self.current.arrays["pairs"][place]
        weights = np.full(self.length, weight, dtype=np.float32)
        rows = [row_of(self.current, int(row), weights) for row in (best, worst)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def rows_of(self, index: int) -> list[int]:
        assert self.current
        pair: list[int] = self.current.arrays["pairs"][self.place(index)].tolist()
        return pair

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """Rows [2 pairs, s], best and worst alternating."""
        return collate_rows([{name: sample[name][side] for name in sample} for sample in samples for side in (0, 1)])

    def count(self, batch: Batch) -> Tensor:
        """The number of pairs; every context-parallel rank computes their full loss."""
        return torch.tensor(len(batch["tokens"]) / 2, device=batch["tokens"].device)

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over pairs, their number, and sums over pairs of margin, accuracy and both implicit rewards."""
        mask, weights = batch["loss_mask"], batch["weights"][0::2, 0]
        chosen, rejected = over_rows(-output, mask).view(-1, 2).unbind(dim=1)  # [pairs] each
        ref_chosen, ref_rejected = over_rows(batch["ref_logps"], mask).view(-1, 2).unbind(dim=1)
        losses, chosen_rewards, rejected_rewards = dpo_loss(
            chosen, rejected, ref_chosen, ref_rejected,
            beta=self.dpo.beta, label_smoothing=self.dpo.label_smoothing, loss_type=self.dpo.loss_type,
        )  # fmt: skip
        margins = chosen_rewards - rejected_rewards
        sums = {
            "margin": (margins * weights).sum(),
            "accuracy": ((margins > 0) * weights).sum(),
            "chosen_reward": (chosen_rewards * weights).sum(),
            "rejected_reward": (rejected_rewards * weights).sum(),
        }
        return (losses * weights).sum(), self.count(batch), sums
