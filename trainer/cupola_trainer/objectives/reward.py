"""Reward modeling on pairs: a score at the end of each response, higher for the better one."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cupola_trainer.config import RewardData
from cupola_trainer.data.batches import Batch
from cupola_trainer.data.chat import ChatTokenizer
from cupola_trainer.data.conversations import Sample, load_preferences, refuse_empty
from cupola_trainer.data.order import order
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.dpo import over_rows, pair_rows, pair_width
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.losses.preference import reward_loss
from cupola_trainer.objectives.sft import pad

BINS = 5
"""Calibration bins of the probability of the predicted better response, from 1/2 to 1."""


def build(inputs: ObjectiveInputs) -> Objective:
    """Build the ranking objective on a `preferences` artifact.

    Raises:
        ConfigError: there is no tokenizer or no usable pair.
    """
    length = inputs.batch.sequence_length
    return RewardObjective(inputs.data, tokenizer=inputs.chat_tokenizer(), sequence_length=length, seed=inputs.seed)


class RewardObjective(Objective):
    """Pairs of a `preferences` artifact. A sample is one pair; a batch of p pairs has 2p rows: chosen, rejected, ..."""

    name = "reward"
    reads = "values"
    padded = True

    def __init__(self, data: RewardData, *, tokenizer: ChatTokenizer, sequence_length: int, seed: int) -> None:
        """
        Raises:
            ConfigError: the folder holds no usable pair, or a file of it is malformed.
        """
        self.data, self.seed = data, seed
        self.sequence_length = sequence_length
        longest = sequence_length - 1  # `load_preferences` allows one more token, for a last one that is only predicted
        self._train, self.drops = load_preferences(data.preferences / "train.jsonl", tokenizer, longest)
        self._heldout, self.heldout_drops = load_preferences(data.preferences / "heldout.jsonl", tokenizer, longest)
        refuse_empty(self._train, self.drops, data.preferences / "train.jsonl", "pair", sequence_length)
        tags = sorted({str(pair["tag"]) for pair in self._train}) if data.balance_tags else []
        self._by_tag = [[p for p in self._train if str(p["tag"]) == tag] for tag in tags] or [self._train]

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        """With balanced tags, tags take turns whatever their share of the pairs; each cycles through all its pairs."""
        round_, tag = divmod(index, len(self._by_tag))
        pairs = self._by_tag[tag]
        return _numbers(pairs[order(round_, len(pairs), self.seed + tag)])

    def width(self, index: int) -> int:
        return pair_width(self.sample(index))

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return _numbers(self._heldout[index]) if index < len(self._heldout) else None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """`pad`'s tensors, with loss_mask [2 pairs, s] 1 at the end of each response, plus "margin" [pairs]."""
        rows = [(tokens, np.arange(len(tokens)) == len(tokens) - 1) for tokens, _ in pair_rows(samples)]
        batch = pad(rows, self.sequence_length)
        at_end = torch.zeros_like(batch["loss_mask"])
        at_end[torch.arange(len(rows)), torch.tensor([len(tokens) - 1 for tokens, _ in rows])] = 1
        margin = torch.tensor([float(sample["margin"]) for sample in samples])
        return {**batch, "loss_mask": at_end, "margin": margin * self.data.margin}

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over pairs, number of pairs, and sums over pairs of rewards, margin, accuracy and calibration bins."""
        chosen, rejected = over_rows(output, batch["loss_mask"]).view(-1, 2).unbind(dim=1)  # [pairs] each
        losses = reward_loss(chosen, rejected, batch["margin"], center=self.data.center)
        difference = (chosen - rejected).detach()
        right = (difference > 0).float()
        sums = {
            "margin": difference.sum(),
            "accuracy": right.sum(),
            "chosen_reward": chosen.detach().sum(),
            "rejected_reward": rejected.detach().sum(),
        }
        confidence = torch.sigmoid(difference.abs())
        bins = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
        for number in range(BINS):
            within = (bins == number).float()
            sums |= {
                f"bin{number}_share": within.sum(),
                f"bin{number}_confidence": (within * confidence).sum(),
                f"bin{number}_accuracy": (within * right).sum(),
            }
        return losses.sum(), self.count(batch), sums

    def count(self, batch: Batch) -> Tensor:
        """The number of pairs."""
        return torch.tensor(float(len(batch["margin"])), device=batch["tokens"].device)

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """The means, the expected calibration error (Guo et al. 2017, equation 3), and the accuracy and share of pairs
        of each non-empty bin: "accuracy_60" is over pairs whose predicted better response has a probability between
        60% and 70%."""
        kept = {name: mean for name, mean in means.items() if not name.startswith("bin")}
        kept["ece"] = 0.0
        for number in range(BINS):
            share, confidence, right = (means[f"bin{number}_{what}"] for what in ("share", "confidence", "accuracy"))
            kept["ece"] += abs(confidence - right)
            if share:
                percent = 50 + number * 50 // BINS
                kept |= {f"accuracy_{percent}": right / share, f"share_{percent}": share}
        return kept


def _numbers(pair: Sample) -> Mapping[str, np.ndarray]:
    return {name: value for name, value in pair.items() if name != "tag"}
