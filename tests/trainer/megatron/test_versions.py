"""A job's log warns if the installed release of Megatron-Core was not tested."""

import logging
from importlib import metadata

import megatron
import pytest

from cupola_trainer.megatron import imports


def find_megatron() -> None:
    """Run the check of the first Megatron import in a process."""
    assert imports.find_spec("megatron.core", megatron.__path__)


def test_an_untested_release_is_named_with_the_next_move(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metadata, "version", {"megatron-core": "0.99.0"}.__getitem__)
    find_megatron()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("cupola_trainer.megatron.versions", logging.WARNING)
    assert record.getMessage() == (
        "megatron-core 0.99.0 is installed; Cupola patches it, and was tested with 0.16.1, 0.17.1 only. "
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
