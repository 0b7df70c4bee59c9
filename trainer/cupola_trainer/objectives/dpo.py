"""Direct preference optimization on pairs, against the frozen initial model."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer.config import DpoData
from cupola_trainer.data.chat import ChatTokenizer
from cupola_trainer.data.conversations import load_preferences
from cupola_trainer.data.order import order
from cupola_trainer.objectives.sft import pad


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and implicit rewards of preference pairs, from log-probabilities of whole answers; all tensors [pairs].

    With h = log(policy/ref)(chosen) - log(policy/ref)(rejected):
    "sigmoid": -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e the label smoothing (Rafailov et al. 2023,
    equation 7; with smoothing, Mitchell's conservative DPO).
    "ipo": (h - 1 / (2 beta))^2 (Azar et al. 2023, equation 17). As in the text, h sums over tokens; TRL's divides each
    answer's part by its length, which suits a larger beta.

    Returns:
        losses, chosen rewards and rejected rewards; a reward is beta log(policy/ref), without gradient.
    """
    chosen = policy_chosen_logps - ref_chosen_logps
    rejected = policy_rejected_logps - ref_rejected_logps
    h = chosen - rejected
    if loss_type == "sigmoid":
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
    elif loss_type == "ipo":
        losses = (h - 1 / (2 * beta)) ** 2
    else:
        raise ConfigError(f"DPO has no loss_type {loss_type!r}. Choose sigmoid or ipo.")
    return losses, (beta * chosen).detach(), (beta * rejected).detach()


class DpoObjective:
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

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
        """Besides `pad`'s tensors [2 pairs, s]: "reference_logps" [2 pairs], chosen and rejected by turns."""
        rows = []
        for sample in samples:
            for answer in (sample["chosen"], sample["rejected"]):
                tokens = np.concatenate([sample["prompt"], answer])
                rows.append((tokens, np.arange(len(tokens)) >= len(sample["prompt"])))
        reference = np.concatenate([sample["reference"] for sample in samples])
        return {**pad(rows, self.sequence_length), "reference_logps": torch.from_numpy(reference)}

    def loss(self, token_losses: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over pairs, number of pairs, and the sums over pairs of margin, accuracy and both rewards."""
        chosen, rejected = answer_logps(token_losses, batch["loss_mask"]).view(-1, 2).unbind(dim=1)  # [pairs] each
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
        return losses.sum(), torch.tensor(float(len(losses)), device=losses.device), sums

    def prepare(self, forward: Callable[[dict[str, Tensor]], Tensor]) -> None:
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
