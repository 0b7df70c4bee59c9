"""Progress of a run: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cupola_flows.terminal.text import plain as escaped
from cupola_flows.terminal.text import visible

PLAIN_EVERY = 10.0
"""Seconds between lines when the output is not a terminal."""
MARKS = {
    "waiting": "[dim]·[/]",
    "running": "[cyan]>[/]",
    "completed": "[green]✓[/]",
    "reused": "[blue]=[/]",
    "failed": "[red]✗[/]",
    "cancelled": "[yellow]![/]",
    "detached": "[cyan]>[/]",
}


@dataclass
class Line:
    """Progress of one stage."""

    name: str
    kind: str
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    step: int = 0
    steps: int = 0
    first: tuple[float, int] | None = None
    """Time and number of the first step since this start, from which the remaining time is estimated."""
    loss: float | None = None
    tokens_per_second: float | None = None
    note: str = ""

    def elapsed(self) -> float:
        return time.monotonic() - self.started if self.state == "running" else self.seconds

    def left(self) -> float | None:
        """Estimated seconds left, from the speed since this start."""
        if self.state != "running" or not self.first or self.step <= self.first[1]:
            return None
        pace = (time.monotonic() - self.first[0]) / (self.step - self.first[1])
        return pace * max(0, self.steps - self.step)


class Display:
    """Progress of every stage. This base prints nothing; `LiveDisplay` and `PlainDisplay` do."""

    def __init__(self, stages: Mapping[str, str]) -> None:
        self.lines = {name: Line(name, kind) for name, kind in stages.items()}

    @contextmanager
    def shown(self) -> Iterator["Display"]:
        """Show the progress while the block runs."""
        yield self

    def started(self, name: str, note: str = "") -> None:
        line = self.lines[name]
        line.state, line.started, line.note = "running", time.monotonic(), note
        self.changed(line, "started")

    def note(self, name: str, text: str) -> None:
        """Set the note of a stage, for work without steps."""
        line = self.lines[name]
        if line.note != text:
            line.note = text
            self.changed(line, "note")

    def advance(self, name: str, step: str, done: int, total: int) -> None:
        """Update the progress of a stage that runs in this process."""
        self.note(name, f"{step} {done / total:.0%}" if total else step)

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """Update a stage from a line of `metrics.jsonl`."""
        line = self.lines[name]
        match event.get("event"):
            case "start":
                line.steps, line.step, line.first, line.note = event["steps"], event["step"], None, ""
            case "step":
                line.step = event["step"]
                line.loss = event.get("loss", line.loss)
                line.tokens_per_second = event.get("tokens_per_second", line.tokens_per_second)
                line.first = line.first or (time.monotonic(), line.step)
            case "evaluate" if event.get("heldout_loss") is not None:
                line.note = f"held-out {event['heldout_loss']:.3f}"
            case "checkpoint":
                line.note = f"saved at {event['step']}"
        self.changed(line, str(event.get("event")))

    def finished(self, name: str, state: str, note: str = "") -> None:
        line = self.lines[name]
        line.seconds = line.elapsed()
        line.state, line.note = state, note
        self.changed(line, "finished")

    def changed(self, line: Line, what: str) -> None:
        """Called after every change."""

    def say(self, text: str) -> None:
        """Print a message that belongs to no line of the table."""


class LiveDisplay(Display):
    """A table that is refreshed several times a second."""

    def __init__(self, stages: Mapping[str, str], console: Console) -> None:
        super().__init__(stages)
        self.console = console

    @contextmanager
    def shown(self) -> Iterator[Display]:
        with Live(get_renderable=self.table, console=self.console, refresh_per_second=4):
            yield self

    def say(self, text: str) -> None:
        self.console.print(escaped(text), highlight=False)

    def table(self) -> Table:
        """The current table."""
        table = Table(box=None, padding=(0, 1), expand=False)
        for heading in ("", "stage", "progress", "step", "loss", "tokens/s", "time", "left", ""):
            table.add_column(
                heading, justify="right" if heading in {"step", "loss", "tokens/s", "time", "left"} else "left"
            )
        for line in self.lines.values():
            share = 100.0 if line.state in {"completed", "reused"} else 100 * line.step / max(1, line.steps)
            pulse = line.state == "running" and not line.steps
            table.add_row(
                MARKS[line.state],
                escaped(line.name),
                ProgressBar(total=100, completed=share, width=16, pulse=pulse),
                f"{line.step}/{line.steps}" if line.steps else "",
                "" if line.loss is None else f"{line.loss:.3f}",
                "" if line.tokens_per_second is None else f"{line.tokens_per_second:,.0f}",
                clock(line.elapsed()) if line.state != "waiting" else "",
                clock(line.left()),
                escaped(line.note),
            )
        return table


class PlainDisplay(Display):
    """A line at the start and end of each stage, and every ten seconds in between."""

    def __init__(self, stages: Mapping[str, str], write: Any = None) -> None:
        super().__init__(stages)
        self.last = dict.fromkeys(stages, 0.0)
        """When each stage's last line was written."""
        self.write = write or (lambda text: print_line(text, sys.stdout))

    def changed(self, line: Line, what: str) -> None:
        if what in {"started", "finished"} or time.monotonic() - self.last[line.name] >= PLAIN_EVERY:
            self.last[line.name] = time.monotonic()
            self.write(plain(line))

    def say(self, text: str) -> None:
        self.write(visible(text))


def plain(line: Line) -> str:
    """A stage as one line: `pretrain running 120/300 loss 3.412 5,210 tokens/s 0:41, 1:02 left`."""
    parts = [f"{line.name:<14} {line.state}"]
    if line.steps:
        parts.append(f"{line.step}/{line.steps}")
    if line.loss is not None:
        parts.append(f"loss {line.loss:.3f}")
    if line.tokens_per_second is not None:
        parts.append(f"{line.tokens_per_second:,.0f} tokens/s")
    parts.append(clock(line.elapsed()))
    if (left := line.left()) is not None:
        parts.append(f"{clock(left)} left")
    if line.note:
        parts.append(line.note)
    return visible("  ".join(parts))


def clock(seconds: float | None) -> str:
    """Seconds as `1:05` or `2:03:04`; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def make_display(stages: Mapping[str, str], console: Console) -> Display:
    """A live display on a terminal, else a plain one. Both write to `console`, separate from a command's results."""
    if console.is_terminal:
        return LiveDisplay(stages, console)
    return PlainDisplay(stages, lambda text: print_line(text, console.file))


def print_line(text: str, file: IO[str]) -> None:
    """Print a line whole, even if several stages print at once."""
    file.write(f"{text}\n")
    file.flush()
