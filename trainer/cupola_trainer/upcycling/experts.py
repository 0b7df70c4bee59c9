"""One dense SwiGLU FFN, cut into experts.

The FFN is replicated, each copy is shuffled along its intermediate dimension, experts are cut from the row of copies,
and a share of each expert's parameters is drawn anew. The report does not say whether the share is counted in single
weights or in whole units, nor from what distribution: both granularities are offered ("unit" is Drop-Upcycling's,
Nakamura et al. 2025).
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cupola_platform.errors import ConfigError

Reinit = Literal["element", "unit", "none"]


class Experts(NamedTuple):
    """Weights of n gated experts of intermediate size h_E over a hidden size H."""

    gate: Tensor
    """[n, h_E, H]"""
    up: Tensor
    """[n, h_E, H]"""
    down: Tensor
    """[n, H, h_E]"""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How experts are cut out of copies of one dense FFN. Each expert depends on the seed and its own number alone."""

    num_experts: int
    expert_intermediate_size: int
    reinit_fraction: float = 0.5
    """Share of each expert drawn anew, exact up to rounding to a whole weight or unit."""
    reinit: Reinit = "element"
    """"element" draws single weights from N(0, init_std); "unit" draws whole units, each matrix from a normal
    distribution of its own mean and standard deviation; "none" keeps the copies as they are."""
    init_std: float = 0.02
    shuffle: bool = True
    """Shuffle each copy's units; else experts are cut from them in order."""
    seed: int

    def __post_init__(self) -> None:
        count, size = self.num_experts, self.expert_intermediate_size
        if not all(isinstance(number, int) and number >= 1 for number in (count, size)):
            raise ConfigError(
                f"num_experts={count} and expert_intermediate_size={size} must be whole numbers from 1 on."
            )
        if not 0 <= self.reinit_fraction <= 1:
            raise ConfigError(f"reinit_fraction={self.reinit_fraction} is not between 0 and 1.")
        if self.reinit not in ("element", "unit", "none"):
            raise ConfigError(f"reinit={self.reinit!r} is not known. Use 'element', 'unit' or 'none'.")
        if not 0 < self.init_std < math.inf:
            raise ConfigError(f"init_std={self.init_std} is not a positive number.")
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise ConfigError(f"seed={self.seed} has more than 64 bits. Use a smaller one.")

    def copies(self, h_ffn: int) -> int:
        """How often an FFN of intermediate size `h_ffn` is replicated."""
        return -(-self.num_experts * self.expert_intermediate_size // h_ffn)

    def units(self, h_ffn: int) -> Tensor:
        """Which unit of the dense FFN each unit of each expert is: [n, h_E].
        What is left of the last copy is discarded."""
        order = _order(self.seed, h_ffn, self.copies(h_ffn), self.shuffle)
        return order[: self.num_experts * self.expert_intermediate_size].view(self.num_experts, -1)

    def expert(self, gate: Tensor, up: Tensor, down: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """One expert: gate and up [h_E, H], down [H, h_E]."""
        units = self.units(gate.size(0))[number]
        expert = gate[units], up[units], down[:, units]
        if gate.is_meta or self.reinit == "none":
            return expert
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"expert {number}"))
        redraw = self._redraw_elements if self.reinit == "element" else self._redraw_units
        return redraw(*expert, generator)

    def _redraw_elements(
        self, gate: Tensor, up: Tensor, down: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        flat = torch.cat([matrix.flatten() for matrix in (gate, up, down)])
        count = round(self.reinit_fraction * flat.numel())
        chosen = torch.randperm(flat.numel(), generator=generator)[:count]
        flat[chosen] = normal((count,), 0.0, self.init_std, generator).to(flat)
        a, b, c = flat.split([gate.numel(), up.numel(), down.numel()])
        return a.view_as(gate), b.view_as(up), c.view(down.shape)

    def _redraw_units(
        self, gate: Tensor, up: Tensor, down: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = round(self.reinit_fraction * gate.size(0))
        chosen = torch.randperm(gate.size(0), generator=generator)[:count]
        for matrix in (gate, up, down.t()):  # all [h_E, H]
            std, mean = torch.std_mean(matrix.float(), correction=0)
            matrix[chosen] = normal((count, matrix.size(1)), mean.item(), std.item(), generator).to(matrix)
        return gate, up, down


@torch.no_grad()  # type: ignore[untyped-decorator]
def upcycle_ffn(
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    num_experts: int,
    expert_intermediate_size: int,
    reinit_fraction: float = 0.5,
    reinit: Reinit = "element",
    init_std: float = 0.02,
    shuffle: bool = True,
    seed: int,
) -> Experts:
    """Cut experts of any size out of shuffled copies of one dense SwiGLU FFN, and draw a share of each anew.

    A unit (row j of `gate` and `up`, column j of `down`) is moved as a whole. There are ceil(n * h_E / h_FFN) copies;
    what the experts leave of the last one is discarded.

    Args:
        gate, up: [h_FFN, H].
        down: [H, h_FFN].
        reinit_fraction, reinit, init_std, shuffle: see `Cut`.
        seed: the result depends on it and on the weights alone.

    Raises:
        ConfigError: a size, share or name that makes no experts.
    """
    if not (gate.is_floating_point() and gate.dtype == up.dtype == down.dtype):
        raise ConfigError(
            f"gate, up and down are of {gate.dtype}, {up.dtype} and {down.dtype}. Give one floating-point type."
        )
    if gate.dim() != 2 or not gate.numel() or up.shape != gate.shape or down.shape != gate.shape[::-1]:
        shapes = f"gate {tuple(gate.shape)}, up {tuple(up.shape)}, down {tuple(down.shape)}"
        raise ConfigError(f"These are not the matrices of one SwiGLU FFN: {shapes}. Give [h, H], [h, H] and [H, h].")
    cut = Cut(
        num_experts=num_experts,
        expert_intermediate_size=expert_intermediate_size,
        reinit_fraction=reinit_fraction,
        reinit=reinit,
        init_std=init_std,
        shuffle=shuffle,
        seed=seed,
    )
    experts = [cut.expert(gate, up, down, number) for number in range(num_experts)]
    return Experts(*(torch.stack(matrices) for matrices in zip(*experts, strict=True)))


@lru_cache(maxsize=2)
def _order(seed: int, h_ffn: int, copies: int, shuffle: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(h_ffn, generator=generator) if shuffle else torch.arange(h_ffn) for _ in range(copies)]
    return torch.cat(orders)


def normal(shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Independent draws from a normal distribution, in fp32."""
    return torch.randn(shape, generator=generator) * std + mean


def derived_seed(seed: int, name: str) -> int:
    """A seed of its own for everything that bears a name, whatever process or order it is drawn in."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1
