"""Split one dense SwiGLU FFN into experts.

The FFN is replicated, each copy is shuffled along its intermediate dimension, experts are sliced from the concatenated
copies, and a share of each expert's parameters is reinitialized. The report does not say whether the share is counted
in single weights or in whole units, nor from which distribution: both granularities are supported ("unit" is that of
Drop-Upcycling, Nakamura et al. 2025).
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
    """Weights of n gated experts with intermediate size h_E and hidden size H."""

    gate: Tensor
    """[n, h_E, H]"""
    up: Tensor
    """[n, h_E, H]"""
    down: Tensor
    """[n, H, h_E]"""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How experts are sliced from copies of one dense FFN. Each expert depends only on the seed and its number."""

    num_experts: int
    expert_intermediate_size: int
    reinit_fraction: float = 0.5
    """Share of each expert to reinitialize, rounded to a whole weight or unit."""
    reinit: Reinit = "element"
    """"element" draws single weights from N(0, init_std); "unit" draws whole units, each matrix from a normal
    distribution with the matrix's mean and standard deviation; "none" keeps the copies unchanged."""
    init_std: float = 0.02
    shuffle: bool = True
    """Shuffle each copy's units; otherwise experts are sliced in order."""
    seed: int

    def __post_init__(self) -> None:
        count, size = self.num_experts, self.expert_intermediate_size
        if not all(isinstance(number, int) and number >= 1 for number in (count, size)):
            raise ConfigError(
                f"num_experts={count} and expert_intermediate_size={size} must be integers of at least 1."
            )
        if not 0 <= self.reinit_fraction <= 1:
            raise ConfigError(f"reinit_fraction={self.reinit_fraction} is not between 0 and 1.")
        if self.reinit not in ("element", "unit", "none"):
            raise ConfigError(f"reinit={self.reinit!r} is unknown. Use 'element', 'unit' or 'none'.")
        if not 0 < self.init_std < math.inf:
            raise ConfigError(f"init_std={self.init_std} is not a positive number.")
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise ConfigError(f"seed={self.seed} has more than 64 bits. Use a smaller one.")

    def copies(self, h_ffn: int) -> int:
        """Number of copies of an FFN with intermediate size `h_ffn`."""
        return -(-self.num_experts * self.expert_intermediate_size // h_ffn)

    def units(self, h_ffn: int) -> Tensor:
        """The dense FFN's unit for each unit of each expert: [n, h_E]. The rest of the last copy is discarded."""
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
    """Slice experts of any size from shuffled copies of one dense SwiGLU FFN, and reinitialize a share of each.

    A unit (row j of `gate` and `up`, column j of `down`) is moved as a whole. There are ceil(n * h_E / h_FFN) copies;
    the unused rest of the last one is discarded.

    Args:
        gate, up: [h_FFN, H].
        down: [H, h_FFN].
        reinit_fraction, reinit, init_std, shuffle: see `Cut`.
        seed: the result depends only on it and the weights.

    Raises:
        ConfigError: a setting is invalid, or the tensors are not one SwiGLU FFN.
    """
    if not (gate.is_floating_point() and gate.dtype == up.dtype == down.dtype):
        raise ConfigError(
            f"gate, up and down are {gate.dtype}, {up.dtype} and {down.dtype}. Give one floating-point type."
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
    """Independent samples from a normal distribution, in fp32."""
    return torch.randn(shape, generator=generator) * std + mean


def derived_seed(seed: int, name: str) -> int:
    """A seed for a named object, independent of process and order."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1
