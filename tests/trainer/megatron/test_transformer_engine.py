"""The layers of Transformer Engine, in place of which a stand-in with its contract computes on the CPU.

The numbers are those of the plain torch layers, in every layout, for rows of one text and of several.
"""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.megatron.te_ranks import BF16, GENERATING, LAYOUTS, LEAKS, MORE, continued, on_meta, responses
from tests.trainer.training.layout_ranks import MODELS, objective_of, trajectory
from tests.trainer.training.test_layouts import Trajectory, assert_equal

from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig

STAND_INS = Path(__file__).parents[1] / "standins"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA the real one is tested")
RANKS = [1, pytest.param(2, marks=pytest.mark.slow)]
OWN_ATTENTION = ("dual_chunk", "logn", "gemma2", "packed_dual_chunk", "packed_gemma2", "gemma3", "packed_gemma3")
"""Models that need more than Transformer Engine's attention."""
OWN_LAYERS = ("olmo2",)
"""Models whose layers have norms where Transformer Engine's have none."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transformer_engine")


@pytest.fixture(scope="module")
def torchs(folder: Path) -> Iterator[dict[str, Any]]:
    """The same without Transformer Engine, in this process."""
    found: dict[str, Any] = {"written": continued(folder / "torch", LayoutConfig(), write=True)}
    for model in sorted({name.split()[0] for name in LAYOUTS}):
        found[model] = trajectory(MODELS[model], LayoutConfig(), "fp32", objective_of(model))
    for name in BF16:
        found[f"{name} in bf16"] = trajectory(MODELS[name], LayoutConfig(), "bf16", objective_of(name))
    found["responses"] = {name: responses(name, LayoutConfig()) for name in GENERATING}
    yield found
    runtime.stop()


def launch(folder: Path, torchrun: Callable[..., Any], ranks: int, *more: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_INS), *sys_path()]))
        torchrun(ranks, Path(__file__).with_name("te_ranks.py"), folder, *more)
    found: dict[str, Any] = json.loads((folder / f"{ranks}.json").read_text())
    return found


def sys_path() -> list[str]:
    return [str(Path(__file__).parents[3]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


@pytest.fixture(scope="module")
def on_ranks(folder: Path, torchs: dict[str, Any], torchrun: Callable[..., Any]) -> Callable[[int], dict[str, Any]]:
    """What te_ranks.py finds on a number of ranks, launched once."""
    return cache(lambda ranks: launch(folder, torchrun, ranks))


@pytest.fixture(scope="module")
def one(on_ranks: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    return on_ranks(1)


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(OWN_LAYERS)))
def test_layers_are_those_of_transformer_engine(one: dict[str, Any], name: str) -> None:
    found = one["classes"][name]
    assert found["self_attention.linear_qkv"] == "TELayerNormColumnParallelLinear"
    assert found["self_attention.linear_proj"] == "TERowParallelLinear"
    assert found["final"] == "RMSNorm"
    if MODELS[name].moe:
        assert found["pre_mlp_layernorm"] == "RMSNorm"
        assert found["mlp.experts"] == "TEGroupedMLP"
        assert found["mlp.experts.linear_fc1"] == "TEColumnParallelGroupedLinear"
        assert found["mlp.router"] == "Router"
    else:
        assert found["mlp.linear_fc1"] == "TELayerNormColumnParallelLinear"
    if MODELS[name].qk_norm:
        assert found["self_attention.q_layernorm"] == found["self_attention.k_layernorm"] == "RMSNorm"
    attention = "TorchAttention" if name in OWN_ATTENTION else "PackedAttention"
    assert found["self_attention.core_attention"] == attention


@pytest.mark.parametrize("name", OWN_LAYERS)
def test_layers_with_norms_elsewhere_are_torchs(one: dict[str, Any], name: str) -> None:
    assert one["classes"][name]["self_attention.linear_qkv"] == "ColumnParallelLinear"
    assert one["classes"][name]["mlp.linear_fc1"] == "ColumnParallelLinear"


def test_attention_in_fp32_is_torchs_because_the_fused_kernels_know_none(one: dict[str, Any]) -> None:
    assert one["classes in fp32"]["self_attention.core_attention"] == "TorchAttention"
    assert one["classes in fp32"]["self_attention.linear_qkv"] == "TELayerNormColumnParallelLinear"
    assert one["refusals"]["packed in fp32"] == "ValueError"


def test_adapters_and_measurements_get_torchs_layers(one: dict[str, Any]) -> None:
    found = one["plain classes"]
    assert found["input_layernorm"] == found["pre_mlp_layernorm"] == found["final"] == "TorchRMSNorm"
    assert found["self_attention.linear_qkv"] == found["mlp.linear_fc1"] == "ColumnParallelLinear"
    assert found["self_attention.core_attention"] == "TorchAttention"


def test_planning_allocates_nothing(one: dict[str, Any], torchs: dict[str, Any]) -> None:
    assert {place for place, *_ in one["meta"].values()} == {"meta"}
    assert one["meta"] == on_meta()


def test_the_stand_in_refuses_what_transformer_engine_refuses(one: dict[str, Any]) -> None:
    refused = one["refusals"]
    assert refused.pop("packed") == ""
    assert refused.pop("rotary for each row") == "RuntimeError"
    assert refused.pop("packed in fp32") == "ValueError"
    assert len(refused) == 6
    assert set(refused.values()) == {"AssertionError"}


def test_offloaded_activations_change_no_number(one: dict[str, Any], torchs: dict[str, Any]) -> None:
    assert_equal(one["offloading"]["steps"], torchs["packed"], "offloading")
    assert one["offloading"]["bytes"] > 0


@pytest.mark.parametrize("ranks", RANKS)
def test_losses_and_gradient_norms_are_those_of_torchs_layers(
    on_ranks: Callable[[int], dict[str, Any]], torchs: dict[str, Trajectory], ranks: int
) -> None:
    names = [name for name, layout in LAYOUTS.items() if layout.world_size == ranks]
    assert len(names) == {1: 7, 2: 6}[ranks]
    for name in names:
        assert_equal(on_ranks(ranks)[name], torchs[name.split()[0]], name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_more_layouts_compute_the_same(
    tmp_path: Path, torchs: dict[str, Trajectory], torchrun: Callable[..., Any], ranks: int
) -> None:
    found = launch(tmp_path, torchrun, ranks, "more")
    names = [name for name, layout in MORE.items() if layout.world_size == ranks]
    assert len(names) == {1: 4, 2: 7}[ranks]
    for name in names:
        model = name.split()[0]
        if model not in torchs:
            torchs[model] = trajectory(MODELS[model], LayoutConfig(), "fp32", objective_of(model))
        assert_equal(found[name], torchs[model], name)


@pytest.mark.parametrize("name", BF16)
def test_bf16_computes_the_same_up_to_its_rounding(
    one: dict[str, Any], torchs: dict[str, Trajectory], name: str
) -> None:
    for actual, wanted in zip(one[f"{name} in bf16"], torchs[f"{name} in bf16"], strict=True):
        assert actual["loss"] == pytest.approx(wanted["loss"], rel=0.005)
        assert actual["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.05)


@pytest.mark.parametrize("ranks", RANKS)
def test_rows_with_positions_of_their_own_take_our_rotary_kernel(
    on_ranks: Callable[[int], dict[str, Any]], ranks: int
) -> None:
    found, layout = on_ranks(ranks), {1: "one process", 2: "cp2"}[ranks]
    assert found[f"rotations of dense {layout}"] == [32 // ranks]
    assert found[f"rotations of packed {layout}"] == []


@pytest.mark.parametrize("name", LEAKS)
def test_a_text_sees_no_other_text_of_its_row(one: dict[str, Any], name: str) -> None:
    assert one["leaks"][name] == []


def test_with_a_mask_instead_of_packed_rows_texts_would_leak(one: dict[str, Any]) -> None:
    assert one["leaks with masks"] == [
        "test_a_change_of_one_text_changes_no_loss_of_another",
        "test_no_gradient_flows_into_another_text",
        "test_a_text_that_shares_a_row_is_computed_as_if_it_were_alone",
    ]


@pytest.mark.parametrize("ranks", RANKS)
def test_a_checkpoint_of_torchs_layers_trains_on(
    on_ranks: Callable[[int], dict[str, Any]], torchs: dict[str, Trajectory], ranks: int
) -> None:
    assert_equal(on_ranks(ranks)["read"], torchs["written"], f"{ranks} ranks")


@pytest.mark.parametrize("ranks", RANKS)
def test_torchs_layers_train_on_from_a_checkpoint_of_transformer_engine(
    on_ranks: Callable[[int], dict[str, Any]], torchs: dict[str, Trajectory], folder: Path, ranks: int
) -> None:
    on_ranks(ranks)
    saved = folder / f"transformer_engine-{ranks}"
    assert_equal(continued(saved, LayoutConfig()), torchs["written"], saved.name)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", GENERATING)
def test_greedy_responses_to_prompts_of_several_lengths_are_the_same(
    on_ranks: Callable[[int], dict[str, Any]], torchs: dict[str, Any], name: str, ranks: int
) -> None:
    wanted = torchs["responses"][name]
    assert [len(tokens) for tokens, _ in wanted] == [10] * 5
    for (tokens, logprobs), (wanted_tokens, wanted_logprobs) in zip(
        on_ranks(ranks)["responses"][name], wanted, strict=True
    ):
        assert tokens == wanted_tokens
        assert logprobs == pytest.approx(wanted_logprobs, abs=1e-4)
