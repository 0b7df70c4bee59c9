"""Texts that share a row: a change of one must change nothing of the others, and no gradient may flow between them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig
from cupola_trainer.forward.schedule import forward
from gpu_check.device import HAS_TRANSFORMER_ENGINE
from gpu_check.networks import DENSE, FAMILIES, build, draws
from gpu_check.rows import Section

LENGTHS = (40, 1, 56, 31)
"""Tokens of each text in the row."""
CHANGED = 2
"""The text that is changed, and into which no other's gradient may flow."""
NOISE = 0.02
"""Largest change of a logit, relative to their largest, that grouping an expert's tokens anew may cause in bf16."""


def run(section: Section) -> None:
    """Look at each family in bf16, in torch's layers and in Transformer Engine's."""
    families = {name: model for name, model in FAMILIES.items() if not section.small or name in ("qwen2", "gemma2")}
    for name, model in families.items():
        section.attempt(f"{name}, torch's layers", lambda: _look(section, f"{name}, torch's layers", model, True))  # noqa: B023
        if HAS_TRANSFORMER_ENGINE:
            layers = f"{name}, Transformer Engine's layers"
            section.attempt(layers, lambda: _look(section, layers, model, False))  # noqa: B023
    if not HAS_TRANSFORMER_ENGINE:
        section.unavailable("Transformer Engine's layers", "transformer_engine is not installed")


def _look(section: Section, name: str, model: ModelConfig, plain_layers: bool) -> None:
    if model.moe:  # the balancing loss depends on all tokens, and its gradient is added in any backward pass
        model = replace(model, moe=replace(model.moe, aux_loss_coeff=0.0))
    chunk, _ = build(model, torch.bfloat16, plain_layers=plain_layers)
    changed_outside, changed_inside = _changes(chunk)
    into, own = _gradients(chunk)
    allowed = 0.0 if model.moe is None else NOISE
    section.judged(
        name,
        changed_outside <= allowed < changed_inside and into == 0 < own,
        {
            "change of other texts' logits": changed_outside,
            "change of its own": changed_inside,
            "gradient into another text": into,
            "gradient within": own,
            "attention": type(chunk.decoder.layers[0].self_attention.core_attention).__name__,
        },
        f"other texts' logits change by at most {allowed:g}, no gradient into another text",
    )


def _changes(chunk: Any) -> tuple[float, float]:
    """How much the logits of the other texts and of the changed one move, relative to the largest logit."""
    inside = _segments() == CHANGED
    with torch.no_grad():
        before, after = (forward(_batch(seed, inside), chunk, "logits").float().cpu()[0] for seed in (0, 1))
    moved = (after - before).abs().amax(-1) / before.abs().max()
    return float(moved[~inside].max()), float(moved[inside].max())


def _gradients(chunk: Any) -> tuple[float, float]:
    """The largest gradient of the other texts' logits by the embeddings of the one text, and by their own."""
    embedded: list[Tensor] = []
    hook = chunk.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    inside = _segments() == CHANGED
    logits = forward(_batch(0, inside), chunk, "logits")
    hook.remove()
    outside = (~inside).to(logits.device)
    (gradient,) = torch.autograd.grad(logits[0, outside].float().square().sum(), embedded)  # [s, 1, h]
    sizes = gradient[:, 0].float().abs().amax(-1).cpu()
    return float(sizes[inside].max()), float(sizes[~inside].min())


def _segments() -> Tensor:
    return torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))


def _batch(seed: int, inside: Tensor) -> dict[str, Tensor]:
    """One row of four texts, whose changed text follows from the seed."""
    device, length = runtime.device(), sum(LENGTHS)
    tokens = torch.from_numpy(draws(4).integers(0, DENSE.vocab_size, length))
    changed = torch.from_numpy(draws(5, seed).integers(0, DENSE.vocab_size, length))
    return {
        "tokens": torch.where(inside, changed, tokens)[None].to(device),
        "position_ids": torch.arange(length, device=device)[None],
        "segments": _segments()[None],
    }
