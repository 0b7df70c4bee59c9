"""What a job's folder says about the job that works there on a cluster, so that any process can find it again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cupola_platform.durable import write_text

FILE = "handle.json"
STOP = "stop"
"""In a job's folder once someone asked the job to end: it does not start again by itself."""
CANCELLED = "it was cancelled"
"""`RunningJob.reason` of a job that a person ended by the engine's own means."""


@dataclass(frozen=True, kw_only=True)
class Handle:
    """One job of one cluster."""

    cluster: str
    """Name in `cupola.toml`."""
    id: str
    """The job's name or number in its engine."""

    def write(self, folder: Path) -> None:
        """Keep it in a job's folder, in place of an earlier one."""
        write_text(folder / FILE, json.dumps(asdict(self)))


def read(folder: Path) -> Handle | None:
    """The handle in a job's folder; None if no cluster was asked to run the job."""
    try:
        return Handle(**json.loads((folder / FILE).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
