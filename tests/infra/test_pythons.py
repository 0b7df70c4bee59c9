"""Python 3.11, 3.12 and 3.13: `make install` accepts them, and the code uses nothing that a later one removed."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REMOVED_BY_3_12 = {"asynchat", "asyncore", "distutils", "imp", "pkg_resources", "setuptools", "smtpd"}
"""Removed modules of the standard library, and packages missing in new virtual environments."""

REMOVED_BY_3_13 = {
    *("aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "lib2to3", "mailcap", "msilib", "nis", "nntplib"),
    *("ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib"),
}

STAND_IN = """#!/bin/sh
# A stand-in for Python {version}: venv copies this script, and pip records its arguments.
case "$1 $2" in
    -c*) exec {python} -c "import sys; sys.version_info = ({numbers}, 0); $2" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "$@" >> pip.log ;;
esac
"""


@pytest.fixture
def house(root: Path, tmp_path: Path) -> Path:
    """A folder with the files that `make install` reads, and a `bin` with shell tools only."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "mkdir", "cp", "touch", "test", "echo"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def provide(house: Path, version: str) -> None:
    python = house / "bin" / f"python{version}"
    python.write_text(STAND_IN.format(version=version, numbers=version.replace(".", ", "), python=sys.executable))
    python.chmod(0o755)


def install(house: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(shutil.which("make")), "install", *arguments],
        cwd=house, env={"PATH": str(house / "bin")}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("versions", "taken", "pins"),
    [
        (("3.11", "3.12", "3.13"), "3.11", "-c constraints.txt "),
        (("3.13", "3.12"), "3.12", ""),
        (("3.13",), "3.13", ""),
    ],
)
def test_make_install_takes_the_first_python_and_pins_packages_of_3_11(
    house: Path, versions: tuple[str, ...], taken: str, pins: str
) -> None:
    for version in versions:
        provide(house, version)
    done = install(house)
    assert done.returncode == 0, done.stderr
    assert f"A stand-in for Python {taken}:" in (house / ".venv" / "bin" / "python").read_text()
    assert (house / "pip.log").read_text().splitlines() == [
        "-m pip install --quiet pip==26.3",
        f"-m pip install {pins}--editable . --group dev",
    ]


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_an_unsupported_python_is_refused_with_advice(house: Path, version: str) -> None:
    provide(house, version)
    done = install(house, f"PYTHON=python{version}")
    assert done.returncode == 2
    assert f"Cupola needs Python 3.11, 3.12 or 3.13 with venv, and 'python{version}' is none of them" in done.stderr
    assert "make install PYTHON=/path/to/python3.11" in done.stderr


def test_the_project_says_that_it_runs_on_3_11_to_3_13(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"


def test_no_module_removed_by_a_later_python_is_imported(tracked: list[Path]) -> None:
    imported = {
        f"{path.name}: {name}"
        for path in tracked
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _names(node)
        if name.split(".")[0] in REMOVED_BY_3_12 | REMOVED_BY_3_13
    }
    assert imported == set()


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
