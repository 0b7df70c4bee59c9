"""Upcycling: which weights are copied or reinitialized, and that every layout writes the same checkpoint."""

import json
import math
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.config import LayoutConfig, MoEConfig, UpcycleJob, write_job
from cupola_trainer.config.model.presets import PRESETS
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.generation.loading import load
from cupola_trainer.jobs.upcycle import plan, run
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.upcycling import Experts, upcycle_ffn

HIDDEN = 3


def ffn(h_ffn: int, hidden: int = HIDDEN, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate, up, down = (torch.randn(h_ffn, hidden, generator=generator) for _ in range(3))
    return gate, up, down.t().contiguous()


def units(gate: Tensor, up: Tensor, down: Tensor) -> Counter[tuple[float, ...]]:
    """The weights of each intermediate unit in all three matrices: a row of gate and up, a column of down."""
    return Counter(tuple(row) for row in torch.cat([gate, up, down.t()], dim=1).tolist())


def units_of_experts(experts: Experts) -> Counter[tuple[float, ...]]:
    return sum((units(*expert) for expert in zip(*experts, strict=True)), Counter())


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 20))  # h_FFN, n, h_E


@given(SIZES, st.integers(0, 2**31))
def test_experts_consist_of_whole_units_and_part_of_the_last_copy(sizes: tuple[int, int, int], seed: int) -> None:
    h_ffn, n, h_e = sizes
    dense = ffn(h_ffn)
    experts = upcycle_ffn(*dense, num_experts=n, expert_intermediate_size=h_e, reinit="none", seed=seed)
    assert experts.gate.shape == experts.up.shape == (n, h_e, HIDDEN)
    assert experts.down.shape == (n, HIDDEN, h_e)
    whole_copies, rest = divmod(n * h_e, h_ffn)
    held, once = units_of_experts(experts), units(*dense)
    beyond = held - Counter(dict.fromkeys(once, whole_copies))
    assert set(held) <= set(once)
    assert sum(held.values()) == n * h_e
    assert max(beyond.values(), default=0) <= 1
    assert sum(beyond.values()) == rest


@given(SIZES, st.floats(0, 1), st.integers(0, 2**31))
def test_exactly_the_given_share_of_each_expert_is_reinitialized(
    sizes: tuple[int, int, int], fraction: float, seed: int
) -> None:
    h_ffn, n, h_e = sizes
    options: dict[str, Any] = {"num_experts": n, "expert_intermediate_size": h_e, "seed": seed}
    kept = upcycle_ffn(*ffn(h_ffn), **options, reinit="none")
    drawn = upcycle_ffn(*ffn(h_ffn), **options, reinit_fraction=fraction)
    for expert in range(n):
        changed = sum(int((a[expert] != b[expert]).sum()) for a, b in zip(kept, drawn, strict=True))
        assert changed == round(fraction * 3 * h_e * HIDDEN)


@given(st.tuples(st.integers(2, 12), st.integers(1, 4), st.integers(2, 20)), st.floats(0, 1))
def test_exactly_the_given_share_of_whole_units_is_reinitialized(sizes: tuple[int, int, int], fraction: float) -> None:
    h_ffn, n, h_e = sizes
    options: dict[str, Any] = {"num_experts": n, "expert_intermediate_size": h_e, "seed": 4}
    kept = upcycle_ffn(*ffn(h_ffn), **options, reinit="none")
    drawn = upcycle_ffn(*ffn(h_ffn), **options, reinit_fraction=fraction, reinit="unit")
    for expert in range(n):
        changed = torch.stack([kept.gate[expert] != drawn.gate[expert], kept.up[expert] != drawn.up[expert],
                               kept.down[expert].t() != drawn.down[expert].t()])  # fmt: skip
        assert torch.equal(changed.any(dim=(0, 2)), changed.all(dim=(0, 2)))
        assert int(changed.all(dim=(0, 2)).sum()) == round(fraction * h_e)


@settings(max_examples=20)
@given(st.integers(0, 2**62), st.sampled_from(["element", "unit", "none"]))
def test_the_seed_determines_everything(seed: int, reinit: Any) -> None:
    options: dict[str, Any] = {"num_experts": 3, "expert_intermediate_size": 5, "reinit": reinit}
    first, second = (upcycle_ffn(*ffn(8), **options, seed=seed) for _ in range(2))
    other = upcycle_ffn(*ffn(8), **options, seed=seed + 1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.gate, other.gate)


def test_reinitialized_weights_have_the_requested_standard_deviation() -> None:
    dense = tuple(matrix * 10 + 5 for matrix in ffn(64, hidden=64))
    options: dict[str, Any] = {"num_experts": 8, "expert_intermediate_size": 64, "reinit_fraction": 1.0, "seed": 0}
    elements = upcycle_ffn(*dense, **options, init_std=0.02)
    assert elements.gate.std().item() == pytest.approx(0.02, rel=0.02)
    assert elements.gate.mean().item() == pytest.approx(0, abs=5e-4)
    whole = upcycle_ffn(*dense, **options, reinit="unit")
    assert whole.down.std().item() == pytest.approx(10, rel=0.05)
    assert whole.down.mean().item() == pytest.approx(5, abs=0.3)


def block_of(experts: Experts, shared: Experts | None, router: Tensor, top_k: int) -> Qwen2MoeSparseMoeBlock:
    """transformers' MoE block with our weights; the shared expert's gate is one half."""
    n, h_e, hidden = experts.gate.shape
    width = shared.gate.size(1) if shared else 0
    block = Qwen2MoeSparseMoeBlock(
        Qwen2MoeConfig(
            hidden_size=hidden, num_experts=n, num_experts_per_tok=top_k, norm_topk_prob=True,
            moe_intermediate_size=h_e, shared_expert_intermediate_size=width,
        )
    )  # fmt: skip
    none = torch.zeros(0, hidden)
    block.load_state_dict(
        {
            "gate.weight": router,
            "experts.gate_up_proj": torch.cat([experts.gate, experts.up], dim=1),
            "experts.down_proj": experts.down,
            "shared_expert_gate.weight": torch.zeros(1, hidden),
            "shared_expert.gate_proj.weight": shared.gate[0] if shared else none,
            "shared_expert.up_proj.weight": shared.up[0] if shared else none,
            "shared_expert.down_proj.weight": shared.down[0] if shared else none.t(),
        }
    )
    return block


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in_order"])
@pytest.mark.parametrize("with_shared", [False, True], ids=["routed", "routed_and_shared"])
@pytest.mark.parametrize("granularity", [1, 2, 4, 8])
def test_whole_copies_together_have_the_output_of_the_dense_ffn(
    granularity: int, with_shared: bool, shuffle: bool
) -> None:
    """An expert holds 1/granularity of a copy; with one router row per copy, the top k cover whole copies."""
    hidden, h_ffn, copies = 16, 24, 4
    gate, up, down = (matrix / 2 for matrix in ffn(h_ffn, hidden, seed=1))
    options: dict[str, Any] = {"reinit": "none", "shuffle": shuffle, "seed": 2}
    routed = upcycle_ffn(
        gate, up, down,
        num_experts=copies * granularity, expert_intermediate_size=h_ffn // granularity, **options,
    )  # fmt: skip
    shared = upcycle_ffn(gate, up, down, num_experts=1, expert_intermediate_size=h_ffn, **options)
    router = torch.randn(copies, hidden, generator=torch.Generator().manual_seed(3)).repeat_interleave(granularity, 0)
    scaled = routed._replace(down=routed.down * granularity / (2 if with_shared else 1))
    block = block_of(scaled, shared if with_shared else None, router, top_k=2 * granularity)
    x = torch.randn(1, 50, hidden, generator=torch.Generator().manual_seed(4))
    dense = (torch.nn.functional.silu(x @ gate.t()) * (x @ up.t())) @ down.t()
    with torch.no_grad():
        torch.testing.assert_close(block(x), dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("granularity", "shared"), [(1, None), (2, None), (4, 160), (8, 320)])
def test_match_dense_gives_the_dense_models_logits(
    saved: Path, tmp_path: Path, granularity: int, shared: int | None
) -> None:
    moe = MoEConfig(num_experts=4 * granularity, top_k=2 * granularity, expert_ffn_hidden_size=160 // granularity,
                    shared_expert_ffn_hidden_size=shared, norm_topk_prob=True)  # fmt: skip
    run(UpcycleJob(output=tmp_path, parent=saved / "gemma2", moe=moe, reinit="none", router="copies", match_dense=True))
    tokens = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(5))
    runtime.start(LayoutConfig(), seed=0)
    ours, dense = (logits_of(folder, tokens) for folder in (tmp_path / "checkpoint", saved / "gemma2"))
    runtime.stop()
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-5)


def logits_of(folder: Path, tokens: Tensor) -> Tensor:
    [model] = load(folder, LayoutConfig()).chunks
    with torch.no_grad():
        logits: Tensor = model(tokens, torch.arange(tokens.size(1)).expand_as(tokens), None)
    return logits


@pytest.mark.parametrize(
    ("moe", "options", "says"),
    [
        ({}, {}, "router='random' is not 'copies'"),
        ({"norm_topk_prob": False}, {"router": "copies"}, "moe.norm_topk_prob is not true"),
        ({"expert_ffn_hidden_size": 100}, {"router": "copies"}, "ffn_hidden_size=160 is not a multiple"),
        ({"top_k": 3}, {"router": "copies"}, "moe.top_k=3 does not cover whole copies"),
        ({"num_experts": 3}, {"router": "copies"}, "moe.num_experts=3 do not make whole copies"),
        (
            {"shared_expert_ffn_hidden_size": 96},
            {"router": "copies"},
            "shared_expert_ffn_hidden_size is not whole copies",
        ),
    ],
)
def test_match_dense_is_refused_where_no_scale_achieves_it(
    saved: Path, tmp_path: Path, moe: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    shape = MoEConfig(**{"num_experts": 4, "top_k": 2, "expert_ffn_hidden_size": 80, "norm_topk_prob": True} | moe)
    with pytest.raises(ConfigError, match=says):
        run(UpcycleJob(output=tmp_path, parent=saved / "dense", moe=shape, match_dense=True, **options))


@pytest.mark.parametrize(("router", "different"), [("random", 4), ("copies", 2), ("zeros", 1)])
def test_the_initial_router_is_configurable(saved: Path, tmp_path: Path, router: Any, different: int) -> None:
    moe = MoEConfig(num_experts=4, top_k=2, expert_ffn_hidden_size=80)
    run(UpcycleJob(output=tmp_path, parent=saved / "dense", moe=moe, router=router))
    rows = StoredTensors(tmp_path / "checkpoint").read("decoder.layers.mlp.router.weight", (1,))
    assert len({tuple(row) for row in rows.tolist()}) == different


def test_7b_to_57b_a14b_is_planned_without_weights(tmp_path: Path) -> None:
    """9 copies, 163,840 of 170,496 units used (Qwen2 technical report, section 2.2.2)."""
    moe = PRESETS["qwen2-57b-a14b"].moe
    assert moe
    job = UpcycleJob(output=tmp_path, parent=tmp_path, moe=moe)
    runtime.start(LayoutConfig(), seed=0)
    planned = plan(PRESETS["qwen2-7b"], job)
    runtime.stop()
    assert (planned.copies, planned.units, planned.used) == (9, 170_496, 163_840)
    assert planned.shapes["decoder.layers.mlp.experts.experts.linear_fc1.weight"] == (28, 64, 2 * 2560, 3584)
    assert planned.shapes["decoder.layers.mlp.experts.experts.linear_fc2.weight"] == (28, 64, 3584, 2560)
    assert planned.shapes["decoder.layers.mlp.shared_experts.linear_fc1.weight"] == (28, 2 * 20_480, 3584)
    assert planned.shapes["decoder.layers.mlp.router.weight"] == (28, 64, 3584)
    sizes = (torch.Size(shape).numel() for shape in planned.shapes.values())
    assert sum(sizes) == parameter_count(replace(PRESETS["qwen2-7b"], moe=moe))


def test_qwen2_57b_can_be_made_from_7b_although_its_sizes_do_not_divide() -> None:
    """64 experts of 2,560 from an FFN of 18,944: 9 copies, 163,840 of 170,496 units (Qwen2, section 2.2.2)."""
    dense = ffn(18_944, hidden=1)
    experts = upcycle_ffn(*dense, num_experts=64, expert_intermediate_size=2_560, reinit="none", seed=0)
    assert experts.gate.numel() == 163_840
    assert Counter(units_of_experts(experts).values()) == {9: 163_840 - 8 * 18_944, 8: 9 * 18_944 - 163_840}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_experts": 0}, "num_experts=0 and expert_intermediate_size=4 must be integers of at least 1"),
        ({"reinit_fraction": 1.5}, "reinit_fraction=1.5 is not between 0 and 1"),
        ({"reinit": "row"}, "reinit='row' is unknown. Use 'element', 'unit' or 'none'"),
        ({"init_std": 0.0}, "init_std=0.0 is not a positive number"),
        ({"init_std": math.inf}, "init_std=inf is not a positive number"),
        ({"num_experts": 2.5}, "num_experts=2.5 and expert_intermediate_size=4 must be integers"),
        ({"seed": 1 << 64}, "seed=18446744073709551616 has more than 64 bits"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        upcycle_ffn(*ffn(8), **({"num_experts": 2, "expert_intermediate_size": 4, "seed": 0} | options))


def test_a_unit_with_a_single_weight_is_reinitialized_to_the_same_value() -> None:
    one = torch.full((1, 1), 3.0)
    experts = upcycle_ffn(
        one, one, one, num_experts=2, expert_intermediate_size=1, reinit="unit", reinit_fraction=1, seed=0
    )
    assert all(torch.equal(matrix, torch.full((2, 1, 1), 3.0)) for matrix in experts)


def test_experts_of_a_model_in_training_do_not_require_grad() -> None:
    gate, up, down = (matrix.requires_grad_() for matrix in ffn(8))
    experts = upcycle_ffn(gate, up, down, num_experts=2, expert_intermediate_size=4, seed=0)
    assert not any(matrix.requires_grad for matrix in experts)


def test_integer_weights_are_refused() -> None:
    gate, up, down = ffn(8)
    with pytest.raises(
        ConfigError, match=r"are torch.int64, torch.float32 and torch.float32. Give one floating-point type"
    ):
        upcycle_ffn(gate.long(), up, down, num_experts=2, expert_intermediate_size=4, seed=0)


def test_matrices_of_mismatched_shapes_are_refused() -> None:
    gate, up, down = ffn(8)
    with pytest.raises(ConfigError, match=r"gate \(8, 3\), up \(8, 3\), down \(8, 3\)"):
        upcycle_ffn(gate, up, down.t(), num_experts=2, expert_intermediate_size=4, seed=0)


MOE = MoEConfig(num_experts=4, top_k=2, expert_ffn_hidden_size=56, shared_expert_ffn_hidden_size=96)


def test_a_job_writes_the_same_mixture_of_experts_in_every_layout(
    saved: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    job = UpcycleJob(output=tmp_path / "one", seed=11, parent=saved / "dense", moe=MOE)
    run(job)
    one = StoredTensors(tmp_path / "one" / "checkpoint")
    layouts: dict[str, dict[str, Any]] = {"experts": {"dp": 2, "ep": 2}, "tensors": {"tp": 2, "sp": True}}
    for name, layout in layouts.items():
        sharded = UpcycleJob(
            output=tmp_path / name, seed=11, parent=saved / "dense", moe=MOE, layout=LayoutConfig(**layout)
        )
        write_job(sharded, tmp_path / f"{name}.json")
        torchrun(2, "-m", "cupola_trainer", tmp_path / f"{name}.json")
        other = StoredTensors(tmp_path / name / "checkpoint")
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one)

    dense = StoredTensors(saved / "dense")
    assert torch.equal(one["embedding.word_embeddings.weight"], dense["embedding.word_embeddings.weight"])
    assert one["decoder.layers.mlp.experts.experts.linear_fc1.weight"].shape == (2, 4, 112, 64)
    fc1, kept = (
        one["decoder.layers.mlp.experts.experts.linear_fc1.weight"],
        dense["decoder.layers.mlp.linear_fc1.weight"],
    )
    assert torch.isin(fc1, kept).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert checkpoint.read_model(tmp_path / "one" / "checkpoint").moe == MOE


def test_a_job_reports_parameters_and_its_checkpoint(saved: Path, tmp_path: Path) -> None:
    run(UpcycleJob(output=tmp_path, parent=saved / "dense", moe=MOE))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["folder"] == "checkpoint"
    total = sum(tensor.numel() for tensor in StoredTensors(tmp_path / "checkpoint").values())
    assert result["metrics"] == {"parameters": total, "active_parameters": total - 2 * 2 * 3 * 64 * 56}
    assert [line["event"] for line in read_metrics(tmp_path / "metrics.jsonl")] == ["start", "step", "end"]


def test_a_mixture_of_experts_is_not_upcycled_again(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a mixture of experts already\. Upcycle a dense checkpoint"):
        run(UpcycleJob(output=tmp_path, parent=saved / "moe", moe=MOE))
