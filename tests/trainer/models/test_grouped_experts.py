"""Experts stacked for torch's grouped products, as GPUs take them, against experts one after another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.training import layout_ranks
from tests.trainer.training.layout_ranks import MODELS, objective_of, trajectory
from tests.trainer.training.test_layouts import assert_equal

from cupola_trainer import models, runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.models.initialization import sharded_tensors


def launch(folder: Path, torchrun: Callable[..., Any], ranks: int) -> dict[str, Any]:
    torchrun(ranks, Path(layout_ranks.__file__), folder / "found.json", "stacked")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_losses_and_gradient_norms_are_those_of_experts_one_after_another(
    tmp_path: Path, torchrun: Callable[..., Any], ranks: int
) -> None:
    found = launch(tmp_path, torchrun, ranks)
    assert len(found) == {1: 4, 2: 5}[ranks]
    for name in found:
        precision = "bf16" if name.startswith("bf16") else "fp32"
        wanted = trajectory(MODELS[name.split()[0]], LayoutConfig(), precision, objective_of(name))
        if precision == "fp32":
            assert_equal(found[name], wanted, name)
        for actual, other in zip(found[name], wanted, strict=True):
            assert actual["loss"] == pytest.approx(other["loss"], rel=0.005)
    runtime.stop()


def test_checkpoints_have_the_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.start(LayoutConfig(), seed=0)

    def tensors() -> dict[Any, Any]:
        [chunk] = models.build(MODELS["moe"], LayoutConfig(), seed=5)
        return {(each.key, each.global_shape, each.global_offset, each.replica_id): each.data.detach().clone()
                for each in sharded_tensors([chunk])}  # fmt: skip

    plain = tensors()
    monkeypatch.setattr(runtime, "has_grouped_products", lambda dtype: True)
    stacked = tensors()
    assert plain.keys() == stacked.keys()
    assert all(weight.equal(stacked[place]) for place, weight in plain.items())
    runtime.stop()


def test_adapters_and_measurements_get_experts_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.start(LayoutConfig(), seed=0)
    monkeypatch.setattr(runtime, "has_grouped_products", lambda dtype: True)
    for plain, name in ((True, "Experts"), (False, "GroupedExperts")):
        [chunk] = models.build(MODELS["moe"], LayoutConfig(), seed=None, plain_layers=plain)
        assert type(chunk.decoder.layers[0].mlp.experts).__name__ == name
    runtime.stop()
