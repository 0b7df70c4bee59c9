"""Text available on every machine: Python's standard library, the installed packages and their descriptions."""

import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from cupola_platform.corpus.config.sources import Part, PythonEnvironment

NOT_READ = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "idle_test"}
"""Skipped folders: generated, read as another part, or tests (more data than language)."""


def environment_files(source: PythonEnvironment) -> Iterator[tuple[Path, str]]:
    """Each file to read and its name, in the same order on every machine with the same installation.

    Names do not depend on where Python is installed: `stdlib/ast.py`, `packages/numpy/__init__.py`.
    """
    for part in source.parts:
        yield from _PARTS[part]()


def environment_state() -> str:
    """What the text depends on: the versions of Python and of all installed packages."""
    return "\n".join([platform.python_version(), *(path.parent.name for path, _ in _descriptions())])


def description(metadata_file: str) -> str:
    """The long description in a distribution's METADATA, after the headers."""
    return metadata_file.replace("\r\n", "\n").partition("\n\n")[2]


def _descriptions() -> Iterator[tuple[Path, str]]:
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/METADATA")):
        yield path, f"packages/{path.parent.name}/METADATA"


def _standard_library() -> Iterator[tuple[Path, str]]:
    return _python_files(Path(sysconfig.get_paths()["stdlib"]), "stdlib")


def _packages() -> Iterator[tuple[Path, str]]:
    return _python_files(Path(sysconfig.get_paths()["purelib"]), "packages")


def _python_files(root: Path, label: str) -> Iterator[tuple[Path, str]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - NOT_READ)
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder, name)
                yield path, f"{label}/{path.relative_to(root).as_posix()}"


_PARTS: dict[Part, Callable[[], Iterator[tuple[Path, str]]]] = {
    "descriptions": _descriptions,
    "standard_library": _standard_library,
    "packages": _packages,
}
