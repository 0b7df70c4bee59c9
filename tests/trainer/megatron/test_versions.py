"""Versions: others of Python and torch are refused at the trainer's start, untested ones of Megatron-Core named."""

import json
import logging
import os
import platform
import subprocess
import sys
import tomllib
from collections import OrderedDict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import megatron
import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.megatron import imports, versions


def find_megatron() -> None:
    """Run the check of the first Megatron import in a process."""
    assert imports.find_spec("megatron.core", megatron.__path__)


def test_an_untested_release_is_named_with_the_next_move(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metadata, "version", {"megatron-core": "0.99.0", "torch": "2.9.1+cu128"}.__getitem__)
    find_megatron()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("cupola_trainer.megatron.versions", logging.WARNING)
    assert record.getMessage() == (
        "megatron-core 0.99.0 is installed; Cupola patches it, and was tested with 0.16.1, 0.17.1, 0.19.2 only. "
        "Run `pytest tests/trainer/megatron`, or install a tested release: pip install megatron-core==0.16.1"
    )


def test_the_pinned_release_is_a_tested_one(caplog: pytest.LogCaptureFixture) -> None:
    find_megatron()
    assert caplog.records == []


def test_megatron_without_metadata_has_an_unknown_version(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    find_megatron()
    assert caplog.messages[0].startswith("megatron-core of an unknown version is installed;")


@pytest.mark.parametrize("version", ["2.8.0", "2.14.0", "1.13.1+cu117", "3.0.0"])
def test_a_torch_outside_the_range_is_refused_with_the_next_move(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(metadata, "version", {"megatron-core": "0.16.1", "torch": version}.__getitem__)
    with pytest.raises(ConfigError) as caught:
        find_megatron()
    assert str(caught.value) == (
        f"torch {version}: the trainer runs on torch 2.9 to 2.13. Install one: pip install 'torch==2.13.*'"
    )


@pytest.mark.parametrize("version", ["3.10.14", "3.14.0"])
def test_a_python_outside_the_range_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: version)
    with pytest.raises(ConfigError) as caught:
        find_megatron()
    assert str(caught.value) == (
        f"Python {version}: the trainer runs on Python 3.11 to 3.13. "
        "Install one: make clean install PYTHON=/path/to/python3.11"
    )


@pytest.mark.parametrize("version", ["2.9.0", "2.9.1+cu128", "2.11.0+cu130", "2.13.0+cpu", "2.13.0a0+git1234"])
def test_a_torch_within_the_range_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(metadata, "version", {"megatron-core": "0.16.1", "torch": version}.__getitem__)
    find_megatron()


def test_a_job_on_another_torch_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "version = metadata.version\n"
        "metadata.version = lambda name: '2.8.0' if name == 'torch' else version(name)\n"
    )
    job = {"kind": "probe", "output": str(tmp_path / "job"), "token": "token"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "cupola_trainer", tmp_path / "job.json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "error: torch 2.8.0: the trainer runs on torch 2.9 to 2.13. Install one: pip install 'torch==2.13.*'\n"
    )


def test_builders_of_every_release_are_read_and_get_our_class() -> None:
    from megatron.core.transformer.spec_utils import ModuleSpec

    parts = object()
    builders: tuple[Any, ...] = (ModuleSpec(module=dict, submodules=parts), partial(dict, submodules=parts))
    for builder in builders:  # up to 0.16, and later
        assert versions.submodules_of(builder) is parts
        kept = versions.building(builder, list, tuple)
        assert _built(kept) == (dict, parts)
        ours = versions.building(builder, dict, OrderedDict)
        assert _built(ours) == (OrderedDict, parts)


def _built(builder: Any) -> tuple[Any, Any]:
    of = builder.func if isinstance(builder, partial) else builder.module
    return of, versions.submodules_of(builder)


def test_pyproject_allows_what_the_trainer_runs_on() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (first, (major, minor)) = versions.TORCH
    assert f"torch>={first[0]}.{first[1]},<{major}.{minor + 1}" in project["dependencies"]
    (first, (major, minor)) = versions.PYTHON
    assert project["requires-python"] == f">={first[0]}.{first[1]},<{major}.{minor + 1}"
