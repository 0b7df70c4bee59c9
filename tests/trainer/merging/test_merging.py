"""Merging: the formulas against hand-computed cases and numpy, and whole checkpoints against the formulas."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer.checkpoint import read_model
from cupola_trainer.config import LayoutConfig, MergeJob, write_job
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.jobs import merge
from cupola_trainer.jobs.merge import check
from cupola_trainer.merging.methods import average, dare, slerp, ties

MATERIAL = Path(__file__).parents[1] / "material"


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)


def masks(seed: int) -> Callable[[int], torch.Generator]:
    return lambda i: torch.Generator().manual_seed(100 * seed + i)


def test_an_average_is_weighted() -> None:
    merged = average([vector(1.0, 0.0), vector(5.0, 4.0)], [3.0, 1.0])
    assert merged.tolist() == [2.0, 1.0]


def test_slerp_of_two_unit_vectors_stays_on_the_circle() -> None:
    merged = slerp([vector(1.0, 0.0), vector(0.0, 1.0)], [2.0, 1.0])  # a third of a right angle
    torch.testing.assert_close(merged, vector(3**0.5 / 2, 0.5))


def test_slerp_of_task_vectors_rotates_about_the_base() -> None:
    base = vector(10.0, 10.0)
    merged = slerp([vector(12.0, 10.0), vector(10.0, 12.0)], [1.0, 1.0], base)
    torch.testing.assert_close(merged, base + 2 * vector(0.5**0.5, 0.5**0.5))


def test_slerp_of_collinear_or_zero_vectors_is_linear() -> None:
    torch.testing.assert_close(slerp([vector(1.0, 1.0), vector(3.0, 3.0)], [1.0, 3.0]), vector(2.5, 2.5))
    assert slerp([vector(0.0, 0.0), vector(2.0, 0.0)], [1.0, 1.0]).tolist() == [1.0, 0.0]


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    base = vector(1.0, 1.0, 1.0, 1.0)
    one = base + vector(4.0, -3.0, 0.1, 2.0)  # 0.1 is dropped
    two = base + vector(2.0, 1.0, -0.1, -5.0)  # and -0.1
    merged = ties([one, two], [1.0, 1.0], base, smallest=[2.0, 1.0])
    # signs: +6, -2, 0, -3; so the first averages both, the second is from `one`, the third zero, the last from `two`
    torch.testing.assert_close(merged, base + vector(3.0, -3.0, 0.0, -5.0))
    torch.testing.assert_close(
        ties([one, two], [3.0, 1.0], base, smallest=[2.0, 1.0], scale=0.5),
        base + 0.5 * vector(3.5, -3.0, 0.0, 2.0),  # now the sign of the last is that of 3 * 2 - 5 = +1
    )


def test_dare_keeps_a_share_of_the_task_vector_and_rescales_it() -> None:
    base, learned = torch.ones(100_000), torch.full((100_000,), 2.0)
    merged = dare([base + learned], [1.0], base, density=0.25, generator=masks(1)) - base
    assert set(merged.tolist()) == {0.0, 8.0}
    assert float((merged > 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    two = dare([base + learned, base], [1.0, 1.0], base, density=0.25, generator=masks(1)) - base
    torch.testing.assert_close(two, merged / 2)  # the second task vector is zero


def numpy_ties(thetas: list[np.ndarray], weights: list[float], base: np.ndarray, density: float) -> np.ndarray:
    """The paper's algorithm 1, element by element."""
    trimmed = []
    for theta in thetas:
        tau = theta - base
        order = np.argsort(-np.abs(tau), axis=None)[: int(np.ceil(density * tau.size))]
        kept = np.zeros(tau.size)
        kept[order] = tau.flatten()[order]
        trimmed.append(kept)
    merged = base.flatten().copy()
    for i in range(base.size):
        sign = np.sign(sum(weight * tau[i] for weight, tau in zip(weights, trimmed, strict=True)))
        pairs = [
            (w, tau[i]) for w, tau in zip(weights, trimmed, strict=True) if tau[i] != 0 and np.sign(tau[i]) == sign
        ]
        if pairs:
            merged[i] += sum(w * value for w, value in pairs) / sum(w for w, _ in pairs)
    return merged.reshape(base.shape)


def test_the_formulas_equal_an_independent_numpy_implementation() -> None:
    random = np.random.default_rng(3)
    base, *thetas = (random.normal(size=(7, 9)) for _ in range(4))
    weights = [0.2, 0.5, 0.3]
    tensors = [torch.from_numpy(theta).float() for theta in thetas]
    common = torch.from_numpy(base).float()

    def near(actual: torch.Tensor, wanted: np.ndarray) -> None:
        np.testing.assert_allclose(actual.numpy(), wanted, atol=1e-6)

    near(average(tensors, weights), np.average(thetas, axis=0, weights=weights))
    taus = [theta - base for theta in thetas]
    smallest = [float(np.sort(np.abs(tau), axis=None)[-19]) - 1e-6 for tau in taus]  # ceil(0.3 * 63) are kept
    near(ties(tensors, weights, common, smallest=smallest), numpy_ties(thetas, weights, base, 0.3))
    angle = np.arccos(np.vdot(taus[0], taus[1]) / np.linalg.norm(taus[0]) / np.linalg.norm(taus[1]))
    t = 0.5 / 0.7
    wanted = (np.sin((1 - t) * angle) * taus[0] + np.sin(t * angle) * taus[1]) / np.sin(angle)
    near(slerp(tensors[:2], weights[:2], common), base + wanted)
    drawn = [torch.rand((7, 9), generator=masks(2)(i)).numpy() < 0.5 for i in range(3)]
    learned = [w * np.where(mask, tau, 0) / 0.5 for w, mask, tau in zip(weights, drawn, taus, strict=True)]
    near(dare(tensors, weights, common, density=0.5, generator=masks(2)), base + np.sum(learned, axis=0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    subprocess.run([sys.executable, MATERIAL / "three_models.py", folder], check=True)
    return folder


def job_of(saved: Path, output: Path, **settings: Any) -> MergeJob:
    base = saved / "base" if settings.get("method") in ("ties", "dare") else None
    return MergeJob(output=output, checkpoints=(saved / "one", saved / "two"), base=base, **settings)


def test_every_tensor_of_a_merged_checkpoint_is_merged(saved: Path, tmp_path: Path) -> None:
    merge.run(job_of(saved, tmp_path / "average", weights=(1.0, 3.0)))
    merge.run(job_of(saved, tmp_path / "ties", method="ties", density=0.1))
    base, one, two = (StoredTensors(saved / name) for name in ("base", "one", "two"))
    mean, elected = (StoredTensors(tmp_path / name / "checkpoint") for name in ("average", "ties"))
    assert set(mean) == set(one)
    assert read_model(tmp_path / "average" / "checkpoint") == read_model(saved / "one")
    for key in one:
        torch.testing.assert_close(mean[key], 0.25 * one[key] + 0.75 * two[key])
    whole = [np.concatenate([stored[key].flatten() for key in one]) for stored in (one, two, base, elected)]
    np.testing.assert_allclose(whole[3], numpy_ties(whole[:2], [1.0, 1.0], whole[2], 0.1), atol=1e-6)
    assert json.loads((tmp_path / "ties" / "result.json").read_text())["metrics"]["merged"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_every_layout_writes_the_same_bytes(
    method: Any, saved: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    merged = []
    for name, layout in {"one": LayoutConfig(), "two": LayoutConfig(tp=2, sp=True)}.items():
        job = job_of(saved, tmp_path / name, method=method, seed=4).but(layout=layout)
        job.output.mkdir()
        write_job(job, job.output / "job.json")
        torchrun(layout.world_size, "-m", "cupola_trainer", job.output / "job.json")
        merged.append(StoredTensors(job.output / "checkpoint"))
    assert all(torch.equal(merged[0][key], merged[1][key]) for key in merged[0])


def test_a_full_disk_gives_one_line_and_exit_status_2(saved: Path, tmp_path: Path) -> None:
    job = job_of(saved, tmp_path)
    write_job(job, tmp_path / "job.json")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the maximum file size
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cupola_trainer", tmp_path / "job.json"], capture_output=True, text=True, check=False
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = (
        "checkpoint could not be saved: File too large. Free space there, change its permissions, or name another "
        "folder."
    )
    line = f"{tmp_path}: {message}"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {line}"
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "error.json").read_text()) == {"type": "ConfigError", "message": line}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["error.json", "job.json", "metrics.jsonl"]


def test_invalid_merges_are_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"wide has ffn_hidden_size=64 and .*one has 48: only checkpoints of one architecture"
    ):
        check(MergeJob(output=tmp_path, checkpoints=(saved / "one", saved / "wide")))
    with pytest.raises(ConfigError, match="mixture has moe="):
        check(MergeJob(output=tmp_path, checkpoints=(saved / "one", saved / "mixture")))
    for settings, line in {
        "{}": "1 checkpoint to merge: give at least two",
        '{"weights": [1.0]}': "1 weights for 2 checkpoints",
        '{"weights": [-1.0, 2.0]}': "weights must be at least 0",
        '{"method": "ties"}': "set `base`",
        '{"density": 0.5}': "only ties and dare use a density",
    }.items():
        count = 1 if settings == "{}" else 2
        with pytest.raises(ValidationError, match=line):
            MergeJob(output=tmp_path, checkpoints=(saved / "one",) * count, **json.loads(settings))


def test_checkpoints_with_different_vocabularies_are_refused(saved: Path, tmp_path: Path) -> None:
    for name, words in {"one": {"a": 0}, "two": {"b": 0}}.items():
        shutil.copytree(saved / name, tmp_path / name)
        (tmp_path / name / "tokenizer").mkdir()
        (tmp_path / name / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    with pytest.raises(ConfigError, match=r"two has a different tokenizer from .*one"):
        check(MergeJob(output=tmp_path, checkpoints=(tmp_path / "one", tmp_path / "two")))
