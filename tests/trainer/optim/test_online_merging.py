"""The online merging optimizer: the paper's formula, in every layout, and across a resume."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    LayoutConfig,
    NextTokenData,
    OnlineMergingConfig,
    OptimizerConfig,
    TrainJob,
)
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.optim.online_merging import hashed
from cupola_trainer.optim.selection import magnitude_bits, thresholds
from cupola_trainer.training.loop import train

MATERIAL = Path(__file__).parents[1] / "material"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    subprocess.run([sys.executable, MATERIAL / "three_models.py", folder], check=True)
    return folder


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


def config(saved: Path, **settings: Any) -> OnlineMergingConfig:
    everything: dict[str, Any] = {"alpha": 0.25, "density": 0.5, "base": saved / "base", **settings}
    return OnlineMergingConfig(**everything)


def steps(saved: Path, merging: OnlineMergingConfig | None, count: int) -> list[dict[str, torch.Tensor]]:
    """The weights before and after each of `count` steps, with gradients that depend only on the step."""
    model = checkpoint.read_model(saved / "two")
    chunks = models.build(model, LayoutConfig(), seed=None)
    checkpoint.load_weights(saved / "two", chunks)
    trainee = optim.build(chunks, LayoutConfig(), OptimizerConfig(lr=1e-2, min_lr_ratio=1, clip_grad=0), 9)
    if merging:
        optim.merge_online(trainee, merging, saved / "two", model, seed=3)
    weights = dict(chunks[0].named_parameters())
    history = [{name: weight.detach().clone() for name, weight in weights.items()}]
    for step in range(count):
        for i, weight in enumerate(weights.values()):
            weight.main_grad.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * step + i)))
        trainee.scheduler.step(increment=1)
        trainee.update()
        history.append({name: weight.detach().clone() for name, weight in weights.items()})
    return history


@pytest.mark.usefixtures("one_process")
def test_a_dare_step_keeps_or_drops_elements_without_rescaling(saved: Path) -> None:
    _, adam = steps(saved, None, 1)
    before, merged = steps(saved, config(saved), 1)
    base = dict(zip(adam, [tensor for _, tensor in weights_of(saved / "base")], strict=True))
    kept = 0.0
    for name, theta in before.items():
        delta, tau = adam[name] - theta, theta - base[name]
        change = merged[name] - theta
        choices = torch.stack([torch.zeros_like(theta), 0.75 * delta, 0.25 * tau, 0.75 * delta + 0.25 * tau])
        assert (choices - change).abs().min(0).values.max() < 1e-6, name
        kept += float(((choices - change).abs().argmin(0) % 2 == 1).float().mean()) / len(before)
        assert not torch.equal(merged[name], theta), f"{name} was not updated"
    assert kept == pytest.approx(0.5, abs=0.05)


def ties(delta: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Keep the larger half of each, including ties within 1/64, then what agrees with the sum's sign."""
    kept = []
    for part, share in ((delta, 0.75), (tau, 0.25)):
        smallest = part.abs().flatten().topk(math.ceil(part.numel() / 2)).values[-1] * (1 - 1 / 64)
        kept.append(torch.where(part.abs() >= smallest, part * share, 0))
    elected = (kept[0] + kept[1]).sign()
    return sum((torch.where(part.sign() == elected, part, 0) for part in kept), torch.zeros_like(delta))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("online_step", [1, 2])
def test_a_ties_merge_sums_large_elements_that_agree_in_sign(saved: Path, online_step: int) -> None:
    adam = steps(saved, None, online_step)
    history = steps(saved, config(saved, method="onties", online_step=online_step), online_step)
    for (name, theta), (key, base) in zip(history[0].items(), weights_of(saved / "base"), strict=True):
        wanted = theta + ties(adam[-1][name] - theta, theta - base)
        torch.testing.assert_close(
            history[-1][name], wanted, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.usefixtures("one_process")
def test_steps_between_merges_are_plain_adam_and_are_merged_together(saved: Path) -> None:
    adam = steps(saved, None, 2)
    history = steps(saved, config(saved, online_step=2), 3)
    base = dict(zip(adam[0], [tensor for _, tensor in weights_of(saved / "base")], strict=True))
    for name, theta in adam[0].items():
        assert torch.equal(history[1][name], adam[1][name]), name
        delta, tau = 0.75 * (adam[2][name] - theta), 0.25 * (theta - base[name])
        choices = torch.stack([torch.zeros_like(theta), delta, tau, delta + tau])  # of both steps, kept or not
        assert (choices - (history[2][name] - theta)).abs().min(0).values.max() < 1e-6, name
        assert not torch.equal(history[2][name], history[1][name]), name
        assert not torch.equal(history[3][name], history[2][name]), name


def weights_of(folder: Path) -> list[tuple[str, torch.Tensor]]:
    """A checkpoint's weights in the order of the model's parameters."""
    [model] = models.build(checkpoint.read_model(folder), LayoutConfig(), seed=None)
    checkpoint.load_weights(folder, [model])
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def test_the_kth_largest_magnitude_is_exact() -> None:
    runtime.start(LayoutConfig(), seed=0)
    values = [torch.randn(1000, generator=torch.Generator().manual_seed(i)) * 10.0**-i for i in range(4)]
    parts = [(0, values[0][:300]), (0, values[0][300:]), *((i, values[i]) for i in (1, 2, 3))]
    bits = [(i, magnitude_bits(part)) for i, part in parts]
    largest = thresholds(bits, [1, 10, 500, 1000], torch.device("cpu"))
    runtime.stop()
    wanted = [values[i].abs().sort(descending=True).values[k - 1] for i, k in enumerate([1, 10, 500, 1000])]
    assert torch.equal(largest, torch.stack(wanted))


def test_masks_are_uniform_and_independent() -> None:
    bits = hashed(torch.arange(1 << 18), seed=12345)
    other = hashed(torch.arange(1 << 18), seed=12346)
    for mask in (bits >> 40 & 1, bits & 1, bits >> 63 & 1):
        assert float(mask.double().mean()) == pytest.approx(0.5, abs=0.005)
    for pair in ((bits >> 40 & 1, bits & 1), (bits & 1, other & 1), (bits[1:] & 1, bits[:-1] & 1)):
        assert float((pair[0] == pair[1]).double().mean()) == pytest.approx(0.5, abs=0.005)


def test_a_resume_is_bitwise(saved: Path, tokens_folder: Path, tmp_path: Path) -> None:
    job = TrainJob(
        output=tmp_path / "whole",
        parent=saved / "two",
        steps=6,
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=2),
        data=NextTokenData(tokens=tokens_folder),
        optimizer=OptimizerConfig(merging=config(saved, online_step=4)),
        checkpoint=CheckpointConfig(every=2),  # in the middle of steps that are merged together
    )
    assert train(job, lambda: False)
    terminated = iter([False, False, True])
    broken = job.but(output=tmp_path / "broken")
    assert not train(broken, lambda: next(terminated))
    assert train(broken, lambda: False)
    whole, resumed = (StoredTensors(each.output / "checkpoints" / "step_00000006") for each in (job, broken))
    assert set(whole) == set(resumed)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.usefixtures("one_process")
def test_merging_without_a_parent_is_refused(saved: Path) -> None:
    shape = checkpoint.read_model(saved / "two")
    trainee = optim.build(models.build(shape, LayoutConfig()), LayoutConfig(), OptimizerConfig(), 1)
    with pytest.raises(ConfigError, match="needs a parent checkpoint to merge with"):
        optim.merge_online(trainee, config(saved), None, shape, 0)
    with pytest.raises(ConfigError, match="ffn_hidden_size"):
        optim.merge_online(trainee, config(saved, base=saved / "wide"), saved / "two", shape, 0)
