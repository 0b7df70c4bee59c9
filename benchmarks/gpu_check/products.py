"""Experts' products computed together, and FP8, against the same in bf16 one by one."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import TrainJob
from cupola_trainer.kernels.grouped_linear import grouped_linear
from gpu_check import speed
from gpu_check.device import HAS_TRANSFORMER_ENGINE
from gpu_check.rows import Section

LARGE = (16_384, 2048, 4096, 16)
"""Tokens, width in and out, experts."""
SMALL = (96, 32, 48, 4)
ALIGNED = 16
"""Each expert's tokens are a multiple of it, which torch's grouped products want of gradients."""
TOLERANCE = 0.01
"""Largest difference from bf16 products one by one, relative to the largest element."""
FP8_TOLERANCE = 0.03
"""Largest relative difference of a loss from bf16's."""
STEPS = 4

Product = Callable[[Tensor, list[int]], Tensor]
"""Each expert's rows [tokens, in], counted by the list, times its weight: [tokens, out]."""
Way = Callable[[list[Tensor]], tuple[Product, list[Tensor]]]
"""Makes a product of the weights [out, in], and says which tensors get their gradients."""


def run(section: Section) -> None:
    """Compare outputs and gradients of each way to multiply, then losses of bf16 and FP8."""
    ways: dict[str, tuple[Way, str]] = {
        "our grouped_linear": (_ours, ""),
        "torch._grouped_mm": (_torch_grouped, "" if hasattr(torch, "_grouped_mm") else "this torch has none"),
        "Transformer Engine's GroupedLinear": (
            _te_grouped,
            "" if HAS_TRANSFORMER_ENGINE else "transformer_engine is not installed",
        ),
    }
    for name, (way, missing) in ways.items():
        if missing:
            section.unavailable(name, missing)
        else:
            section.attempt(name, lambda: _compare(section, name, way))  # noqa: B023
    if reason := _no_fp8():
        section.unavailable("FP8 against bf16", reason)
    else:
        section.attempt("FP8 against bf16", lambda: _fp8(section))


def _compare(section: Section, name: str, way: Way) -> None:
    """Output and both gradients, and seconds of forward and backward, of one way and of products one by one."""
    tokens, width, out, experts = SMALL if section.small else LARGE
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(experts, generator=generator)
    counts = (shares / shares.sum() * tokens / ALIGNED).long() * ALIGNED
    counts[0] += tokens - counts.sum()
    device = runtime.device()

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16).requires_grad_()

    x, weights = drawn(tokens, width), [drawn(out, width) for _ in range(experts)]
    found, seconds = _timed(way, x, counts.tolist(), weights, section.small)
    wanted, theirs = _timed(_one_by_one, x, counts.tolist(), weights, section.small)
    worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(found, wanted, strict=True))
    section.judged(
        name,
        worst <= TOLERANCE,
        {"largest difference": worst, "ms": 1000 * seconds, "ms one by one": 1000 * theirs, "times": theirs / seconds},
        f"bf16 products one by one within {TOLERANCE:g} of the largest element",
    )


def _timed(way: Way, x: Tensor, counts: list[int], weights: list[Tensor], small: bool) -> tuple[list[Tensor], float]:
    """Output and gradients in fp32, and the shortest time of a few turns."""
    product, trained = way(weights)
    shortest = float("inf")
    for _ in range(1 if small else 6):
        runtime.synchronize()
        began = time.perf_counter()
        output = product(x, counts)
        gradients = torch.autograd.grad(output, [x, *trained], torch.ones_like(output) / output.size(1))
        runtime.synchronize()
        shortest = min(shortest, time.perf_counter() - began)
    return [output.detach().float(), gradients[0].float(), torch.stack(gradients[1:]).float()], shortest


def _one_by_one(weights: list[Tensor]) -> tuple[Product, list[Tensor]]:
    def product(x: Tensor, counts: list[int]) -> Tensor:
        return torch.cat([rows @ weight.t() for rows, weight in zip(x.split(counts), weights, strict=True)])

    return product, weights


def _ours(weights: list[Tensor]) -> tuple[Product, list[Tensor]]:
    return lambda x, counts: grouped_linear(x, counts, weights), weights


def _torch_grouped(weights: list[Tensor]) -> tuple[Product, list[Tensor]]:
    """Its weights are one tensor, which is made of ours each time."""

    def product(x: Tensor, counts: list[int]) -> Tensor:
        ends = torch.tensor(counts, device=x.device).cumsum(0).int()
        output: Tensor = torch._grouped_mm(x, torch.stack(weights).transpose(-2, -1), offs=ends)
        return output

    return product, weights


def _te_grouped(weights: list[Tensor]) -> tuple[Product, list[Tensor]]:
    from transformer_engine.pytorch import GroupedLinear

    out, width = weights[0].shape
    layer = GroupedLinear(len(weights), width, out, bias=False, params_dtype=weights[0].dtype, device=weights[0].device)
    trained = [getattr(layer, f"weight{number}") for number in range(len(weights))]
    with torch.no_grad():
        for theirs, ours in zip(trained, weights, strict=True):
            theirs.copy_(ours)
    return layer, trained


def _no_fp8() -> str:
    """Why FP8 cannot be compared here; empty if it can."""
    if "fp8" not in get_args(TrainJob.model_fields["precision"].annotation):
        return "this version has no `precision: fp8`"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.cuda.get_device_capability() < (8, 9):
        return f"{torch.cuda.get_device_name()} has no FP8 (it came with compute capability 8.9)"
    return "" if HAS_TRANSFORMER_ENGINE else "transformer_engine is not installed"


def _fp8(section: Section) -> None:
    """Losses of the same steps in both precisions, and their speed."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-fp8-") as folder:
        for precision in ("bf16", "fp8"):
            found[precision] = speed.losses(section.small, precision, Path(folder) / precision, STEPS)
    worst = max(
        abs(ours - theirs) / theirs for ours, theirs in zip(found["fp8"]["loss"], found["bf16"]["loss"], strict=True)
    )
    section.judged(
        "FP8 against bf16",
        worst <= FP8_TOLERANCE,
        {
            "largest relative difference of the loss": worst,
            **{f"ms a step, {name}": 1000 * of["seconds"] for name, of in found.items()},
        },
        f"the loss of bf16 within {FP8_TOLERANCE:.0%}",
    )
