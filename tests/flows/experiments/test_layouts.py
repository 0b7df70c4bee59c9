"""`cupola verify-layout` with real ranks in both layouts."""

import json
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.experiments.layout_comparison import parse_layout
from cupola_platform.errors import ConfigError
from cupola_trainer.config import BatchConfig, LayoutConfig
from cupola_trainer.training.layout_comparison import Comparison, StepNumbers, common_batch, layout_name


@pytest.mark.slow  # half a minute for each layout
@pytest.mark.parametrize("layout", ["tp=2", "tp=2,pp=2"])
def test_two_layouts_give_the_same_numbers(cupola: Any, recipe: Path, layout: str) -> None:
    done = cupola("verify-layout", str(recipe), "--layout", layout, "--against", "tp=1", "--steps", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["equal"] is True
    assert [step["step"] for step in found["steps"]] == [1, 2, 3]
    assert found["loss_difference"] <= 1e-5
    assert found["norm_difference"] <= 1e-4
    assert all(5 < step["loss"] < 7 and step["grad_norm"] > 0 for step in found["steps"])


@pytest.mark.slow
def test_a_difference_above_the_tolerance_exits_with_status_1(cupola: Any, recipe: Path) -> None:
    strict = ("--steps", "6", "--norm-tolerance", "0", "--loss-tolerance", "0")
    again = cupola("verify-layout", str(recipe), "--layout", "tp=2", *strict)
    assert again.returncode == 1
    assert "DIFFERENT" in again.stdout


def test_a_layout_that_the_model_does_not_fit_is_refused_before_anything_starts(cupola: Any, recipe: Path) -> None:
    done = cupola("verify-layout", str(recipe), "--layout", "pp=3")
    assert done.returncode == 2
    assert "num_layers=2 is not a multiple of pp=3" in done.stderr
    assert done.stderr.count("\n") <= 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tq=2", "'tq' is unknown. Did you mean 'tp'?"),
        ("tp=2,tp=4", "give each key once"),
        ("tp", "give each key once, as KEY=NUMBER"),
        ("tp=0", "tp=0: input should be greater than or equal to 1"),
        ("dp=two", "dp=two: "),
    ],
)
def test_layouts_are_parsed_strictly(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="--layout") as caught:
        parse_layout("--layout", text)
    assert said in str(caught.value)


def test_layouts_are_parsed_and_printed_in_the_same_form() -> None:
    layout = LayoutConfig(tp=2, pp=2, vp=2, sp=True)
    assert layout_name(layout) == "tp=2,pp=2,vp=2,sp=true"
    assert parse_layout("--layout", layout_name(layout)) == layout
    assert layout_name(LayoutConfig()) == "tp=1"


def test_both_layouts_take_the_same_micro_batches() -> None:
    batch = BatchConfig(sequence_length=64, micro_batch_size=4, global_batch_size=4)
    shared = common_batch(batch, LayoutConfig(dp=2), LayoutConfig(pp=2, vp=2))
    assert (shared.micro_batch_size, shared.global_batch_size) == (2, 4)
    assert [shared.num_microbatches(ways) for ways in (1, 2)] == [2, 1]


def test_a_number_that_is_not_finite_is_never_equal() -> None:
    one = LayoutConfig()
    batch = BatchConfig(sequence_length=64)
    steps = (StepNumbers(1, 5.0, 1.0, 5.0, 1.0), StepNumbers(2, float("nan"), 1.0, 5.0, 1.0))
    assert not Comparison(one, one, batch, steps, 1e-5, 1e-4).equal
    assert Comparison(one, one, batch, steps[:1], 1e-5, 1e-4).equal
