"""Direct preference optimization, with the frozen initial model as the reference, and its variants without one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import DpoData
from cupola_trainer.data.batches import Batch, without_padding
from cupola_trainer.data.chat import ChatTokenizer
from cupola_trainer.data.conversations import Sample, load_preferences, refuse_empty
from cupola_trainer.data.order import order
from cupola_trainer.objectives.base import Forward, Objective
from cupola_trainer.objectives.collectives import shared
from cupola_trainer.objectives.inputs import ObjectiveInputs, computed_once
from cupola_trainer.objectives.losses.preference import dpo_loss, kto_loss, reference_free_loss
from cupola_trainer.objectives.sft import pad


def build(inputs: ObjectiveInputs) -> Objective:
    """Build the DPO objective on a `preferences` artifact.

    Raises:
        ConfigError: there is no tokenizer, no usable pair, or the stored reference is of other pairs.
    """
    return DpoObjective(
        inputs.data,
        tokenizer=inputs.chat_tokenizer(),
        sequence_length=inputs.batch.sequence_length,
        pairs_per_pass=inputs.batch.micro_batch_size,
        seed=inputs.seed,
        kept=inputs.output / "reference.npz",
    )


class DpoObjective(Objective):
    """Pairs of a `preferences` artifact. A sample is one pair; a batch of p pairs has 2p rows: chosen, rejected, ...

    With KTO's loss it has 3p rows: each pair is followed by its prompt with a response to another prompt.
    """

    name = "dpo"
    padded = True

    def __init__(
        self,
        data: DpoData,
        *,
        tokenizer: ChatTokenizer,
        sequence_length: int,
        pairs_per_pass: int,
        seed: int,
        kept: Path | None = None,
    ) -> None:
        """
        Args:
            pairs_per_pass: pairs per forward pass in `prepare`.
            kept: file that keeps the reference log-probabilities for later starts of the job; None to keep none.

        Raises:
            ConfigError: the folder holds no usable pair, or a file of it is malformed.
        """
        self.data = data
        self.sequence_length = sequence_length
        self.pairs_per_pass = pairs_per_pass
        self.seed = seed
        self.kept = kept
        self._train, self.drops = load_preferences(data.preferences / "train.jsonl", tokenizer, sequence_length)
        self._heldout, self.heldout_drops = load_preferences(
            data.preferences / "heldout.jsonl", tokenizer, sequence_length
        )
        refuse_empty(self._train, self.drops, data.preferences / "train.jsonl", "pair", sequence_length)
        self._pairs = self._train + self._heldout
        if data.loss_type == "kto":
            self._pairs = with_mismatched(self._pairs, len(self._train), sequence_length)
        self._reference = np.full((len(self._pairs), self.rows), np.nan, dtype=np.float32)  # until `prepare`
        if data.reference:
            self._reference = _stored(data.reference, self._reference.shape)

    @property
    def rows(self) -> int:
        """Rows of a batch per pair."""
        return 3 if self.data.loss_type == "kto" else 2

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return self._pair(order(index, len(self._train), self.seed))

    def width(self, index: int) -> int:
        return pair_width(self.sample(index))

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return self._pair(len(self._train) + index) if index < len(self._heldout) else None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """`pad`'s tensors [rows, s] plus "reference_logps" [rows]: chosen, rejected, chosen, ..."""
        reference = np.concatenate([sample["reference"] for sample in samples])
        return {**pad(pair_rows(samples), self.sequence_length), "reference_logps": torch.from_numpy(reference)}

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum over pairs, number of pairs, and sums over pairs of margin, accuracy and both rewards; with KTO, also of
        the micro-batch's estimate of the KL to the reference."""
        logps = (-over_rows(output, batch["loss_mask"])).view(-1, self.rows)
        lengths = over_rows(torch.ones_like(output), batch["loss_mask"]).view(-1, self.rows)
        losses, chosen_rewards, rejected_rewards, more = self._losses(
            logps, batch["reference_logps"].view(-1, self.rows), lengths
        )
        if self.data.sft_weight:
            losses = losses - self.data.sft_weight * logps[:, 0] / lengths[:, 0]
        margins = chosen_rewards - rejected_rewards
        sums = more | {
            "margin": margins.sum(),
            "accuracy": (margins > 0).sum().float(),
            "chosen_reward": chosen_rewards.sum(),
            "rejected_reward": rejected_rewards.sum(),
        }
        return losses.sum(), self.count(batch), sums

    def _losses(
        self, logps: Tensor, reference: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Losses, chosen rewards and rejected rewards [pairs], and further sums to report; arguments [pairs, rows]."""
        data = self.data
        if data.loss_type == "kto":
            ratios = (logps - reference).unbind(dim=1)
            weights = {"desirable_weight": data.desirable_weight, "undesirable_weight": data.undesirable_weight}
            *judged, z = kto_loss(*ratios, beta=data.beta, **weights)
            return *judged, {"kl": z * len(logps)}
        settings: dict[str, Any] = {name: getattr(data, name) for name in ("loss_type", "beta", "label_smoothing")}
        chosen, rejected = logps.unbind(dim=1)
        if data.needs_reference:
            ref_chosen, ref_rejected = reference.unbind(dim=1)
            return *dpo_loss(chosen, rejected, ref_chosen, ref_rejected, **settings), {}
        tokens = lengths[:, 0], lengths[:, 1]
        return *reference_free_loss(chosen, rejected, tokens, target_margin=data.target_margin, **settings), {}

    def count(self, batch: Batch) -> Tensor:
        """The number of pairs."""
        return torch.tensor(len(batch["tokens"]) / self.rows, device=batch["tokens"].device)

    def prepare(self, forward: Forward) -> None:
        """Compute the reference log-probabilities, unless `data.reference` or an earlier start of the job has them."""
        if not self.data.needs_reference:
            self._reference = np.zeros_like(self._reference)
        elif not self.data.reference:
            self._reference = computed_once(self.kept, lambda: {"reference": self.reference(forward)})["reference"]

    def reference(self, forward: Forward) -> np.ndarray:
        """Log-probabilities [pairs, rows] of all responses under the current weights, training pairs first.
        Data-parallel ranks share the work.

        Args:
            forward: computes the token losses [rows, s] of a batch, without gradient.
        """
        pairs, group = len(self._pairs), _data_parallel_group()
        ranks, rank = (group.size(), group.rank()) if group else (1, 0)
        gathered = torch.zeros(pairs, self.rows)
        by_width = sorted(range(pairs), key=lambda place: pair_width(self._pairs[place]))
        passes = -(-pairs // (self.pairs_per_pass * ranks))
        for number in range(passes):
            start = (number * ranks + rank) * self.pairs_per_pass
            mine = by_width[start : start + self.pairs_per_pass]
            # repeats the last pair, because expert parallelism needs as many passes of as many rows on every rank
            places = mine + by_width[-1:] * (self.pairs_per_pass - len(mine))
            batch = without_padding(self.collate([self._pair(place) for place in places]), self.row_unit)
            logps = -(forward(batch).cpu() * batch["loss_mask"]).sum(dim=1)
            gathered[mine] = logps.view(-1, self.rows)[: len(mine)]
        if group and ranks > 1:
            total = gathered.to(runtime.device())
            dist.all_reduce(total, group=group)
            gathered = total.cpu()
        reference: np.ndarray = gathered.numpy()
        return reference

    def _pair(self, place: int) -> Mapping[str, np.ndarray]:
        return {**self._pairs[place], "reference": self._reference[place]}


def _stored(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    path = folder / "reference.npz"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist. Give the folder of a `reference` artifact.")
    reference: np.ndarray = np.load(path)["reference"]
    if reference.shape != shape:
        raise ConfigError(
            f"{folder} holds {_of(reference.shape)}, but this job has {_of(shape)}. Make it again with the same "
            "preferences, tokenizer, sequence_length and loss_type."
        )
    return reference


def _of(shape: tuple[int, ...]) -> str:
    """A reference's shape in words."""
    return f"{shape[0]} pairs of {shape[-1]} rows"


def _data_parallel_group() -> dist.ProcessGroup | None:
    return parallel_state.get_data_parallel_group() if parallel_state.is_initialized() else None


def pair_rows(samples: Sequence[Mapping[str, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids [n] and response masks [n] of pairs: chosen, rejected, chosen, ..., each pair with its mismatched
    response if it has one."""
    rows = []
    for sample in samples:
        for response in (sample[side] for side in SIDES if side in sample):
            tokens = np.concatenate([sample["prompt"], response])
            rows.append((tokens, np.arange(len(tokens)) >= len(sample["prompt"])))
    return rows


def pair_width(pair: Mapping[str, np.ndarray]) -> int:
    """Tokens of a pair's longest conversation."""
    return len(pair["prompt"]) + max(len(pair[side]) for side in SIDES if side in pair)


SIDES = ("chosen", "rejected", "mismatched")
"""The responses of a pair."""


def with_mismatched(pairs: Sequence[Sample], train: int, sequence_length: int) -> list[Sample]:
    """The pairs, each with "mismatched" [m], the response of a training pair with another prompt: chosen and rejected
    ones in turns, from halfway through the file, cut to what fits the sequence.

    Args:
        train: the first of the pairs, which are for training.

    Raises:
        ConfigError: all training pairs have the same prompt.
    """
    prompts = [sample["prompt"].tobytes() for sample in pairs]
    if len(set(prompts[:train])) < 2:
        raise ConfigError(
            "All pairs have the same prompt. KTO estimates the KL from responses to other prompts: give pairs of at "
            "least two, or use loss_type: apo_zero."
        )
    made: list[Sample] = []
    for place, sample in enumerate(pairs):
        start = place + train // 2
        other = next(at % train for at in range(start, start + train) if prompts[at % train] != prompts[place])
        response = pairs[other][SIDES[place % 2]]
        made.append({**sample, "mismatched": response[: sequence_length + 1 - len(sample["prompt"])]})
    return made


def over_rows(output: Tensor, mask: Tensor) -> Tensor:
    """Masked sum over each full row [rows], in float32, on every context-parallel rank.

    Args:
        output, mask: [rows, s / cp], this context-parallel rank's part of each sequence.
    """
    context = parallel_state.get_context_parallel_group() if parallel_state.is_initialized() else None
    return shared((output.float() * mask).sum(dim=1), context)
