"""Online merging and LoRA have the losses and gradient norms of one process in every layout."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
METHODS = ("ondare", "onties", "lora", "lora of experts")


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., Any]) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("layouts")
    subprocess.run([sys.executable, HERE / "three_models.py", folder / "models"], check=True)
    found: dict[str, list[float]] = {}
    for ranks in (1, 2):
        torchrun(ranks, HERE / "finetuning_ranks.py", folder / "models", folder / f"{ranks}.json")
        found |= json.loads((folder / f"{ranks}.json").read_text())
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["one whole optimizer", "one full recompute", "tp2", "tp2 sp", "pp2", "cp2", "dp2",
                                    "dp2 ep2", "tp2 sp ep2", "dp2 whole optimizer"])  # fmt: skip
def test_every_layout_trains_alike(trajectories: dict[str, list[float]], layout: str, method: str) -> None:
    # Adam's first steps are as large as the learning rate, all of them: which are the largest, the last bit decides, and that
    # depends on the order in which tensor- and context-parallel ranks add up
    tolerance = 2e-2 if method == "onties" and layout[:2] in ("tp", "cp") else 1e-4
    kinds = [kind for kind in ("dense", "moe") if f"{layout}, {kind}, {method}" in trajectories]
    for kind in kinds:
        wanted = trajectories[f"one process, {kind}, {method}"]
        assert trajectories[f"{layout}, {kind}, {method}"] == pytest.approx(wanted, rel=tolerance), kind
    assert kinds or method == "lora of experts"


def test_every_method_trains_otherwise(trajectories: dict[str, list[float]]) -> None:
    last = {name: steps[-2] for name, steps in trajectories.items() if name.startswith("one process")}
    assert len(set(last.values())) == len(last) == 7
