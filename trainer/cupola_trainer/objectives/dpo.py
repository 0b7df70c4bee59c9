"""Direct preference optimization on pairs, against the frozen initial model."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer.config import DpoData
from cupola_trainer.data.chat import ChatTokenizer
from cupola_trainer.data.conversations import load_preferences
from cupola_trainer.data.order import order
from cupola_trainer.objectives.objective import Batch, Forward, Objective
from cupola_trainer.objectives.preference_losses import dpo_loss
from cupola_trainer.objectives.sft import pad


class DpoObjective(Objective):
    """Pairs of a `preferences` artifact. A sample is one pair; a batch of p pairs has 2p rows: chosen, rejected, ..."""

    name = "dpo"

    def __init__(
        self, data: DpoData, *, tokenizer: ChatTokenizer, sequence_length: int, pairs_per_pass: int, seed: int
    ) -> None:
        """
        Args:
            pairs_per_pass: pairs in one forward pass of `prepare`.

        Raises:
            ConfigError: the folder holds no usable pair, or a file of it is malformed.
        """
        self.data = data
        self.sequence_length = sequence_length
        self.pairs_per_pass = pairs_per_pass
        self.seed = seed
        self._train, self.drops = load_preferences(data.preferences / "train.jsonl", tokenizer, sequence_length)
        self._heldout, self.heldout_drops = load_preferences(
            data.preferences / "heldout.jsonl", tokenizer, sequence_length
        )
        if not self._train:
            raise ConfigError(
                f"{data.preferences} has no pair that fits sequence_length={sequence_length}; dropped: "
                f"{dict(self.drops)}. Try a longer sequence_length."
            )
        self._pairs = self._train + self._heldout
        self._reference = np.full((len(self._pairs), 2), np.nan, dtype=np.float32)  # until `prepare` or `restore`

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return self._pair(order(index, len(self._train), self.seed))

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return self._pair(len(self._train) + index) if index < len(self._heldout) else None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """Besides `pad`'s tensors [2 pairs, s]: "reference_logps" [2 pairs], chosen and rejected by turns."""
        rows = []
        for sample in samples:
            for answer in (sample["chosen"], sample["rejected"]):
                tokens = np.concatenate([sample["prompt"], answer])
                rows.append((tokens, np.arange(len(tokens)) >= len(sample["prompt"])))
        reference = np.concatenate([sample["reference"] for sample in samples])
        return {**pad(rows, self.sequence_length), "reference_logps": torch.from_numpy(reference)}

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over pairs, number of pairs, and the sums over pairs of margin, accuracy and both rewards."""
        chosen, rejected = answer_logps(output, batch["loss_mask"]).view(-1, 2).unbind(dim=1)  # [pairs] each
        reference_chosen, reference_rejected = batch["reference_logps"].view(-1, 2).unbind(dim=1)
        losses, chosen_rewards, rejected_rewards = dpo_loss(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            beta=self.data.beta,
            label_smoothing=self.data.label_smoothing,
            loss_type=self.data.loss_type,
        )
        if self.data.sft_weight:
            losses = losses - self.data.sft_weight * chosen / batch["loss_mask"].sum(dim=1)[0::2]
        margins = chosen_rewards - rejected_rewards
        sums = {
            "margin": margins.sum(),
            "accuracy": (margins > 0).sum().float(),
            "chosen_reward": chosen_rewards.sum(),
            "rejected_reward": rejected_rewards.sum(),
        }
        return losses.sum(), self.count(batch), sums

    def count(self, batch: Batch) -> Tensor:
        """The number of pairs."""
        return torch.tensor(len(batch["tokens"]) / 2, device=batch["tokens"].device)

    def prepare(self, forward: Forward) -> None:
        """Log-probabilities of every answer under the weights that `forward` has now: the frozen reference.

        Args:
            forward: token losses [2 pairs, s] of a batch, without gradient.
        """
        pairs = len(self._pairs)
        self._reference = np.zeros((pairs, 2), dtype=np.float32)
        for start in range(0, pairs, self.pairs_per_pass):
            places = [
                min(start + offset, pairs - 1) for offset in range(self.pairs_per_pass)
            ]  # the shape stays the same
            batch = self.collate([self._pair(place) for place in places])
            logps = answer_logps(forward(batch).cpu(), batch["loss_mask"])
            self._reference[places] = logps.view(-1, 2).numpy()

    def state(self) -> dict[str, np.ndarray]:
        """The reference [pairs, 2], to be kept with the job: a resumed one has other weights."""
        return {"reference": self._reference}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take `state` back in place of `prepare`."""
        self._reference = state["reference"]

    def _pair(self, place: int) -> Mapping[str, np.ndarray]:
        return {**self._pairs[place], "reference": self._reference[place]}


def answer_logps(token_losses: Tensor, loss_mask: Tensor) -> Tensor:
    """Log-probability of each row's answer [rows]: the sum over its tokens, in float32."""
    return -(token_losses.float() * loss_mask).sum(dim=1)
