"""Run all sections within the time, each process up to the first section with an error. Imports torch only in these."""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gpu_check.rows import Row, Section

SECONDS = {"probe": 60, "parity": 80, "leaks": 40, "products": 40, "memory": 40, "generation": 90, "speed": 420}
"""Each section, in order, and the seconds it may take. The slowest comes last and takes what is left."""

HERE = Path(__file__).parent
SPARE = 5.0
"""Seconds kept at the end for writing the result."""
LEAST = 5.0
"""Seconds below which no section is begun."""
LOOK_EVERY = 0.2


def check(sections: Sequence[str], form: Sequence[str], until: float) -> tuple[list[Row], dict[str, float]]:
    """Every section's rows, and the seconds that it took. A section that crashes, takes too long or is not reached is
    a failed row.

    Args:
        form: the arguments that each process takes, such as --small.
        until: when the check must end, in the clock of `time.time`.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.touch()
        left = list(sections)
        while left and time.time() < until - SPARE - LEAST:
            left = _one_process(left, rows, form, until - SPARE)
        for name in left:
            _fail(name, rows, "no time was left", 0.0)
        return _read(rows)


def _one_process(sections: list[str], rows: Path, form: Sequence[str], until: float) -> list[str]:
    """Run sections in one process until one ends with an error. Returns those that are left."""
    command = [sys.executable, str(HERE), "sections", str(rows), str(until), *sections, *form]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            current, seconds, late = _watch(process, sections, rows, until)
        finally:
            _kill(process)
        left = [name for name in sections if name not in _ended(rows)]
        if current in left and (process.returncode or late):
            reason = f"exit status {process.returncode}: {_last_line(log)}"
            _fail(current, rows, f"took longer than {seconds:.0f} s" if late else reason, seconds)
            left.remove(current)
        return left


def _watch(process: subprocess.Popen[Any], sections: list[str], rows: Path, until: float) -> tuple[str, float, bool]:
    """Wait for the process. Returns its last section, the seconds spent there, and whether that was too long."""
    current, began = "", time.time()
    while True:
        ended = process.poll() is not None
        begun = [line["begin"] for line in _lines(rows) if "begin" in line]
        now = next((name for name in reversed(begun) if name in sections), sections[0])
        if now != current:
            current, began = now, time.time()
            print(f"{current} ...", file=sys.stderr, flush=True)
        if ended:
            return current, time.time() - began, False
        if time.time() > min(began + SECONDS[current], until):
            return current, time.time() - began, True
        time.sleep(LOOK_EVERY)


def _kill(process: subprocess.Popen[Any]) -> None:
    """End the process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _fail(name: str, rows: Path, reason: str, seconds: float) -> None:
    Section(name=name, small=False, seconds=0, rows=rows, reference=Path()).failed(name, reason)
    note(rows, {"end": name, "seconds": round(seconds, 1)})


def _read(rows: Path) -> tuple[list[Row], dict[str, float]]:
    found = [Row(**line["row"]) for line in _lines(rows) if "row" in line]
    return found, {line["end"]: line["seconds"] for line in _lines(rows) if "end" in line}


def _ended(rows: Path) -> set[str]:
    return {line["end"] for line in _lines(rows) if "end" in line}


def _lines(rows: Path) -> list[dict[str, Any]]:
    """The whole lines of the file; a killed process may leave part of one."""
    return [json.loads(line) for line in rows.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def run_sections(names: list[str], rows: Path, small: bool, reference: Path, until: float) -> int:
    """Run sections one after another, up to the first with an error: the next process starts with a sound device.

    Appends to `rows` a line of JSON for the begin and the end of each section and for each of its rows.

    Args:
        reference: file of the numbers that `parity` compares with.
        until: when the check must end, in the clock of `time.time`.

    Returns:
        the exit status: 0 if all of them ran to their end, 1 if one did not.
    """
    warnings.simplefilter("ignore")
    for name in names:
        seconds = min(SECONDS[name], until - time.time())
        note(rows, {"begin": name})
        section = Section(name=name, small=small, seconds=seconds, rows=rows, reference=reference)
        began = time.monotonic()
        section.attempt(name, lambda: importlib.import_module(f"gpu_check.{name}").run(section))  # noqa: B023
        note(rows, {"end": name, "seconds": round(time.monotonic() - began, 1)})
        if section.errors:
            return 1
    return 0


def note(rows: Path, line: dict[str, object]) -> None:
    """Append a line to the file of rows."""
    with rows.open("a") as file:
        file.write(json.dumps(line) + "\n")
