"""From a dense model to a mixture of experts, as Qwen2 made 57B-A14B out of 7B (Qwen2 technical report, section 2.2.2).

The FFN is replicated, each copy is shuffled along its intermediate dimension, experts are cut from the row of copies,
and a share of each expert's parameters is drawn anew. The report does not say how the shared expert starts, whether
the share is counted in single weights or in whole units, nor from what distribution: here the shared expert is built
by the same copying, and both granularities are offered ("unit" is Drop-Upcycling's, Nakamura et al. 2025).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import UpcycleJob
from cupola_trainer.conversion.families import active_parameters
from cupola_trainer.conversion.filling import fill
from cupola_trainer.conversion.stored import StoredTensors
from cupola_trainer.layout import validate_layout
from cupola_trainer.reporting import Report

Reinit = Literal["element", "unit", "none"]

ROUTED_KEYS = ("experts.experts.linear_fc1.weight", "experts.experts.linear_fc2.weight")
SHARED_KEYS = ("shared_experts.linear_fc1.weight", "shared_experts.linear_fc2.weight")


class Experts(NamedTuple):
    """Weights of n SwiGLU experts of intermediate size h_E over a hidden size H."""

    gate: Tensor
    """[n, h_E, H]"""
    up: Tensor
    """[n, h_E, H]"""
    down: Tensor
    """[n, H, h_E]"""


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
    seed: int,
) -> Experts:
    """Cut experts of any size out of shuffled copies of one dense SwiGLU FFN, and draw a share of each anew.

    A unit (row j of `gate` and `up`, column j of `down`) is moved as a whole. There are ceil(n * h_E / h_FFN) copies;
    what the experts leave of the last one is discarded.

    Args:
        gate, up: [h_FFN, H].
        down: [H, h_FFN].
        reinit_fraction: share of each expert drawn anew, exact up to rounding to a whole weight or unit.
        reinit: "element" draws single weights from N(0, init_std); "unit" draws whole units, each matrix from a normal
            distribution of its own mean and standard deviation; "none" keeps the copies as they are.
        seed: the result depends on it and on the weights alone.

    Raises:
        ConfigError: a size, share or name that makes no experts.
    """
    _check(gate, up, down, num_experts, expert_intermediate_size, reinit_fraction, reinit, init_std)
    generator = torch.Generator().manual_seed(seed)
    h_ffn, needed = gate.size(0), num_experts * expert_intermediate_size
    copies = -(-needed // h_ffn)
    units = torch.cat([torch.randperm(h_ffn, generator=generator) for _ in range(copies)])[:needed]
    units = units.view(num_experts, expert_intermediate_size)
    experts = Experts(gate[units], up[units], down[:, units].transpose(0, 1).contiguous())
    if reinit == "element":
        return _redraw_elements(experts, reinit_fraction, init_std, generator)
    if reinit == "unit":
        return _redraw_units(experts, reinit_fraction, generator)
    return experts


def _redraw_elements(experts: Experts, fraction: float, std: float, generator: torch.Generator) -> Experts:
    flat = torch.cat([matrix.flatten(1) for matrix in experts], dim=1)  # [n, 3 * h_E * H]
    count = round(fraction * flat.size(1))
    for expert in flat:
        chosen = torch.randperm(flat.size(1), generator=generator)[:count]
        expert[chosen] = _normal((count,), 0.0, std, generator).to(flat.dtype)
    parts = flat.split([matrix[0].numel() for matrix in experts], dim=1)
    return Experts(*(part.reshape(matrix.shape) for part, matrix in zip(parts, experts, strict=True)))


def _redraw_units(experts: Experts, fraction: float, generator: torch.Generator) -> Experts:
    size = experts.gate.size(1)
    count = round(fraction * size)
    for gate, up, down in zip(*experts, strict=True):
        chosen = torch.randperm(size, generator=generator)[:count]
        for matrix in (gate, up, down.t()):  # all [h_E, H]
            mean, std = matrix.float().mean().item(), matrix.float().std().item()
            matrix[chosen] = _normal((count, matrix.size(1)), mean, std, generator).to(matrix.dtype)
    return experts


def _normal(shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * std + mean


def _check(
    gate: Tensor, up: Tensor, down: Tensor, num_experts: int, size: int, fraction: float, reinit: str, std: float
) -> None:
    if gate.dim() != 2 or up.shape != gate.shape or down.shape != gate.shape[::-1]:
        shapes = f"gate {tuple(gate.shape)}, up {tuple(up.shape)}, down {tuple(down.shape)}"
        raise ConfigError(f"These are not the matrices of one SwiGLU FFN: {shapes}. Give [h, H], [h, H] and [H, h].")
    if num_experts < 1 or size < 1:
        raise ConfigError(f"num_experts={num_experts} and expert_intermediate_size={size} must both be at least 1.")
    if not 0 <= fraction <= 1:
        raise ConfigError(f"reinit_fraction={fraction} is not between 0 and 1.")
    if reinit not in ("element", "unit", "none"):
        raise ConfigError(f"reinit={reinit!r} is not known. Use 'element', 'unit' or 'none'.")
    if not std > 0:
        raise ConfigError(f"init_std={std} is not positive.")


def run(job: UpcycleJob) -> None:
    """Write the mixture-of-experts checkpoint of a dense one into `job.output`. Weights only: training starts at step 0.

    Seeds are derived from names, so that every layout writes the same weights.

    Raises:
        ConfigError: the checkpoint is a mixture of experts already, or the layout cannot hold the new one.
        CorruptArtifactError: the checkpoint does not verify.
    """
    dense = checkpoint.read_model(job.initial)
    if dense.moe:
        raise ConfigError(f"{job.initial} is a mixture of experts already. Upcycle a dense checkpoint.")
    model = replace(dense, moe=job.moe)
    validate_layout(model, job.parallel)
    runtime.start(job.parallel, job.seed)
    parameters = models.parameter_count(model)
    with Report(job.output, kind="upcycle", steps=1, parameters=parameters) as report:
        stored = StoredTensors(job.initial)
        new = expert_tensors(stored, job, dense.init_std)
        chunks = models.build(model, job.parallel)
        fill(chunks, lambda key: new[key] if key in new else stored[key])
        checkpoint.save(
            job.output / "checkpoint",
            chunks,
            model=model,
            parallel=job.parallel,
            step=0,
            consumed_samples=0,
            seed=job.seed,
            objective="upcycle",
            tokenizer=job.initial / "tokenizer",
        )
        report.step(1)
        report.complete("checkpoint", {"parameters": parameters, "active_parameters": active_parameters(model)})


def expert_tensors(dense: Mapping[str, Tensor], job: UpcycleJob, init_std: float) -> dict[str, Tensor]:
    """The tensors that a dense checkpoint lacks, by checkpoint key, stacked over layers: experts, router, shared expert."""
    fc1, fc2 = (dense[f"decoder.layers.mlp.linear_{name}.weight"] for name in ("fc1", "fc2"))
    layers = [_moe_layer(fc1[i], fc2[i], job, init_std, f"decoder.layers.{i}.mlp") for i in range(fc1.size(0))]
    return {f"decoder.layers.mlp.{key}": torch.stack([layer[key] for layer in layers]) for key in layers[0]}


def _moe_layer(fc1: Tensor, fc2: Tensor, job: UpcycleJob, init_std: float, name: str) -> dict[str, Tensor]:
    gate, up = fc1.chunk(2)  # [h_FFN, H] each

    def cut(part: str, count: int, size: int) -> tuple[Tensor, Tensor]:
        experts = upcycle_ffn(
            gate,
            up,
            fc2,
            num_experts=count,
            expert_intermediate_size=size,
            reinit_fraction=job.reinit_fraction,
            reinit=job.reinit,
            init_std=init_std,
            seed=derived_seed(job.seed, f"{name}.{part}"),
        )
        return torch.cat([experts.gate, experts.up], dim=1), experts.down  # [n, 2 * h_E, H], [n, H, h_E]

    def draw(part: str, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(job.seed, f"{name}.{part}"))
        return _normal((rows, gate.size(1)), 0.0, init_std, generator).to(gate.dtype)

    routed = cut("experts", job.moe.num_experts, job.moe.expert_ffn_hidden_size)
    layer = dict(zip(ROUTED_KEYS, routed, strict=True)) | {"router.weight": draw("router", job.moe.num_experts)}
    if job.moe.shared_expert_ffn_hidden_size:
        shared = cut("shared_experts", 1, job.moe.shared_expert_ffn_hidden_size)
        layer |= {key: weight[0] for key, weight in zip(SHARED_KEYS, shared, strict=True)}
        layer["shared_experts.gate_weight"] = draw("shared_experts.gate", 1)
    return layer


def derived_seed(seed: int, name: str) -> int:
    """A seed of its own for everything that bears a name, whatever process or order it is drawn in."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1
