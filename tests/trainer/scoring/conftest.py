"""Scorers that run as this user, as a regular user, and as a regular user without bubblewrap."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
ROOT = Path(__file__).parents[3]


@dataclass
class Scorer:
    """A `scoring.py` process and its properties."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    namespaces: bool
    user: int
    home: Path = field(default_factory=Path)

    def ask(self, response: str, tests: list[str] | str, seconds: float = 5.0) -> dict[str, Any]:
        """The score or error of a response, and peak memory."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([response, tests, seconds]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def score(self, response: str, tests: list[str] | str, seconds: float = 5.0) -> float:
        """The score of a response."""
        return float(self.ask(response, tests, seconds)["score"])


@pytest.fixture(scope="session")
def for_everybody() -> Iterator[tuple[str, str]]:
    """An interpreter and a folder of modules that any user can read; copies, since ours may be in root's home."""
    with tempfile.TemporaryDirectory(prefix="cupola-sandbox-") as folder:
        place = Path(folder)
        place.chmod(0o755)
        library = Path(sysconfig.get_path("stdlib"))
        ignored = shutil.ignore_patterns("site-packages", "test", "idlelib", "config-*", "__pycache__", "lib2to3")
        shutil.copytree(library, place / "python/lib" / library.name, ignore=ignored)
        (place / "python/bin").mkdir()
        shutil.copy(os.path.realpath(sys._base_executable), place / "python/bin/python3")  # type: ignore[attr-defined]
        for shared in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*"):
            shutil.copy(shared, place / "python/lib")
        code = shutil.ignore_patterns("__pycache__")
        for package in ("platform/cupola_platform", "trainer/cupola_trainer"):
            shutil.copytree(ROOT / package, place / "code" / package.partition("/")[2], ignore=code)
        (place / "code/cupola_trainer/evaluation/__init__.py").write_text(
            ""
        )  # the original needs packages that are not copied
        found = importlib.util.find_spec("pyseccomp")
        assert found
        assert found.origin
        shutil.copy(found.origin, place / "code")
        yield str(place / "python/bin/python3"), str(place / "code")


def start(name: str, python: str, code: str, *, user: int, path: str, folder: Path) -> Scorer:
    """Start `scoring.py` as a user, with only the programs on `path`."""
    (folder / "scoring.py").write_text((Path(__file__).parent / "scoring.py").read_text())
    folder.chmod(0o755)
    log = folder / "log"
    credentials = folder / "home/.aws/credentials"
    credentials.parent.mkdir(parents=True)
    credentials.write_text("aws_secret_access_key = planted")
    if os.geteuid() != user:
        for place in (credentials, credentials.parent, credentials.parents[1]):
            os.chown(place, user, user)
    environment = {
        "PATH": path,
        "HOME": str(folder / "home"),
        "PYTHONPATH": code,
        "SECRET": "planted",
        "LD_LIBRARY_PATH": str(Path(python).parents[1] / "lib"),
    }
    with log.open("w") as errors:
        other = {} if os.geteuid() == user else {"user": user, "group": user, "extra_groups": []}
        process = subprocess.Popen(
            [python, str(folder / "scoring.py")], env=environment, cwd="/", text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, **other,  # type: ignore[call-overload]
        )  # fmt: skip
    return Scorer(name, process, log, "none" not in path, user, folder / "home")


@pytest.fixture(scope="session", params=["this user", "a regular user", "a regular user without namespaces"])
def scorer(request: pytest.FixtureRequest, for_everybody: tuple[str, str]) -> Iterator[Scorer]:
    """Each of the three scorers in turn."""
    user = os.geteuid() if request.param == "this user" else NOBODY if os.geteuid() == 0 else os.geteuid()
    path = "/none" if request.param.endswith("namespaces") else os.environ["PATH"]
    with tempfile.TemporaryDirectory(prefix="cupola-scorer-") as folder:
        started = start(request.param, *for_everybody, user=user, path=path, folder=Path(folder))
        yield started
        started.process.communicate()
