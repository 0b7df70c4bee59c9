"""Learning rates equal torch's own schedulers, step by step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR

from cupola_platform.errors import ConfigError
from cupola_trainer.config import OptimizerConfig
from cupola_trainer.optim.schedule import schedule

STEPS, WARMUP, DECAY, PEAK, LOWEST = 40, 8, 10, 3e-3, 3e-4

Make = Callable[[torch.optim.Optimizer], LRScheduler]
AFTER: dict[str, Make] = {
    "cosine": lambda sgd: CosineAnnealingLR(sgd, STEPS - WARMUP, eta_min=LOWEST),
    "linear": lambda sgd: LinearLR(sgd, 1.0, LOWEST / PEAK, STEPS - WARMUP),
    "constant": lambda sgd: ConstantLR(sgd, 1.0),
    "inverse_sqrt": lambda sgd: LambdaLR(sgd, lambda step: math.sqrt(WARMUP / (step + WARMUP))),
}
SHAPES: dict[str, Make] = {
    "linear": lambda sgd: LinearLR(sgd, 1.0, LOWEST / PEAK, DECAY),
    "cosine": lambda sgd: CosineAnnealingLR(sgd, DECAY, eta_min=LOWEST),
}


def theirs(after: Make) -> list[float]:
    """torch counts from 0 and starts above 0; ours runs the first warm-up step at peak / WARMUP."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    warmup = LinearLR(sgd, 1 / WARMUP, 1.0, WARMUP - 1)
    both = SequentialLR(sgd, [warmup, after(sgd)], [WARMUP - 1])
    return rates(sgd, lambda: both.step(), first=True)


def ours(**settings: Any) -> list[float]:
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    config = OptimizerConfig(lr=PEAK, min_lr_ratio=LOWEST / PEAK, warmup_steps=WARMUP, **settings)
    scheduler = schedule(sgd, config, STEPS)
    return rates(sgd, lambda: scheduler.step(increment=1), first=False)


def rates(sgd: torch.optim.Optimizer, step: Callable[[], None], *, first: bool) -> list[float]:
    """The rate of each update; `first` if the first has it before a step of the scheduler."""
    found = []
    for number in range(STEPS):
        if number or not first:
            step()
        found.append(float(sgd.param_groups[0]["lr"]))
        sgd.step()
    return found


@pytest.mark.filterwarnings("ignore:.*EPOCH_DEPRECATION|.*epoch parameter")
@pytest.mark.parametrize("name", AFTER)
def test_a_schedule_equals_torchs(name: str) -> None:
    assert ours(schedule=name) == pytest.approx(theirs(AFTER[name]), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_stable_decay_equals_a_sequence_of_torchs(shape: str) -> None:
    def stable_then_decay(sgd: torch.optim.Optimizer) -> LRScheduler:
        return LambdaLR(sgd, lambda step: 1.0)

    found = ours(schedule="wsd", decay_steps=DECAY, decay=shape)
    assert found[: STEPS - DECAY] == pytest.approx(theirs(stable_then_decay)[: STEPS - DECAY], rel=1e-6)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    decay = SHAPES[shape](sgd)
    expected = []
    for _ in range(DECAY):
        sgd.step()
        decay.step()
        expected.append(float(sgd.param_groups[0]["lr"]))
    assert found[STEPS - DECAY :] == pytest.approx(expected, rel=1e-6)


def test_the_square_root_decay_follows_its_formula() -> None:
    found = ours(schedule="wsd", decay_steps=DECAY, decay="minus_sqrt")[STEPS - DECAY :]
    assert found == pytest.approx(
        [LOWEST + (PEAK - LOWEST) * (1 - math.sqrt(step / DECAY)) for step in range(1, DECAY + 1)], rel=1e-6
    )


@pytest.mark.parametrize(("settings"), [{"schedule": "wsd"}, {"schedule": "linear", "decay_steps": 5}])
def test_decay_steps_belong_to_wsd(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wsd needs decay_steps, and only wsd has them"):
        OptimizerConfig(**settings)


def test_a_decay_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps=8 and decay_steps=33 are more than the 40 steps of the run"):
        ours(schedule="wsd", decay_steps=33)
