"""Training in FP8, on a stand-in for Transformer Engine that rounds to FP8 and multiplies in fp32 on the CPU.

It shows which products are in FP8, what is rounded when and by which scale, what is padded, and that checkpoints stay
those of a bf16 model. It cannot show the kernels' own numbers, their speed, or their memory.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.megatron.fp8_ranks import HALF, LAYOUTS, RECIPES
from tests.trainer.megatron.test_transformer_engine import STAND_INS, sys_path
from tests.trainer.training.layout_ranks import MODELS, OPTIMIZER, STEPS, batches_of, objective_of

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import LayoutConfig
from cupola_trainer.objectives import passes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA the real one is tested")
Numbers = list[list[float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fp8")


def launch(folder: Path, torchrun: Callable[..., Any], ranks: int) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_INS), *sys_path()]))
        torchrun(ranks, Path(__file__).with_name("fp8_ranks.py"), folder)
    found: dict[str, Any] = json.loads((folder / f"{ranks}.json").read_text())
    return found


@pytest.fixture(scope="module")
def one(folder: Path, torchrun: Callable[..., Any]) -> dict[str, Any]:
    return launch(folder, torchrun, 1)


def assert_near(actual: Numbers, wanted: Numbers, loss: float, norm: float) -> None:
    assert len(actual) == len(wanted) == STEPS
    for (a, b), (c, d) in zip(actual, wanted, strict=True):
        assert a == pytest.approx(c, rel=loss)
        assert b == pytest.approx(d, rel=norm)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["dense", "moe", "packed"])
def test_every_recipe_trains_near_bf16_but_not_in_it(one: dict[str, Any], name: str, recipe: str) -> None:
    assert_near(one[f"{name} {recipe}"], one[f"{name} None"], loss=0.01, norm=0.05)
    assert one[f"{name} {recipe}"][0] != one[f"{name} None"][0]


def test_first_and_last_layers_stay_in_bf16_where_the_recipe_allows_it(one: dict[str, Any]) -> None:
    assert one["layers"] == {"current": [1, 2], "delayed": [0, 1, 2, 3], "block": [1, 2], "mxfp8": [1, 2]}


def test_recomputed_layers_multiply_in_fp8_again(one: dict[str, Any]) -> None:
    assert one["recomputed"] == one["moe current"]


@pytest.mark.parametrize("recipe", ["current", "delayed"])
def test_passes_without_gradient_are_bf16_and_leave_no_trace(one: dict[str, Any], recipe: str) -> None:
    found = one["interrupted"][recipe]
    assert found["rounded"] == [0] * STEPS
    assert found["evaluated"] == found["evaluated in bf16"]
    assert found["steps"] == one[f"moe {recipe}"]


def test_weights_are_rounded_anew_in_every_step(one: dict[str, Any]) -> None:
    assert one["stale"] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_goes_on_bit_for_bit(one: dict[str, Any], recipe: str) -> None:
    assert one["resumed"][recipe] == one[f"moe {recipe}"][HALF:]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_of_fp8_is_one_of_bf16(one: dict[str, Any], folder: Path, recipe: str) -> None:
    """It loads into torch's layers, here on a CPU, and trains on in bf16."""
    runtime.start(LayoutConfig(), seed=0)
    chunks = models.build(MODELS["moe"], LayoutConfig(), seed=5, dtype=torch.bfloat16)
    trainee = optim.build(chunks, LayoutConfig(), OPTIMIZER, STEPS)
    weights = StoredState(folder / recipe / "state")
    assert {box.dtype for boxes in weights.boxes.values() for box in boxes} == {"bfloat16"}
    extra = [key for key in StoredState(folder / recipe / "optimizer").boxes if "fp8" in key]
    assert len(extra) == (6 * 4 if recipe == "delayed" else 0)  # a layer has six linear layers or groups of them
    checkpoint.load_training(folder / recipe, trainee.chunks, trainee.optimizer, trainee.scheduler)
    objective = objective_of("moe")
    loss = passes.train(trainee.chunks, objective, batches_of(objective, HALF))["loss"]
    assert loss == pytest.approx(one[f"moe {recipe}"][HALF][0], rel=0.01)
    runtime.stop()


@pytest.mark.slow
def test_layouts_train_near_one_process(one: dict[str, Any], folder: Path, torchrun: Callable[..., Any]) -> None:
    two = launch(folder, torchrun, 2)
    for name in LAYOUTS:
        assert_near(two[name], one[f"{name.split()[0]} current"], loss=0.01, norm=0.05)
    assert_near(two["delayed dp2"], one["dense delayed"], loss=0.01, norm=0.05)
    first, second = two["scales"]
    assert len(first) == 2 * 4
    assert first == second
