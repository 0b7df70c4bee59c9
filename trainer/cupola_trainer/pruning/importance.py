"""Measure the importance of each part of a model in one forward pass over text."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig


@dataclass(frozen=True)
class Importance:
    """Importance scores, larger is more important. Means over tokens, fp64."""

    layers: Tensor
    """[layers]: 1 - cosine similarity of a layer's input and output (block influence, ShortGPT, equation 1)."""
    hidden: Tensor
    """[hidden]: |x| after the norms, over all layers (Minitron, section 2.2)."""
    heads: Tensor
    """[layers, heads]: L2 norm of a head's input to the output projection."""
    ffn: Tensor
    """[layers, units]: |x| of a unit's input to the down projection, in the dense FFN or the shared expert."""
    experts: Tensor
    """[layers, experts]: router weight; [layers, 0] for dense models."""
    expert_ffn: Tensor
    """[layers, experts, units]: as `ffn`, weighted by the router."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def measure(model: ModelConfig, chunk: Any, sequences: Sequence[Tensor]) -> Importance:
    """Measure importance over all ranks' sequences [b, s]. Called on every rank of a data-parallel layout; returns the
    same on all.

    Args:
        chunk: the whole model.
    """
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=runtime.device()))
    with _accumulating(model, chunk, sums):
        chunk.eval()
        for tokens in sequences:
            tokens = tokens.to(runtime.device())
            positions = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
            chunk(tokens, positions, None, labels=tokens)
            sums["tokens"] = sums["tokens"] + tokens.numel()

    moe = model.moe
    shared = moe.shared_expert_ffn_hidden_size if moe else model.ffn_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "layers": (),
        "heads": (model.num_attention_heads,),
        "ffn": (shared or 0,),
        "experts": (moe.num_experts if moe else 0,),
        "expert_ffn": (moe.num_experts, moe.expert_ffn_hidden_size) if moe else (0, 0),
    }

    def mean(name: str, shape: tuple[int, ...]) -> Tensor:
        total = sums[name].expand(shape).contiguous()
        dist.all_reduce(total)
        return total

    tokens_seen = mean("tokens", ())
    stacked = {
        name: torch.stack([mean(f"{name} {layer}", shape) for layer in range(model.num_layers)]) / tokens_seen
        for name, shape in shapes.items()
    }
    return Importance(hidden=mean("hidden", (model.hidden_size,)) / tokens_seen, **stacked)


@contextmanager
def _accumulating(model: ModelConfig, chunk: Any, sums: dict[str, Tensor]) -> Iterator[None]:
    """Register hooks that accumulate activations within the context."""
    handles: list[Any] = []

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value.double()

    def inputs_of(module: Any, name: str, look: Callable[[Tensor], Tensor]) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, inputs: add(name, look(inputs[0]))))

    def outputs_of(module: Any, name: str, look: Callable[[Any], Tensor]) -> None:
        handles.append(module.register_forward_hook(lambda _, inputs, output: add(name, look(output))))

    def norms_of_heads(x: Tensor) -> Tensor:  # [s, b, heads x size]
        return x.unflatten(-1, (-1, model.head_size)).float().norm(dim=-1).flatten(0, -2).sum(0)

    for layer, block in enumerate(chunk.decoder.layers):
        handles.append(block.register_forward_hook(_influence(layer, add), with_kwargs=True))
        inputs_of(block.self_attention.linear_proj, f"heads {layer}", norms_of_heads)
        if model.moe is None:
            inputs_of(block.mlp.linear_fc2, f"ffn {layer}", _magnitudes)
            continue
        if model.moe.shared_expert_ffn_hidden_size:
            inputs_of(block.mlp.shared_experts.linear_fc2, f"ffn {layer}", _magnitudes)
        outputs_of(block.mlp.router, f"experts {layer}", lambda output: output[0].flatten(0, -2).sum(0))
        for expert, ffn in enumerate(block.mlp.experts.local_experts):
            inputs_of(
                ffn.linear_fc2, f"expert_ffn {layer}", partial(_magnitudes, row=expert, rows=model.moe.num_experts)
            )
    for module in chunk.modules():
        if type(module).__name__.endswith("RMSNorm"):
            outputs_of(module, "hidden", _magnitudes)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _influence(layer: int, add: Callable[[str, Tensor], None]) -> Callable[..., None]:
    def look(module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before = (named["hidden_states"] if "hidden_states" in named else inputs[0]).double()
        after = (output[0] if isinstance(output, tuple) else output).double()
        add(f"layers {layer}", (1 - torch.cosine_similarity(before, after, dim=-1)).sum())

    return look


def _magnitudes(x: Tensor, *, row: int = 0, rows: int = 0) -> Tensor:
    """|x| [..., units] summed over all but the last axis; with `rows`, as row `row` of a matrix of zeros."""
    total = x.abs().flatten(0, -2).sum(0)
    if not rows:
        return total
    matrix = total.new_zeros(rows, total.numel())
    matrix[row] = total
    return matrix
