"""Measured speeds against independent measurements of the same machine."""

import json
import time
from pathlib import Path
from statistics import median

import pytest
import torch

from cupola_platform.launch.local import LocalLauncher
from cupola_trainer.config import LayoutConfig, ProbeJob, ProbeReport, write_job
from cupola_trainer.config.probe import REPORT, TOKEN
from cupola_trainer.jobs.probe import _rounds
from cupola_trainer.runtime.speed import matmul_flops

RANK = """
import json, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.runtime.speed import all_reduce_bandwidth, matmul_peak

runtime.start(LayoutConfig(dp=2), seed=0)
ours = all_reduce_bandwidth()
numbers, total = torch.ones(4_000_000), 0.0
dist.all_reduce(numbers)
for _ in range(10):
    started = time.perf_counter()
    dist.all_reduce(numbers)
    total += time.perf_counter() - started
alone = dist.new_group([0])
lonely = all_reduce_bandwidth(alone) if runtime.rank() == 0 else 0.0
if runtime.rank() == 0:
    Path(sys.argv[1]).with_name("speeds").write_text(json.dumps([ours, 16e6 * 10 / total, lonely]))
runtime.stop()
"""


def by_hand() -> float:
    """FLOP/s of a core, by torch."""
    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    rate: float = 2 * 1024**3 / median(seconds) / torch.get_num_threads()
    return rate


def test_a_matrix_multiplication_is_as_fast_as_measured_by_hand() -> None:
    before, ours, after = by_hand(), matmul_flops(), by_hand()
    assert min(before, after) / 3 < ours < max(before, after) * 3  # other tests share the cores


@pytest.mark.parametrize("nodes", range(1, 9))
def test_every_node_exchanges_with_its_neighbours_and_with_one_at_a_time(nodes: int) -> None:
    rounds = _rounds(nodes)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(set(busy)) == len(busy)
    neighbours = {frozenset((i, (i + 1) % nodes)) for i in range(nodes)} if nodes > 1 else set()
    assert {frozenset(pair) for pairs in rounds for pair in pairs} == neighbours


@pytest.mark.slow
def test_an_all_reduce_is_as_fast_as_measured_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rank_of_test.py").write_text(RANK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    running = LocalLauncher(2, module="rank_of_test").start(tmp_path / "job", processes=2, log=tmp_path / "log")
    assert running.wait(300) == 0, (tmp_path / "log").read_text()
    ours, by_hand, alone = json.loads((tmp_path / "speeds").read_text())
    assert by_hand / 4 < ours < by_hand * 4  # of two ranks the bus bandwidth is bytes / time
    assert alone == 0  # one rank moves nothing


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_probe_of_one_node_reports_it(ranks: int, tmp_path: Path) -> None:
    job = ProbeJob(output=tmp_path, layout=LayoutConfig(dp=ranks), token="here")
    write_job(job, tmp_path / "job.json")
    (tmp_path / TOKEN).write_text("here")
    running = LocalLauncher(2).start(tmp_path / "job.json", processes=ranks, log=tmp_path / "log")
    assert running.wait(300) == 0, (tmp_path / "log").read_text()
    report = ProbeReport.model_validate_json((tmp_path / REPORT).read_bytes())
    (node,) = report.nodes
    assert (node.ranks, node.sees_folder, node.unseen, node.store_error) == (ranks, True, (), None)
    assert node.versions["torch"] == torch.__version__
    assert [node.bandwidth_within is None, report.bandwidth is None] == [ranks == 1] * 2
    assert node.bandwidth_between is None
    assert {path.name for path in tmp_path.iterdir()} == {
        "job.json", "log", "metrics.jsonl", REPORT, "result.json", TOKEN,
    }  # fmt: skip
