"""Several experts' products at once against one after another, and against torch's grouped product."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cupola_trainer.kernels.grouped_linear import grouped_linear

COUNTS = (3, 0, 7, 1)


def made(dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(COUNTS), 8, generator=generator, dtype=dtype, requires_grad=True)
    weights = [torch.randn(16, 8, generator=generator, dtype=dtype, requires_grad=True) for _ in COUNTS]
    return x, weights


def one_after_another(x: Tensor, weights: list[Tensor]) -> Tensor:
    return torch.cat([rows @ weight.t() for rows, weight in zip(x.split(COUNTS), weights, strict=True)])


def test_products_and_gradients_are_those_of_one_expert_after_another() -> None:
    x, weights = made()
    found, wanted = grouped_linear(x, COUNTS, weights), one_after_another(x, weights)
    torch.testing.assert_close(found, wanted)
    factors = torch.randn(wanted.shape, dtype=wanted.dtype)
    gradients = [torch.autograd.grad((each * factors).sum(), (x, *weights)) for each in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_products_are_those_of_torchs_grouped_product() -> None:
    x, weights = made(torch.bfloat16)
    ends = torch.tensor(COUNTS).cumsum(0).int()
    theirs = torch._grouped_mm(x, torch.stack(weights).transpose(1, 2), offs=ends)
    torch.testing.assert_close(grouped_linear(x, COUNTS, weights), theirs)


def test_gradients_are_checked_numerically() -> None:
    x, weights = made()
    assert torch.autograd.gradcheck(lambda x, *weights: grouped_linear(x, COUNTS, weights), (x, *weights))


@pytest.mark.parametrize("times", [1, 2])
def test_gradients_are_added_to_the_buffers_of_data_parallelism(times: int) -> None:
    x, weights = made()
    wanted = torch.autograd.grad(one_after_another(x, weights).square().sum(), weights)
    marked: list[Any] = weights
    for weight in marked:
        weight.main_grad, weight.grad_added_to_main_grad = torch.ones_like(weight), False
    for _ in range(times):
        grouped_linear(x, COUNTS, weights).square().sum().backward()
    for weight, gradient in zip(marked, wanted, strict=True):
        torch.testing.assert_close(weight.main_grad, 1 + times * gradient)
        assert weight.grad_added_to_main_grad


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    x, weights = made()
    x = x.detach()
    weights[0].requires_grad_(False)
    grouped_linear(x, COUNTS, weights).sum().backward()
    assert weights[0].grad is None
    assert weights[2].grad is not None
    assert x.grad is None
