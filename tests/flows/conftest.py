"""The real command in real processes, and one whole lifecycle of a small model that several tests share."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

CUPOLA = Path(sys.executable).with_name("cupola")
RECIPE = """
name: short
seed: 3
stages:
  prepare:
    corpus:
      sources: {{text: {{type: files, path: {texts}}}}}
      tokenizer: {{vocab_size: 320, train_bytes: 100000}}
      quality: null
      heldout_fraction: 0.2
      executor: {{workers: 1}}
  pretrain:
    model: {{hidden_size: 32, num_layers: 2, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 64,
            max_position_embeddings: 128}}
    layout: {{tp: 2}}
    batch: {{sequence_length: 64, micro_batch_size: 4, global_batch_size: 4}}
    steps: 20
    checkpoint: {{every: 10}}
"""


@dataclass(frozen=True)
class Command:
    """The `cupola` command bound to one workspace."""

    workspace: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """Extra environment variables."""

    def __call__(self, *arguments: str, timeout: float = 560) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [CUPOLA, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd=self.workspace.parent,
            timeout=timeout,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command that the test interrupts."""
        return subprocess.Popen(
            [CUPOLA, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
            cwd=self.workspace.parent,
        )

    def json(self, *arguments: str, timeout: float = 560) -> Any:
        """The parsed --json output of a command."""
        done = self(*arguments, "--json", timeout=timeout)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CUPOLA_HOME": str(self.workspace),
            "CUPOLA_MAX_PROCESSES": "2",
            "COLUMNS": "140",
            **self.variables,
        }

    def published(self) -> dict[str, str]:
        """Id of each stage's artifact."""
        return {row["stage"]: row["id"] for row in self.json("artifacts")}

    def events(self) -> list[dict[str, Any]]:
        """Every line of the newest job's metrics.jsonl."""
        files = sorted(self.workspace.glob("work/*/job/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
        return [json.loads(line) for line in files[-1].read_text().splitlines() if line.endswith("}")] if files else []

    def processes(self) -> list[psutil.Process]:
        """Living processes that were started for this workspace."""
        found = []
        for process in psutil.process_iter():
            try:
                home = process.environ().get("CUPOLA_HOME")
                if home == str(self.workspace) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def cupola(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path / "home")
    yield command
    for process in command.processes():
        process.kill()


@pytest.fixture(scope="session")
def new_command() -> Callable[[Path], Command]:
    """The command for a workspace that several tests share."""
    return Command


@pytest.fixture
def undisturbed(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Artifact ids by stage of an undisturbed run of the same command."""

    def run(recipe: Path, *overrides: str) -> dict[str, str]:
        twin = Command(tmp_path / "undisturbed")
        done = twin("run", str(recipe), "--no-prefect", *overrides)
        assert done.returncode == 0, done.stderr
        return twin.published()

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Real text: a few modules of the standard library."""
    folder = tmp_path / "texts"
    folder.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for file in [*sorted((library / "email").glob("*.py")), *sorted((library / "json").glob("*.py"))]:
        shutil.copy(file, folder / f"{file.parent.name}-{file.name}")
    return folder


@pytest.fixture
def recipe(tmp_path: Path, texts: Path) -> Path:
    """A recipe with two stages on `texts`."""
    path = tmp_path / "short.yaml"
    path.write_text(RECIPE.format(texts=texts))
    return path


@pytest.fixture(scope="session")
def life(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A workspace in which the recipe `smoke` was run to its end under Prefect."""
    command = Command(tmp_path_factory.mktemp("life") / "home")
    started = time.monotonic()
    done = command("run", "smoke", timeout=880)
    (command.workspace / "page.txt").write_text(done.stdout)
    (command.workspace / "seconds.txt").write_text(str(time.monotonic() - started))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return command


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Fail unless `true()` holds in time."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool], float, str], None]:
    return wait_until
