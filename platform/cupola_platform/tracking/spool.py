"""What runs log to the tracking server, kept on disk until it is sent.

spool/<run>/open.json        name, parent, parameters, tags
spool/<run>/follow.json      the metrics.jsonl files of its jobs, and their prefixes of metric names
spool/<run>/end.json         status, last metrics, tags
spool/<run>/metrics-0.jsonl  copies of those files, made when the run ends so that its folder may be removed
spool/<run>/state.json       what was sent: the server's id of the run, and a cursor per file
"""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cupola_platform.registry import RunStatus

_LONGEST = 6000
"""Maximum characters of a parameter, which is MLflow's limit."""


class Spool:
    """The spool's folder. Every file in it is written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self) -> list[str]:
        """Runs that may have unsent data, oldest first."""
        opened = [path for path in self.folder.glob("*/open.json") if path.is_file()]
        return [path.parent.name for path in sorted(opened, key=lambda path: path.stat().st_mtime_ns)]

    def waiting(self) -> tuple[int, int]:
        """The number of runs with unsent data, and of unsent lines of metrics."""
        runs = self.runs()
        return len(runs), sum(self._unsent(run) for run in runs)

    def _unsent(self, run: str) -> int:
        cursors = (self.read(run, "state") or {"cursors": {}})["cursors"]
        lines = 0
        for number, followed in enumerate(self.followed(run)):
            kept = self.kept(run, number)
            with suppress(FileNotFoundError), (kept if kept.is_file() else Path(followed)).open("rb") as file:
                file.seek(cursors.get(followed, {}).get("offset", 0))
                lines += sum(1 for _ in file)
        return lines

    def holds(self, run: str) -> bool:
        """Whether a run is still in the spool."""
        return (self.folder / run).is_dir()

    def open_run(
        self, run: str, name: str, parent: str | None, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """Start a run; nested parameters get dotted names."""
        self.write(
            run, "open", {"name": name, "parent": parent, "params": _flat(params), "tags": dict(tags), "time": _now()}
        )

    def follow(self, run: str, metrics: Path, prefix: str = "") -> None:
        """Add a `metrics.jsonl` to a run; `prefix` is put before its metric names."""
        files = self.followed(run)
        if str(metrics.absolute()) not in files:
            self.write(run, "follow", {"files": files | {str(metrics.absolute()): prefix}})

    def followed(self, run: str) -> dict[str, str]:
        """The paths of a run's `metrics.jsonl` files, and their prefixes."""
        saved = self.read(run, "follow")
        return {} if saved is None else dict(saved["files"])

    def end_run(self, run: str, status: RunStatus, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Record how a run ended, and copy its files."""
        for number, path in enumerate(self.followed(run)):
            if Path(path).is_file():
                kept = self.kept(run, number)
                shutil.copyfile(path, kept.with_suffix(".partial"))
                kept.with_suffix(".partial").replace(kept)
        self.write(run, "end", {"status": status, "metrics": dict(metrics), "tags": dict(tags), "time": _now()})

    def kept(self, run: str, number: int) -> Path:
        """Path of the copy of a run's n-th file."""
        return self.folder / run / f"metrics-{number}.jsonl"

    def remove(self, run: str) -> None:
        """Remove a run that was sent completely."""
        shutil.rmtree(self.folder / run)

    def write(self, run: str, name: str, content: Mapping[str, Any]) -> None:
        """Write one file of a run."""
        folder = self.folder / run
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.partial"
        partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        partial.replace(folder / f"{name}.json")

    def read(self, run: str, name: str) -> dict[str, Any] | None:
        """One file of a run, or None."""
        try:
            content: dict[str, Any] = json.loads((self.folder / run / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return content

    @contextmanager
    def locked(self, run: str) -> Iterator[bool]:
        """Lock a run. False if another thread holds it, or if it is gone because another sent it."""
        try:
            lock = (self.folder / run / "lock").open("w")
        except FileNotFoundError:
            yield False
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield self.holds(run)


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_LONGEST]
    return flat


def _now() -> int:
    return int(time.time() * 1000)
