"""Paths in a job's file, written so that a node with another workspace finds them.

artifact:DIGEST/PATH     a file or folder of an artifact, which the node fetches from the store
workspace:PATH           one below the workspace: the job's own folder, or what was sent along with the job
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_platform.unshared.contract import CACHE_FOLDER

ARTIFACT, WORKSPACE = "artifact:", "workspace:"
_ARTIFACT = re.compile(r"(?:store/artifacts|cache)/([0-9a-f]{64})(?:/(.*))?")


@dataclass
class Written:
    """A job's file for the nodes."""

    text: str = ""
    artifacts: set[str] = field(default_factory=set)
    """Digests of the artifacts that it names."""
    sent: set[str] = field(default_factory=set)
    """Paths below the workspace that it names, besides the job's own folder."""


def write(text: str, home: Path, folder: Path) -> Written:
    """Replace the paths in a job's JSON by references.

    Args:
        home: the workspace of this machine.
        folder: the job's folder.

    Raises:
        ConfigError: the job reads a file outside the workspace.
    """
    written = Written()

    def refer(value: str) -> str:
        if not value.startswith("/"):
            return value
        path = Path(value)
        if not path.is_relative_to(home):
            if len(path.parts) > 2 and path.exists():
                raise ConfigError(
                    f"The job reads {value}, which nodes without a shared folder do not have. Copy it into the "
                    f"workspace {home}, or publish it as an artifact."
                )
            return value
        relative = path.relative_to(home).as_posix()
        if artifact := _ARTIFACT.fullmatch(relative):
            written.artifacts.add(artifact[1])
            return ARTIFACT + relative.partition("/" if relative.startswith("cache/") else "store/artifacts/")[2]
        if path != folder and path.exists():
            written.sent.add(relative)
        return WORKSPACE + relative

    written.text = json.dumps(_each_text(json.loads(text), refer), indent=2)
    return written


def resolve(text: str, home: Path) -> str:
    """Replace the references in a job's JSON by paths of this node."""

    def path(value: str) -> str:
        if value.startswith(ARTIFACT):
            return str(home / CACHE_FOLDER / value.removeprefix(ARTIFACT))
        return str(home / value.removeprefix(WORKSPACE)) if value.startswith(WORKSPACE) else value

    return json.dumps(_each_text(json.loads(text), path), indent=2)


def artifacts_of(text: str) -> set[str]:
    """Digests of the artifacts that a job's JSON refers to."""
    digests: set[str] = set()

    def note(value: str) -> str:
        if value.startswith(ARTIFACT):
            digests.add(value.removeprefix(ARTIFACT).partition("/")[0])
        return value

    _each_text(json.loads(text), note)
    return digests


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(each, change) for each in value]
    if isinstance(value, dict):
        return {key: _each_text(each, change) for key, each in value.items()}
    return value
