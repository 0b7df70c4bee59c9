"""A job's log says when another release of Megatron-Core is installed than those that were tried."""

import logging
from importlib import metadata

import megatron
import pytest

from cupola_trainer.megatron import imports


def find_megatron() -> None:
    """What the first import of Megatron in a process does."""
    assert imports.find_spec("megatron.core", megatron.__path__)


def test_a_release_that_was_not_tried_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metadata, "version", {"megatron-core": "0.99.0"}.__getitem__)
    find_megatron()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("cupola_trainer.megatron.versions", logging.WARNING)
    assert record.getMessage() == (
        "megatron-core 0.99.0 is installed; Cupola patches it, and was tried with 0.16.1, 0.17.1 only. "
        "Run `pytest tests/trainer/megatron`, or install what was tried: pip install megatron-core==0.16.1"
    )


def test_the_release_of_the_pins_is_one_that_was_tried(caplog: pytest.LogCaptureFixture) -> None:
    find_megatron()
    assert caplog.records == []


def test_megatron_without_metadata_is_of_an_unknown_version(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    find_megatron()
    assert caplog.messages[0].startswith("megatron-core of an unknown version is installed;")
