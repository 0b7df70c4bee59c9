"""The post-training objectives have equal losses and gradient norms in every layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Trajectory = list[dict[str, float]]


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., Any]) -> dict[str, Trajectory]:
    folder = tmp_path_factory.mktemp("objectives")
    results: dict[str, Trajectory] = {}
    for ranks in (1, 2):
        torchrun(ranks, Path(__file__).with_name("objective_ranks.py"), folder / "teacher", folder / f"{ranks}.json")
        results |= json.loads((folder / f"{ranks}.json").read_text())
    return results


@pytest.mark.parametrize("layout", ["tp2 sp", "pp2", "pp2 vp2", "cp2", "dp2"])
@pytest.mark.parametrize("name", ["dpo", "kto", "reward", "forward_kl", "jsd", "replay"])
def test_every_objective_trains_the_same_in_every_layout(
    trajectories: dict[str, Trajectory], name: str, layout: str
) -> None:
    _same(trajectories[f"{name} dense {layout}"], trajectories[f"{name} dense one process"])


@pytest.mark.parametrize("layout", ["tp2 sp", "ep2 dp2"])
@pytest.mark.parametrize("name", ["reward", "forward_kl", "replay"])
def test_every_objective_trains_mixtures_of_experts_the_same_in_every_layout(
    trajectories: dict[str, Trajectory], name: str, layout: str
) -> None:
    _same(trajectories[f"{name} moe {layout}"], trajectories[f"{name} moe one process"])


@pytest.mark.parametrize("layout", ["pp2", "pp2 vp2"])
def test_recomputed_experts_in_a_pipeline_train_the_same(trajectories: dict[str, Trajectory], layout: str) -> None:
    """Micro-batches of conversations have different counts, and others run between a forward pass and its recomputation."""
    recomputed, stored = (trajectories[f"sft moe {layout}{how}"] for how in (" full recompute", ""))
    for step, (ours, wanted) in enumerate(zip(recomputed, stored, strict=True)):
        assert ours == pytest.approx(wanted, rel=1e-6), step


def _same(actual: Trajectory, expected: Trajectory) -> None:
    assert len({step["loss"] for step in expected}) == len(expected)
    for step, (ours, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert ours["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4), step
        assert ours == pytest.approx(wanted, rel=1e-4, abs=1e-5), step
