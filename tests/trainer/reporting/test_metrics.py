"""metrics.jsonl: each step once, every float exact, torn lines dropped."""

from pathlib import Path

import pytest

from cupola_trainer.reporting.metrics import MetricsWriter, read_metrics
from cupola_trainer.reporting.results import train_results


def test_a_resumed_job_drops_later_and_corrupt_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"event": "start", "time": 1.0, "step": 0}\n'
        '{"event": "step", "time": 2.0, "step": 1, "loss": 0.1}\n'
        '{"event": "step", "time": 3.0, "step": 2, "loss": 0.2}\n'
        "\0\0\0\0\n"
        '{"event": "checkpoint", "time": 3.5, "step": 1}\n'
        '{"event": "step", "time": 4.0, "st'
    )
    writer = MetricsWriter(path)
    writer.open(resumed_step=1)
    writer.write("start", step=1)
    writer.close()
    assert [(line["event"], line["step"]) for line in read_metrics(path)] == [
        ("start", 0), ("step", 1), ("checkpoint", 1), ("start", 1),
    ]  # fmt: skip


def test_a_job_that_starts_over_keeps_only_its_starts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "start", "time": 1.0, "step": 0}\n{"event": "evaluate", "time": 2.0, "step": 0}\n')
    writer = MetricsWriter(path)
    writer.open(resumed_step=0)
    writer.close()
    assert [line["event"] for line in read_metrics(path)] == ["start"]


def test_floats_are_exact_and_infinities_are_null(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.open(resumed_step=0)
    writer.write("step", step=1, loss=0.1 + 0.2, grad_norm=float("inf"))
    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert line["loss"] == 0.30000000000000004
    assert line["grad_norm"] is None
    writer.close()


def test_results_exclude_the_time_between_an_interruption_and_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"event": "start", "time": 100.0, "step": 0}\n'
        '{"event": "evaluate", "time": 101.0, "step": 0, "heldout_loss": 5.0, "heldout_margin": 0.0}\n'
        '{"event": "step", "time": 110.0, "step": 1, "loss": 4.5}\n'
        '{"event": "start", "time": 500.0, "step": 1}\n'
        '{"event": "step", "time": 503.0, "step": 2, "loss": 4.25}\n'
        '{"event": "evaluate", "time": 505.0, "step": 2, "heldout_loss": 4.0, "heldout_margin": 0.5}\n'
    )
    assert train_results(path) == pytest.approx(
        {
            "seconds": 15.0,
            "initial_heldout_loss": 5.0,
            "initial_heldout_margin": 0.0,
            "final_heldout_loss": 4.0,
            "final_heldout_margin": 0.5,
            "final_loss": 4.25,
        }
    )


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = MetricsWriter(None)
    writer.open(resumed_step=0)
    writer.write("step", step=1)
    writer.close()
    assert list(tmp_path.iterdir()) == []
