"""Rows of the result: what was looked at, what was found, and the rule that it had to satisfy."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["passed", "failed", "measured", "not available"]
Figures = Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    section: str
    name: str
    status: Status
    """passed or failed if there is a rule; measured if there is none; not available with the reason."""
    figures: Figures = field(default_factory=dict)
    """What was found, by name with its unit."""
    rule: str = ""
    """What the figures had to satisfy."""
    reason: str = ""
    """Why it failed or is not available."""


@dataclass(kw_only=True)
class Section:
    """One section of a check while it runs, and how to write its rows."""

    name: str
    small: bool
    """Whether models are tiny, for a machine without a GPU."""
    seconds: float
    """Time that this section may take."""
    rows: Path
    """File that each row is appended to at once, so that a section that is killed keeps what it found."""
    reference: Path
    """File of the numbers that losses and gradient norms are compared with."""
    errors: int = 0
    """Attempts that ended with an error, after which the device may be unusable in this process."""

    def measured(self, name: str, figures: Figures) -> None:
        """Add figures that nothing is asked of."""
        self._add(Row(section=self.name, name=name, status="measured", figures=figures))

    def judged(self, name: str, passed: bool, figures: Figures, rule: str, reason: str = "") -> None:
        """Add figures and whether they satisfy the rule."""
        status: Status = "passed" if passed else "failed"
        self._add(
            Row(
                section=self.name, name=name, status=status, figures=figures, rule=rule, reason="" if passed else reason
            )
        )

    def unavailable(self, name: str, reason: str) -> None:
        """Say that the device or a library cannot do this."""
        self._add(Row(section=self.name, name=name, status="not available", reason=reason))

    def failed(self, name: str, reason: str) -> None:
        """Add a failure without figures."""
        self._add(Row(section=self.name, name=name, status="failed", reason=reason))

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Do `work`, which adds its own rows; an error is a failed row."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - one case must not cost the others
            self.failed(name, in_one_line(error))
            self.errors += 1

    def _add(self, row: Row) -> None:
        with self.rows.open("a") as file:
            file.write(json.dumps({"row": asdict(row)}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def in_one_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
