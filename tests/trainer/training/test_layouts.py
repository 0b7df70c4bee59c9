"""Losses and gradient norms are equal in every layout: the loss alone has missed faults that the gradient norm showed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Trajectory = list[dict[str, float]]

MODELS = (
    "dense",
    "moe",
    "seq_aux",
    "global_aux",
    "bias",
    "capacity",
    "llama",
    "gemma2",
    "qk_norm",
    "dual_chunk",
    "logn",
)
NAMES = (
    "dense tp2", "dense tp2 sp", "dense pp2", "dense pp2 vp2", "dense dp2", "dense dp2 whole optimizer",
    "dense dp2 overlap", "dense cp2", "dense full recompute", "dense selective recompute",
    "moe ep2", "moe dp2", "moe tp2 sp ep2", "moe tp2 sp etp2", "moe tp2 sp etp1", "moe dp2 etp2", "moe pp2", "moe cp2",
    "moe dp2 ep2 overlap", "moe dp2 offloaded optimizer",
    "moe full recompute", "moe selective recompute", "seq_aux tp2 sp ep2", "seq_aux cp2", "global_aux tp2 sp ep2",
    "global_aux pp2", "bias dp2 ep2", "capacity dp2 ep2", "capacity tp2 sp ep2", "capacity cp2",
    "llama tp2 sp", "qk_norm tp2", "qk_norm tp2 sp", "qk_norm cp2", "dual_chunk tp2 sp", "dual_chunk pp2 vp2",
    "logn cp2", "gemma2 tp2 sp", "gemma2 pp2 vp2", "gemma2 cp2", "gemma2 dp2 overlap",
    "scalar tp2", "scalar tp2 sp", "scalar pp2 vp2", "scalar cp2", "scalar dp2",
    "scalar_moe pp2", "logits tp2 sp", "logits cp2", "dual_chunk cp2",
    "packed selective recompute", "packed full recompute", "packed tp2 sp", "packed pp2 vp2", "packed cp2",
    "packed_moe cp2 ep2", "packed_dual_chunk cp2", "packed_gemma2 cp2",
    "packed_gemma3 cp2", "gemma3 tp2 sp", "gemma3 pp2 vp2", "olmo2 tp2", "olmo2 tp2 sp", "olmo2 pp2", "olmo2 cp2",
    "states dp2", "states tp2 sp", "states_moe dp2 ep2",
)  # fmt: skip
FOUR = (
    "dense tp2 pp2",
    "moe tp2 sp ep2 dp2",
    "bias tp2 sp pp2",
    "scalar_moe tp2 sp ep2 dp2",
    "logits tp2 pp2",
    "packed_odd cp4",
    "packed_odd tp2 cp2",
)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., Any]) -> dict[str, Trajectory]:
    """Losses and gradient norms of every layout, with one launch per world size."""
    folder = tmp_path_factory.mktemp("layouts")
    results: dict[str, Trajectory] = {}
    for ranks in (1, 2):
        torchrun(ranks, Path(__file__).with_name("layout_ranks.py"), folder / f"{ranks}.json")
        results |= json.loads((folder / f"{ranks}.json").read_text())
    return results


def assert_equal(actual: Trajectory, expected: Trajectory, name: str) -> None:
    for step, (numbers, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert numbers["loss"] == pytest.approx(wanted["loss"], rel=1e-5), (name, step)
        assert numbers["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4), (name, step)
        assert numbers.get("aux_loss", 0.0) == pytest.approx(wanted.get("aux_loss", 0.0), rel=1e-4), (name, step)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradient_norms_equal_those_of_one_process(trajectories: dict[str, Trajectory], name: str) -> None:
    assert_equal(trajectories[name], trajectories[f"{name.split()[0]} one process"], name)


@pytest.mark.slow
def test_four_processes_give_the_same_numbers(
    trajectories: dict[str, Trajectory], tmp_path: Path, torchrun: Callable[..., Any]
) -> None:
    torchrun(4, Path(__file__).with_name("layout_ranks.py"), tmp_path / "4.json")
    results: dict[str, Trajectory] = json.loads((tmp_path / "4.json").read_text())
    assert set(FOUR) <= set(results)
    for name in FOUR:
        assert_equal(results[name], trajectories[f"{name.split()[0]} one process"], name)


@pytest.mark.slow  # 40 layouts
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranks", [2, 4])
def test_combined_parallelism_gives_the_same_numbers(
    trajectories: dict[str, Trajectory], tmp_path: Path, torchrun: Callable[..., Any], ranks: int
) -> None:
    torchrun(ranks, Path(__file__).with_name("layout_ranks.py"), tmp_path / "results.json", "combined", timeout=1000)
    results: dict[str, Trajectory] = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == {2: 6, 4: 34}[ranks]
    for name, numbers in results.items():
        assert_equal(numbers, trajectories[f"{name.split()[0]} one process"], name)


@pytest.mark.parametrize("name", ["bf16 one process", "bf16 tp2 sp", "bf16 dp2", "bf16_moe dp2 ep2"])
def test_bf16_with_fp32_master_weights_follows_fp32(trajectories: dict[str, Trajectory], name: str) -> None:
    expected = trajectories["moe one process" if "moe" in name else "dense one process"]
    for actual, wanted in zip(trajectories[name], expected, strict=True):
        assert actual["loss"] == pytest.approx(wanted["loss"], rel=0.005)
        assert actual["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.05)
    assert trajectories[name][-1]["loss"] != expected[-1]["loss"]


def test_the_loss_from_logits_equals_the_token_loss(trajectories: dict[str, Trajectory]) -> None:
    for actual, wanted in zip(trajectories["logits one process"], trajectories["dense one process"], strict=True):
        assert actual == pytest.approx(wanted, rel=1e-5)


def test_training_moves_the_loss(trajectories: dict[str, Trajectory]) -> None:
    for model in MODELS:
        losses = [step["loss"] for step in trajectories[f"{model} one process"]]
        assert len(set(losses)) == 4
        assert all(4.0 < loss < 7.0 for loss in losses)  # ln 128 = 4.85, for random weights and random tokens


def test_every_kind_of_load_balancing_trains_differently(trajectories: dict[str, Trajectory]) -> None:
    norms = {trajectories[f"{model} one process"][-1]["grad_norm"] for model in MODELS}
    assert len(norms) == len(MODELS)
