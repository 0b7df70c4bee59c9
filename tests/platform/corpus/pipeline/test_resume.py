"""A killed preparation resumes, and a killed worker is reported."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cupola_platform.clusters import KubernetesCluster, SlurmCluster
from cupola_platform.corpus.config import ExecutorConfig, Files, PrepareConfig, TokenizerConfig
from cupola_platform.corpus.pipeline.preparation import prepare
from cupola_platform.errors import ConfigError, StageFailedError

SCRIPT = """
import sys
from pathlib import Path
from pydantic import TypeAdapter
from cupola_platform.corpus.config import PrepareConfig
from cupola_platform.corpus.pipeline.preparation import prepare
if __name__ == "__main__":
    prepare(TypeAdapter(PrepareConfig).validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


def config_of(folder: Path, sources: int, documents: int) -> PrepareConfig:
    words = [
        "the",
        "a",
        "of",
        "furnace",
        "iron",
        "mould",
        "casting",
        "founder",
        "opens",
        "fills",
        "draws",
        "cools",
        "weighs",
        "and",
        "with",
        "to",
        "in",
        "is",
        "day",
    ]
    for source in range(sources):
        for number in range(documents):
            rng = random.Random(1000 * source + number)
            lines = [" ".join(rng.choices(words, k=12)).capitalize() + f", number {rng.random()}." for _ in range(60)]
            path = folder / f"s{source}" / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines))
    return PrepareConfig(
        sources={f"s{source}": Files(path=str(folder / f"s{source}")) for source in range(sources)},
        tokenizer=TokenizerConfig(vocab_size=320, train_bytes=50_000),
        executor=ExecutorConfig(workers=2),
    )


def start(config: PrepareConfig, to: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    from pydantic import TypeAdapter

    told = TypeAdapter(PrepareConfig).dump_json(config)
    command = [sys.executable, "-c", SCRIPT, told.decode(), str(to)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)


def markers(work: Path) -> dict[str, int]:
    """The end time of each task."""
    return {str(path.relative_to(work)): path.stat().st_mtime_ns for path in work.glob("runs/*/completions/*")}


def wait_for(work: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while len(markers(work)) < count:
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_killed_preparation_repeats_no_finished_task_and_gives_the_same_bytes(tmp_path: Path) -> None:
    config = config_of(tmp_path / "raw", sources=8, documents=20)
    prepare(config, tmp_path / "whole")

    work = tmp_path / "out.work"
    process = start(config, tmp_path / "out")
    wait_for(work, 2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    before = markers(work)
    assert 2 <= len(before) < 8 + 1 + 8 + 16 + 1 + 1 + 8

    after: dict[str, int] = {}
    prepare(config, tmp_path / "out", progress=lambda *_: after.update(markers(work)))
    assert {name: after[name] for name in before} == before
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not work.exists()


@pytest.mark.slow  # a minute; a killed preparation is tested by default
def test_a_power_failure_costs_no_finished_task_and_gives_the_same_bytes(tmp_path: Path, power_cut: Any) -> None:
    config = config_of(tmp_path / "raw", sources=4, documents=10)
    prepare(config, tmp_path / "whole")
    lost: list[Path] = []
    for count in (1, 9):
        process = start(config, tmp_path / "out", power_cut.environment)
        wait_for(tmp_path / "out.work", count, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        for each in [psutil.Process(process.pid), *workers]:
            with suppress(psutil.NoSuchProcess):  # a worker may have ended meanwhile
                each.kill()
        process.communicate()
        psutil.wait_procs(workers, timeout=20)
        before = markers(tmp_path / "out.work")
        assert len(before) >= count
        lost += power_cut.strike(tmp_path / "out.work", *tmp_path.glob("out"))
    assert lost
    after: dict[str, int] = {}
    prepare(config, tmp_path / "out", progress=lambda *_: after.update(markers(tmp_path / "out.work")))
    assert {name: after[name] for name in before} == before
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_worker_ends_the_preparation_with_a_clear_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    config = config_of(tmp_path / "raw", sources=6, documents=120)
    process = start(config, tmp_path / "out")
    wait_for(tmp_path / "out.work", 1, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    (server,) = [each for each in tree if "forkserver" in " ".join(each.cmdline()) and each.ppid() not in
                 {other.pid for other in tree if "forkserver" in " ".join(other.cmdline())}]  # fmt: skip
    os.kill(server.children()[0].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the worker was killed after its last task")
    assert StageFailedError.__name__ in errors.decode()
    assert "A worker process of the preparation was killed, maybe for lack of memory." in errors.decode()
    assert len(markers(tmp_path / "out.work")) >= 1


def test_an_executor_that_this_machine_does_not_have_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = SlurmCluster(launcher="slurm", ranks_per_node=1)
    kubernetes = KubernetesCluster(launcher="kubernetes", image="i", ranks_per_node=1, shared=False)
    for ray, cluster, words in (
        (True, None, "needs the package ray"),
        (False, slurm, "sbatch is not on the PATH"),
        (False, slurm.but(shared=False), "needs a workspace that all nodes share"),
        (True, kubernetes, "needs a workspace that all nodes share"),
    ):
        config = PrepareConfig(sources={"one": Files(path=str(tmp_path / "a.txt"))}, executor=ExecutorConfig(ray=ray))
        with pytest.raises(ConfigError, match=words):
            prepare(config, tmp_path / "out", cluster=cluster)
