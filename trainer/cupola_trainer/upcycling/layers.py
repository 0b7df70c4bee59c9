"""Tensors of a mixture of experts, made on demand from a dense checkpoint, one layer at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from cupola_trainer.config import ModelConfig, UpcycleJob
from cupola_trainer.config.model.experts import output_scales
from cupola_trainer.upcycling.experts import Cut, derived_seed, normal

Read = Callable[[str, tuple[int, ...]], Tensor]
MLP = "decoder.layers.mlp."


@dataclass(frozen=True, eq=False)
class Upcycled:
    """The mixture's tensors by checkpoint key and (layer, expert) index.

    Seeds are derived from names, so a tensor has the same bytes on every rank and in every layout. A rank reads only
    the dense layers that its own experts come from.

    Args:
        read: reads the dense checkpoint's tensors.
    """

    dense: ModelConfig
    job: UpcycleJob
    read: Read

    def __call__(self, key: str, index: tuple[int, ...]) -> Tensor:
        """One tensor of one layer (and expert)."""
        make = {
            f"{MLP}experts.experts.linear_fc1.weight": lambda: self._fc1(*self._routed(index)),
            f"{MLP}experts.experts.linear_fc2.weight": lambda: self._routed(index)[2] * self.scales[0],
            f"{MLP}shared_experts.linear_fc1.weight": lambda: self._fc1(*self._shared(index)),
            f"{MLP}shared_experts.linear_fc2.weight": lambda: self._shared(index)[2] * self.scales[1],
            f"{MLP}shared_experts.gate_weight": lambda: self._zeros(index, 1),  # sigmoid(0): one half
            f"{MLP}router.weight": lambda: self._router(index),
        }.get(key)
        return make() if make else self.read(key, index)

    def _fc1(self, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return torch.cat([gate, up])

    @cached_property
    def _ffn(self) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
        @lru_cache(maxsize=1)
        def ffn(layer: int) -> tuple[Tensor, Tensor, Tensor]:
            gate, up = self.read(f"{MLP}linear_fc1.weight", (layer,)).chunk(2)  # [h_FFN, H] each
            return gate, up, self.read(f"{MLP}linear_fc2.weight", (layer,))

        return ffn

    @cached_property
    def _routed(self) -> Callable[[tuple[int, ...]], tuple[Tensor, Tensor, Tensor]]:
        @lru_cache(maxsize=1)
        def routed(index: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
            layer, expert = index
            return self.routed_cut(layer).expert(*self._ffn(layer), expert)

        return routed

    def _shared(self, index: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        size = self.job.moe.shared_expert_ffn_hidden_size
        assert size is not None
        return self._cut(index[0], "shared_experts", 1, size).expert(*self._ffn(index[0]), 0)

    def routed_cut(self, layer: int) -> Cut:
        """How a layer's routed experts are sliced."""
        return self._cut(layer, "experts", self.job.moe.num_experts, self.job.moe.expert_ffn_hidden_size)

    def _cut(self, layer: int, part: str, count: int, size: int) -> Cut:
        job = self.job
        return Cut(
            num_experts=count,
            expert_intermediate_size=size,
            reinit_fraction=job.reinit_fraction,
            reinit=job.reinit,
            init_std=self.dense.init_std,
            shuffle=job.shuffle,
            seed=derived_seed(job.seed, f"decoder.layers.{layer}.mlp.{part}"),
        )

    def _router(self, index: tuple[int, ...]) -> Tensor:
        count = self.job.moe.num_experts
        rows = self._zeros(index, count)
        if self.job.router == "zeros" or rows.is_meta:
            return rows
        generator = torch.Generator().manual_seed(derived_seed(self.job.seed, f"decoder.layers.{index[0]}.mlp.router"))
        drawn = normal((count, self.dense.hidden_size), 0.0, self.dense.init_std, generator).to(rows.dtype)
        if self.job.router == "random":
            return drawn
        first_units = torch.arange(count) * self.job.moe.expert_ffn_hidden_size
        return drawn[first_units // self.dense.ffn_hidden_size]

    def _zeros(self, index: tuple[int, ...], rows: int) -> Tensor:
        return self._ffn(index[0])[0].new_zeros(rows, self.dense.hidden_size)

    @cached_property
    def scales(self) -> tuple[float, float]:
        """Factors on the outputs of routed and of shared experts."""
        job = self.job
        return output_scales(self.dense, job.moe, router=job.router, match_dense=job.match_dense)
