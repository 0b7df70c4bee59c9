"""Adam's moments stored in bf16: their numbers, their checkpoints, and the steps that Adam counts. That every layout
computes the same with them is in training/test_layouts.py."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.trainer.training.layout_ranks import MODELS, OPTIMIZER, STEPS, batches_of, objective_of

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import LayoutConfig
from cupola_trainer.megatron.adam import FusedAdam, HostAdam
from cupola_trainer.objectives import passes
from cupola_trainer.optim import Trainee
from cupola_trainer.optim.states import count_every_step

HALF = STEPS // 2


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


def build(states: Literal["fp32", "bf16"], precision: str = "bf16", **layout: Any) -> Trainee:
    chunks = models.build(MODELS["moe"], LayoutConfig(), seed=5, dtype=runtime.dtype(precision))
    return optim.build(chunks, LayoutConfig(**layout), replace(OPTIMIZER, states=states), STEPS)


def train(trainee: Trainee, steps: range) -> list[tuple[float, float]]:
    objective, found = objective_of("moe"), []
    for step in steps:
        means = passes.train(trainee.chunks, objective, batches_of(objective, step))
        trainee.scheduler.step(increment=1)
        found.append((means["loss"], trainee.update()[0]))
    return found


def save(folder: Path, trainee: Trainee) -> Path:
    checkpoint.save(
        folder, trainee.chunks, model=MODELS["moe"], layout=LayoutConfig(), step=HALF, consumed_samples=0, seed=0,
        objective="masked_words", tokenizer=None, optimizer=trainee.optimizer, scheduler=trainee.scheduler,
    )  # fmt: skip
    return folder


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "optimizer").glob("*.bin"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("distributed", [True, False])
def test_a_run_with_moments_in_bf16_follows_one_in_fp32(precision: str, distributed: bool) -> None:
    wide = train(build("fp32", precision, distributed_optimizer=distributed), range(STEPS))
    narrow = train(build("bf16", precision, distributed_optimizer=distributed), range(STEPS))
    assert narrow[:HALF] == wide[:HALF]  # the first update's moments are zero before, so only the third step differs
    assert narrow != wide
    for (loss, norm), (other_loss, other_norm) in zip(narrow, wide, strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-3)
        assert norm == pytest.approx(other_norm, rel=0.02)


@pytest.mark.parametrize("distributed", [True, False])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, distributed: bool) -> None:
    whole = build("bf16", distributed_optimizer=distributed)
    train(whole, range(HALF))
    folder = save(tmp_path / "half", whole)
    resumed = build("bf16", distributed_optimizer=distributed)
    checkpoint.load_training(folder, resumed.chunks, resumed.optimizer, resumed.scheduler)
    assert train(resumed, range(HALF, STEPS)) == train(whole, range(HALF, STEPS))


def test_the_optimizers_part_of_a_checkpoint_is_two_thirds(tmp_path: Path) -> None:
    """Of a bf16 model: 4 bytes of the fp32 weight and 2 of each moment, in place of 4 and 4."""
    folders = {}
    for states in ("fp32", "bf16"):
        trainee = build(states)  # type: ignore[arg-type]
        train(trainee, range(1))
        folders[states] = save(tmp_path / states, trainee)
    assert size(folders["bf16"]) / size(folders["fp32"]) == pytest.approx(8 / 12, abs=0.01)
    boxes = StoredState(folders["bf16"] / "optimizer").boxes
    assert {box.dtype for key, found in boxes.items() if ".exp_avg" in key for box in found} == {"bfloat16"}
    assert {box.dtype for key, found in boxes.items() if ".master" in key for box in found} == {"float32"}


def test_moments_of_either_precision_load_into_the_other(tmp_path: Path) -> None:
    trainee = build("fp32")
    train(trainee, range(HALF))
    narrow = build("bf16")
    folder = save(tmp_path / "wide", trainee)
    checkpoint.load_training(folder, narrow.chunks, narrow.optimizer, narrow.scheduler)
    for (loss, _), (other, _) in zip(
        train(narrow, range(HALF, STEPS)), train(trainee, range(HALF, STEPS)), strict=True
    ):
        assert loss == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("states", ["fp32", "bf16"])
def test_moments_in_the_hosts_memory_change_no_number_and_no_checkpoint(
    tmp_path: Path, states: Literal["fp32", "bf16"]
) -> None:
    """Here the host is the device; which memory it is makes the only difference."""
    numbers, folders = [], []
    for offload in (False, True):
        trainee = build(states, offload_optimizer=offload)
        assert {type(part.optimizer) is HostAdam for part in trainee.optimizer.chained_optimizers} == {offload}
        train(trainee, range(HALF))
        folders.append(save(tmp_path / f"{offload}", trainee))
        resumed = build(states, offload_optimizer=offload)
        checkpoint.load_training(folders[-1], resumed.chunks, resumed.optimizer, resumed.scheduler)
        numbers.append(train(resumed, range(HALF, STEPS)))
    assert numbers[0] == numbers[1]
    contents = [{file.name: file.read_bytes() for file in (folder / "optimizer").glob("*.bin")} for folder in folders]
    assert contents[0] == contents[1]


def test_groups_without_parameters_count_steps_too() -> None:
    """As on a rank that holds only norms: Transformer Engine's Adam counts none there, and ours does as it does."""
    weight = torch.nn.Parameter(torch.ones(3))
    adam = FusedAdam([{"params": []}, {"params": [weight]}])
    part = type("Part", (), {"optimizer": adam, "is_stub_optimizer": False})
    count_every_step(type("Chained", (), {"chained_optimizers": [part]}))
    for _ in range(3):
        weight.grad = torch.ones(3)
        adam.step()
    assert [group["step"] for group in adam.param_groups] == [3, 3]
