"""Data parallelism that gathers weights beside the forward pass waits for a module's in a hook before it is called."""

from dataclasses import replace

import pytest
import torch
from tests.trainer.models.test_against_transformers import DENSE, GEMMA3, MOE, OLMO2

from cupola_trainer import models, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.models.hooks import WAITS
from cupola_trainer.models.settings import settings


@pytest.mark.parametrize(
    ("model", "overlap"),
    [(DENSE, False), (MOE, False), (MOE, True), (GEMMA3, False), (OLMO2, False)],
    ids=["dense", "moe", "moe with its shared expert beside the exchange", "gemma3", "olmo2"],
)
def test_every_modules_hook_runs_before_its_weights_are_read(
    model: ModelConfig, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"moe_shared_expert_overlap": True} if overlap else {}
    monkeypatch.setattr(models, "settings", lambda *given: settings(*given) | more)
    runtime.start(LayoutConfig(), seed=0)
    [chunk] = models.build(replace(model, max_position_embeddings=32), LayoutConfig())
    owners = {module for module in chunk.modules() if list(module.parameters(recurse=False))}
    told = set()

    def wait(module: torch.nn.Module, inputs: object) -> None:
        told.add(module)

    wait.__module__ = WAITS  # any other hook makes experts call their layers
    for module in owners:
        module.register_forward_pre_hook(wait)
    tokens = torch.arange(32).expand(2, 32)
    with torch.no_grad():  # with gradients, Megatron would keep the balancing loss for whoever trains next
        chunk(tokens, tokens, None, labels=tokens)
    assert owners - told == set()
    runtime.stop()


def test_a_hook_on_an_experts_layer_sees_every_token_that_is_routed_to_it() -> None:
    """As pruning measures the units of each expert."""
    runtime.start(LayoutConfig(), seed=0)
    [chunk] = models.build(MOE, LayoutConfig())
    seen: list[int] = []
    for layer in chunk.decoder.layers:
        for expert in layer.mlp.experts.local_experts:
            expert.linear_fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].size(0)))
    tokens = torch.arange(32).expand(2, 32)
    with torch.no_grad():
        chunk(tokens, tokens, None, labels=tokens)
    assert MOE.moe
    assert sum(seen) == MOE.num_layers * tokens.numel() * MOE.moe.top_k
    runtime.stop()
