"""Padding of grouped rows to the multiple that FP8 products need."""

import torch
from torch import Tensor

from ..fp8 import FP8GlobalStateManager


class _Padding(torch.nn.Module):
    def __init__(self, num_gemms: int, align_size: int | None = None) -> None:
        super().__init__()
        self.num_gemms, self.align_size = num_gemms, align_size

    def _padded(self, m_splits: list[int]) -> list[int]:
        assert len(m_splits) == self.num_gemms, "Number of splits should match number of GEMMs."
        if self.align_size is None:
            self.align_size = 32 if FP8GlobalStateManager.get_fp8_recipe().mxfp8() else 16
        return [-(-count // self.align_size) * self.align_size for count in m_splits]


class Fp8Padding(_Padding):
    """[sum(m_splits), n] -> the same with zeros after each group's rows, and the groups' new sizes."""

    def forward(self, inp: Tensor, m_splits: list[int]) -> tuple[Tensor, list[int]]:
        padded = self._padded(m_splits)
        parts = zip(inp.split(m_splits), padded, strict=True)
        return torch.cat(
            [torch.cat([part, part.new_zeros(size - len(part), part.size(1))]) for part, size in parts]
        ), padded


class Fp8Unpadding(_Padding):
    """The reverse."""

    def forward(self, inp: Tensor, m_splits: list[int]) -> Tensor:
        parts = zip(inp.split(self._padded(m_splits)), m_splits, strict=True)
        return torch.cat([part[:size] for part, size in parts])
