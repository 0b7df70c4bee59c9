"""Each patch of Megatron-Core in docs/development.md has a test here that fails without it."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cupola_trainer import models, optim, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig, OptimizerConfig
from cupola_trainer.megatron.patches import PATCHES

MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=1,
    num_attention_heads=2,
    num_query_groups=1,
    ffn_hidden_size=16,
    max_position_embeddings=16,
)
TEXT = Path(__file__).parents[3] / "docs" / "development.md"
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA Megatron's own is used")


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


@pytest.fixture(scope="module")
def two_ranks(
    torchrun: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Result of each check of patch_ranks.py on rank 0: "" if it passed."""
    output = tmp_path_factory.mktemp("patches") / "checks.json"
    torchrun(2, Path(__file__).with_name("patch_ranks.py"), output)
    checks: dict[str, str] = json.loads(output.read_text())
    return checks


def test_the_documentation_lists_every_patch_and_a_test_that_is_here() -> None:
    rows = re.findall(
        r"^\| `(megatron\.core[\w.]*)` \| `(\w+)` \|.*\| `(test_\w+)` \|$", TEXT.read_text(), re.MULTILINE
    )
    patches = {(name, patch.__name__.lstrip("_")) for name, applied in PATCHES.items() for patch in applied}
    assert {(module, patch) for module, patch, _ in rows} == patches
    assert {test for _, _, test in rows} <= globals().keys()


@on_a_cpu
def test_without_cuda_fused_functions_are_not_compiled() -> None:
    from megatron.core import jit

    def function(x: int) -> int:
        return x

    assert jit.jit_fuser(function) is function


def test_the_router_multiplies_in_a_dtype_of_its_own_without_transformer_engine() -> None:
    from megatron.core.transformer.moe.moe_utils import router_gating_linear

    tokens = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.bfloat16)
    logits = router_gating_linear(tokens, weight, None, torch.float32)
    assert logits.dtype is torch.float32
    assert logits.tolist() == [[1.0, 11.0]]


def test_the_sizes_of_an_all_to_all_are_lists_on_a_cpu_too() -> None:
    from megatron.core.transformer.moe.moe_utils import maybe_move_tensor_to_cpu

    assert not torch.is_tensor(maybe_move_tensor_to_cpu(torch.tensor([3, 1]), as_numpy=True))
    assert maybe_move_tensor_to_cpu(torch.tensor([3, 1]), as_numpy=True).tolist() == [3, 1]


@pytest.mark.parametrize("sizes", [[(2000, 4096), (3,), (64, 320)], [(9_000_001,)], [(0,), (5, 5)]])
def test_the_norm_of_large_gradients_is_that_of_fp64(sizes: list[tuple[int, ...]]) -> None:
    from megatron.core.utils import local_multi_tensor_applier, local_multi_tensor_l2_norm

    torch.manual_seed(0)
    tensors = [torch.randn(size) for size in sizes]
    truth = torch.cat([x.flatten() for x in tensors]).double().norm()
    norm, _ = local_multi_tensor_applier(local_multi_tensor_l2_norm, torch.zeros(1), [tensors], False)
    assert norm.shape == (1,)
    assert norm.item() == pytest.approx(truth.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["copy_to_tensor_model_parallel_region", "reduce_from_tensor_model_parallel_region"])
def test_a_group_of_one_rank_shares_nothing_and_copies_nothing(name: str) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import mappings

    x = torch.ones(2, requires_grad=True)
    assert getattr(mappings, name)(x, group=parallel_state.get_tensor_model_parallel_group()) is x


def test_a_linear_layer_that_communicates_nothing_is_torchs_own() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce

    x, weight = torch.ones(1, 2, requires_grad=True), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    y = linear_with_grad_accumulation_and_async_allreduce(
        input=x,
        weight=weight,
        bias=None,
        gradient_accumulation_fusion=False,
        allreduce_dgrad=False,
        sequence_parallel=False,
        tp_group=parallel_state.get_tensor_model_parallel_group(),
    )
    assert y.tolist() == [[3.0, 7.0]]
    assert not written_in_python(y)


@pytest.mark.parametrize("rows", [1, 2], ids=["the same positions", "positions of their own"])
def test_rotary_embedding_is_one_kernel_for_rows_with_positions_of_their_own(rows: int) -> None:
    from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
    from megatron.core.transformer import TransformerConfig

    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    x, angles = torch.randn(5, 2, 1, 8), torch.randn(5, rows, 1, 4).repeat(1, 1, 1, 2)
    fused = apply_rotary_pos_emb(x, angles, TransformerConfig(**shape, apply_rope_fusion=True))
    assert torch.allclose(fused, apply_rotary_pos_emb(x, angles, TransformerConfig(**shape)), atol=1e-6)


@on_a_cpu
@pytest.mark.parametrize("weights", [None, torch.tensor([[2.0], [3.0]])])
def test_swiglu_writes_its_gradient_in_place_of_a_concatenation(weights: torch.Tensor | None) -> None:
    from megatron.core.fusions import fused_bias_swiglu

    x = torch.tensor([[1.0, -1.0, 2.0, 3.0], [0.0, 1.0, -2.0, 1.0]], requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        if weights is None:
            y = fused_bias_swiglu.bias_swiglu_impl(x, None)
        else:
            y = fused_bias_swiglu.weighted_bias_swiglu_impl(x, None, weights)
        y.sum().backward()
    assert torch.allclose(y, F.silu(x[:, :2]) * x[:, 2:] * (1 if weights is None else weights))
    assert "aten::cat" not in [event.key for event in profile.key_averages()]


@pytest.mark.parametrize("distributed", [False, True])
def test_the_optimizer_counts_its_steps_in_the_group_where_checkpoints_look(distributed: bool) -> None:
    layout = LayoutConfig(distributed_optimizer=distributed)
    trainee = optim.build(models.build(MODEL, layout), layout, OptimizerConfig(warmup_steps=0), steps=1)
    for chunk in trainee.chunks:
        for parameter in chunk.parameters():
            parameter.main_grad.fill_(1.0)
    assert trainee.update()[1]
    assert {group["step"] for group in trainee.optimizer.param_groups} == {1}
    for part in trainee.optimizer.chained_optimizers:
        assert {tuple(sorted(state)) for state in part.optimizer.state.values()} == {("exp_avg", "exp_avg_sq")}


def test_an_expert_drops_the_same_tokens_where_two_ranks_share_the_sequence(two_ranks: dict[str, str]) -> None:
    assert two_ranks["capacity"] == ""


def test_parts_of_unequal_length_are_gathered_and_summed_over_gloo(two_ranks: dict[str, str]) -> None:
    assert two_ranks["uneven"] == ""


def test_sequence_parallel_parts_do_not_pass_through_gloos_own_collectives(two_ranks: dict[str, str]) -> None:
    assert two_ranks["mappings"] == ""


def test_sequence_parallel_layers_do_not_pass_through_gloos_own_collectives(two_ranks: dict[str, str]) -> None:
    assert two_ranks["layers"] == ""


def test_gradients_and_weights_do_not_pass_through_gloos_own_collectives(two_ranks: dict[str, str]) -> None:
    assert two_ranks["buffers"] == ""


def written_in_python(output: torch.Tensor) -> bool:
    """Whether a Python autograd function produced the tensor."""
    return isinstance(output.grad_fn, torch.autograd.function.BackwardCFunction)
