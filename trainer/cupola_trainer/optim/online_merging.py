"""The online merging optimizer (Lu et al. 2024, arXiv 2405.17931): merges AdamW's updates with a task vector.

    theta <- theta + (1 - alpha) F(delta) + alpha F(tau)

delta is the sum of AdamW's updates since the last merge (`online_step` steps), including weight decay. theta on the
right are the weights after the last merge. tau = theta_reference - theta_base, fine-tuned minus pretrained.

OnDARE   F keeps each element with probability `density`, without rescaling.
OnTIES   F keeps the `density` share of largest magnitude; where the two then differ in sign, only the one with the sign
         of their weighted sum is kept.

Magnitudes within 2^-6 of the smallest kept one count as ties and are kept too: in Adam's first steps every element
changes by about the learning rate, and the last bits would decide which are the largest.

The published code departs from the paper: its dropout divides by the probability, and with online_step > 1 a `return`
in the loop over parameters leaves all but the first without an update. We follow the paper. Between merges, steps are
plain AdamW on all tensors.

Updates are the same in every layout: masks depend on the seed, the step, the tensor's name and the element's index in
the full tensor, and thresholds on a layer's full tensor. Tau is read from the two checkpoints. With online_step > 1,
the weights after the last merge are saved as an additional optimizer moment.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.utils import unwrap_model
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint.description import STATE
from cupola_trainer.checkpoint.loading import verify
from cupola_trainer.checkpoint.shards import MASTER, Shard, master_shards, moment_key
from cupola_trainer.checkpoint.storage import StoredState, owned
from cupola_trainer.config import OnlineMergingConfig
from cupola_trainer.models.initialization import sharded_tensors
from cupola_trainer.optim.selection import magnitude_bits, thresholds
from cupola_trainer.upcycling.experts import derived_seed

BLOCK = 1 << 22
"""Elements whose indices are held in memory at a time."""
BITS = 24
"""Bits of a hash used for one mask."""
TIE = 2.0**-6
"""Relative difference up to which magnitudes count as equal."""
MERGED = "merged"
"""Optimizer state key of the weights after the last merge."""


@dataclass(frozen=True)
class Piece:
    """A box of one layer's (or expert's) tensor, updated by this rank."""

    name: str
    """Name of the tensor with layer and expert number, the same on every rank."""
    shape: tuple[int, ...]
    """Shape of the full tensor."""
    offset: tuple[int, ...]
    theta: Tensor
    """[*size], fp32: the memory updated by Adam."""
    tau: Tensor
    """[*size], fp32."""
    merged: Tensor | None
    """[*size], fp32: theta after the last merge, if several steps are merged together."""
    counted: bool
    """Whether this rank counts the box, so that replicas are counted once."""

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the box, with the indices of their elements in the flattened full tensor."""
        stride = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        device = self.theta.device
        inner = torch.zeros((), dtype=torch.int64, device=device)
        for axis in range(1, len(self.shape)):
            along = (self.offset[axis] + torch.arange(self.theta.size(axis), device=device)) * stride[axis]
            inner = inner[..., None] + along
        rows = max(1, BLOCK // max(1, inner.numel()))
        for start in range(0, self.theta.size(0), rows):
            part = slice(start, min(start + rows, self.theta.size(0)))
            first = (self.offset[0] + torch.arange(part.start, part.stop, device=device)) * stride[0]
            yield part, first.view(-1, *(1 for _ in self.shape[1:])) + inner


class OnlineMerging:
    """Merges after Adam's steps, through hooks that keep it alive as long as the optimizers."""

    def __init__(
        self, config: OnlineMergingConfig, chunks: Sequence[Any], optimizer: Any, *, reference: Path, seed: int
    ) -> None:
        """Read tau and hook into the parts (dense, experts) of Megatron's optimizer. Called on every rank.

        Raises:
            CorruptArtifactError: the base does not verify, or has another shape.
            ConfigError: OnTIES in a layout where a pipeline stage has no weights of a part.
        """
        verify(config.base)
        self.config, self.seed = config, seed
        self.states = StoredState(reference / STATE), StoredState(config.base / STATE)
        self.leading = {entry.key: entry.prepend_axis_num for entry in sharded_tensors(unwrap_model(list(chunks)))}
        parts = [part for part in optimizer.chained_optimizers if not part.is_stub_optimizer]
        if config.method == "onties" and runtime.any_rank(len(parts) != len(optimizer.chained_optimizers)):
            raise ConfigError(
                "onties: a pipeline stage has no dense or no expert weights to train. Use a smaller pp, or ondare."
            )
        for part in parts:
            Part(self, self._pieces(chunks, part), part.optimizer)

    def _pieces(self, chunks: Sequence[Any], part: Any) -> list[Piece]:
        shards = master_shards(chunks, part)
        merged: list[Tensor | None] = [None] * len(shards)
        if self.config.online_step > 1:
            for group in part.optimizer.param_groups:
                for main in group["params"]:
                    part.optimizer.state[main][MERGED] = main.detach().clone()
            merged = [shard.data for shard in master_shards(chunks, part, MERGED)]
        places: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(places, [(shard.place, shard.data.nbytes) for shard in shards if shard.main])
        counted = {shard.place for shard in owned(shards, places, runtime.rank())}
        return [self._piece(shard, last, shard.place in counted) for shard, last in zip(shards, merged, strict=True)]

    def _piece(self, shard: Shard, merged: Tensor | None, counted: bool) -> Piece:
        key = shard.key.removeprefix(moment_key(MASTER, ""))
        tau = self._read(0, key, shard) - self._read(1, key, shard)
        leading = self.leading[key]
        name = "/".join((key, *map(str, shard.offset[:leading])))
        size = shard.size[leading:]
        theta = shard.data.view(size)
        last = None if merged is None else merged.view(size)
        return Piece(name, shard.shape[leading:], shard.offset[leading:], theta, tau.view(size), last, counted)

    def _read(self, which: int, key: str, shard: Shard) -> Tensor:
        target = torch.empty(shard.size, dtype=torch.float32, device=shard.data.device)
        self.states[which].fill(Shard(key, shard.shape, shard.offset, target))
        return target


class Part:
    """The tensors of one part (dense or experts) of the optimizer."""

    def __init__(self, merging: OnlineMerging, pieces: Sequence[Piece], adam: torch.optim.Optimizer) -> None:
        self.config, self.seed, self.pieces = merging.config, merging.seed, pieces
        self.before: list[Tensor] = []
        self.due = False
        if self.config.method == "onties":
            self.tensors = _tensors(pieces)
            for piece, smallest in zip(pieces, self._smallest([piece.tau for piece in pieces]), strict=True):
                piece.tau[piece.tau.abs() < smallest] = 0
        adam.register_step_pre_hook(self._remember)
        adam.register_step_post_hook(self._merge)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _remember(self, adam: Any, *_: Any) -> None:
        self.due = (int(adam.param_groups[0].get("step", 0)) + 1) % self.config.online_step == 0
        if self.due:
            self.before = [
                piece.theta.clone() if piece.merged is None else piece.merged.clone() for piece in self.pieces
            ]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _merge(self, adam: Any, *_: Any) -> None:
        if not self.due:  # ranks without tensors still take part in the thresholds
            return
        if self.config.method == "ondare":
            self._ondare(int(adam.param_groups[0]["step"]))
        else:
            self._onties()
        self.before = []
        for piece in self.pieces:
            if piece.merged is not None:
                piece.merged.copy_(piece.theta)

    def _ondare(self, step: int) -> None:
        alpha, limit = self.config.alpha, round(self.config.density * (1 << BITS))
        for piece, before in zip(self.pieces, self.before, strict=True):
            seed = derived_seed(self.seed, f"{piece.name}/{step}")
            for rows, places in piece.blocks():
                bits = hashed(places, seed)
                of_delta, of_tau = bits >> (64 - BITS) & ((1 << BITS) - 1), bits & ((1 << BITS) - 1)
                delta = piece.theta[rows] - before[rows]
                change = torch.where(of_delta < limit, delta * (1 - alpha), 0)
                change += torch.where(of_tau < limit, piece.tau[rows] * alpha, 0)
                piece.theta[rows] = before[rows] + change

    def _onties(self) -> None:
        alpha = self.config.alpha
        deltas = [piece.theta - before for piece, before in zip(self.pieces, self.before, strict=True)]
        trimmed = zip(self.pieces, self.before, deltas, self._smallest(deltas), strict=True)
        for piece, before, delta, smallest in trimmed:
            step = torch.where(delta.abs() >= smallest, delta * (1 - alpha), 0)
            learned = piece.tau * alpha
            elected = (step + learned).sign()
            step = torch.where(step.sign() == elected, step, 0) + torch.where(learned.sign() == elected, learned, 0)
            piece.theta.copy_(before + step)

    def _smallest(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The smallest magnitude kept in each piece's full tensor, slightly lowered to include ties."""
        count = [math.ceil(self.config.density * size) for size in self.tensors.values()]
        number = {name: i for i, name in enumerate(self.tensors)}
        of = [number[piece.name] for piece in self.pieces]
        counted = [
            (i, magnitude_bits(value)) for i, piece, value in zip(of, self.pieces, values, strict=True) if piece.counted
        ]
        smallest = thresholds(counted, count, runtime.device())
        return [smallest[i] * (1 - TIE) for i in of]


def hashed(places: Tensor, seed: int) -> Tensor:
    """64 random bits per index: splitmix64 (Steele et al. 2014) from the seed, in wrapping int64."""
    bits = places * _signed(0x9E3779B97F4A7C15) + seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> shift & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return bits ^ (bits >> 31 & ((1 << 33) - 1))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _tensors(pieces: Sequence[Piece]) -> dict[str, int]:
    """Name and number of elements of every tensor on any rank, sorted."""
    ranks: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, {piece.name: math.prod(piece.shape) for piece in pieces})
    return dict(sorted({name: size for rank in ranks for name, size in rank.items()}.items()))
