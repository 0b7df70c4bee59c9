"""Progress display on a terminal and elsewhere."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cupola_flows.execution.jobs import MetricsTail
from cupola_flows.terminal.display import LiveDisplay, PlainDisplay, clock, make_display

STEP = {"event": "step", "step": 3, "loss": 4.5678, "tokens_per_second": 1234.5}


def test_a_live_table_shows_stage_step_loss_and_speed() -> None:
    console = Console(width=120, record=True, force_terminal=True)
    display = LiveDisplay({"prepare": "prepare", "pretrain": "pretrain"}, console)
    display.finished("prepare", "reused", "artifact 0123")
    display.started("pretrain")
    display.event("pretrain", {"event": "start", "step": 0, "steps": 10})
    display.event("pretrain", STEP)
    console.print(display.table())
    text = console.export_text()
    assert all(part in text for part in ("prepare", "artifact 0123", "3/10", "4.568", "1,234"))


def test_without_a_terminal_there_is_a_line_at_each_start_and_end() -> None:
    lines: list[str] = []
    display = PlainDisplay({"pretrain": "pretrain"}, lines.append)
    display.started("pretrain")
    display.event("pretrain", {"event": "start", "step": 0, "steps": 10})
    display.event("pretrain", STEP)
    display.finished("pretrain", "completed", "artifact 0123")
    assert len(lines) == 2
    assert lines[1] == "pretrain       completed  3/10  loss 4.568  1,234 tokens/s  0:00  artifact 0123"


def test_progress_goes_to_the_given_console_and_leaves_stdout_to_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    errors = io.StringIO()
    make_display({"run-000": "mixture"}, Console(file=errors)).started("run-000")
    assert errors.getvalue() == "run-000        running  0:00\n"
    assert capsys.readouterr().out == ""


def test_the_remaining_time_is_estimated_from_the_speed_since_this_start() -> None:
    display = PlainDisplay({"a": "pretrain"}, lambda _: None)
    display.started("a")
    display.event("a", {"event": "start", "step": 100, "steps": 200})
    assert display.lines["a"].left() is None
    display.event("a", {"event": "step", "step": 101})
    display.event("a", {"event": "step", "step": 110})
    left = display.lines["a"].left()
    assert left is not None
    assert left < 5


def test_seconds_are_formatted_as_a_clock() -> None:
    assert [clock(5), clock(65), clock(3661), clock(None)] == ["0:05", "1:05", "1:01:01", ""]


def test_the_tail_gives_each_whole_line_once_and_starts_over_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert list(tail.new()) == []
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2')
    assert list(tail.new()) == [{"step": 1}]
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n")
    assert list(tail.new()) == [{"step": 2}]
    shorter = tmp_path / "shorter"
    # shorter at first, but longer by now
    shorter.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 20, 30)))
    shorter.replace(path)
    assert list(tail.new()) == [{"step": 1}, {"step": 20}, {"step": 30}]
