"""`cupola clusters` and `cupola doctor --cluster` on a real Slurm cluster of four nodes on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupola_platform.aliases
from cupola_flows.clusters.survey import survey
from cupola_platform.clusters import SlurmCluster
from cupola_platform.settings import Settings

CLUSTERS = """
[clusters.desk]
launcher = "local"
ranks_per_node = 1

[clusters.slurm]
launcher = "slurm"
nodes = 4
ranks_per_node = 1
interface = "lo"
price = 2.5
"""
SPEEDS = {"matmul per core", "all-reduce within the node", "all-reduce with neighbours"}
"""What may be odd of a healthy node here, where all nodes share two cores with other work."""
NODE_2 = json.dumps({"slurm": {"sbatch": {"nodelist": "n2"}}})
AN_HOUR_AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 3600\n"
Cupola = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cupola(tmp_path: Path, on_slurm: Mapping[str, str]) -> Cupola:
    """The command, in a folder with a cupola.toml."""
    (tmp_path / "cupola.toml").write_text(CLUSTERS)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").touch()

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        path = f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}"
        return subprocess.run(
            [Path(sys.executable).with_name("cupola"), *arguments],
            check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300,
            env={**os.environ, "PYTHONPATH": path, **variables},
        )  # fmt: skip

    return run


@pytest.fixture
def drained(slurm: Any) -> Iterator[Callable[..., None]]:
    """A function that takes nodes out of use, until the test ends."""

    def drain(*names: str) -> None:
        slurm.ask("scontrol", "update", f"nodename={','.join(names)}", "state=drain", "reason=a bad | fan")

    yield drain
    slurm.ask("scontrol", "update", "nodename=n[1-4]", "state=resume")
    slurm.wait_for(lambda: slurm.ask("sinfo", "-h", "-p", "main", "-o", "%T %D") == "idle 4", "idle nodes")


def rows_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {row["cluster"]: row for row in json.loads(done.stdout)}


def report_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.stdout.startswith("{"), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def core_flops() -> float:
    """FLOP/s of one core, by numpy."""
    matrix = np.random.default_rng(0).random((1024, 1024), dtype=np.float32)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    return float(2 * 1024**3 / np.median(seconds))


@pytest.mark.slow
def test_a_node_that_takes_no_jobs_is_named_with_its_reason(
    on_slurm: Mapping[str, str], drained: Callable[..., None]
) -> None:
    drained("n3")
    cluster = SlurmCluster(launcher="slurm", nodes=4, ranks_per_node=1)
    settings = Settings(clusters={"slurm": cluster, "typo": cluster.but(partition="urgnt")})
    rows = {row.cluster: row for row in survey(settings)}
    slurm, typo = rows["slurm"], rows["typo"]
    assert (slurm.state, slurm.nodes_free, slurm.nodes_busy, slurm.jobs_waiting) == ("free", 3, 0, 0)
    assert slurm.nodes_down == {"n3": "drained: a bad | fan"}
    assert (typo.state, typo.reason) == (
        "unreachable",
        "Slurm has no partition 'urgnt'. Did you mean 'urgent'? Correct clusters.typo.partition.",
    )


@pytest.mark.slow
def test_a_busy_cluster_says_what_waits_and_a_dead_node_that_it_does_not_answer(cupola: Cupola, slurm: Any) -> None:
    slurm.kill_node(4)
    try:
        for _ in range(2):
            slurm.ask("sbatch", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 300")
        slurm.wait_for(lambda: "n4|idle*" in slurm.ask("sinfo", "-h", "-N", "-o", "%N|%T"), "a lost node")
        row = rows_of(cupola("clusters", "--json"))["slurm"]
        assert (row["state"], row["nodes_free"], row["nodes_busy"], row["jobs_waiting"]) == ("busy", 0, 3, 1)
        assert re.fullmatch("(idle|down), does not answer(: Not responding)?", row["nodes_down"].pop("n4"))
        assert row["nodes_down"] == {}
        assert row["price_per_node_hour"] == 2.5
        assert re.search("^slurm: n4 is (idle|down), does not answer", cupola("clusters").stdout, re.MULTILINE)
    finally:
        slurm.ask("scancel", "--user=root")
        slurm.start_node(4)
        slurm.wait_for(lambda: slurm.ask("sinfo", "-h", "-p", "main", "-o", "%T %D") == "idle 4", "idle nodes")


@pytest.mark.slow
def test_a_controller_that_hangs_is_unreachable_in_time_and_delays_no_other_cluster(cupola: Cupola, slurm: Any) -> None:
    controller = int((slurm.folder / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        started = time.monotonic()
        rows = rows_of(cupola("clusters", "--json"))
        assert time.monotonic() - started < 45  # 15 for the clusters; the rest is the command's own start
    finally:
        os.kill(controller, signal.SIGCONT)
    assert rows["slurm"]["state"] == "unreachable"
    assert rows["desk"]["state"] in ("free", "busy")  # other jobs of this machine may run
    assert "sinfo does not answer" in rows["slurm"]["reason"]


@pytest.mark.slow
def test_two_healthy_nodes_are_well_and_as_fast_as_measured_otherwise(cupola: Cupola, s3: Any, tmp_path: Path) -> None:
    store = {"CUPOLA_STORE_URL": f"s3://{s3.bucket}", "CUPOLA_S3_ENDPOINT_URL": s3.endpoint_url}
    report = report_of(cupola("doctor", "--cluster", "slurm", "--nodes", "2", "--json", **store))
    assert [each for each in report["odd"] if each["what"] not in SPEEDS] == []
    assert report["down"] == {}
    assert [node["node"] for node in report["nodes"]] == ["n1", "n2"]
    core = core_flops()
    for node in report["nodes"]:
        assert core / 5 < node["matmul_flops"] < core * 5
        assert report["bandwidth"] / 5 < node["bandwidth_between"] < report["bandwidth"] * 5
        assert node["bandwidth_within"] is None
        assert node["store_error"] is None
        assert abs(node["clock_offset"]) <= node["clock_bound"] < 1  # one clock
    assert list(tmp_path.glob(".cupola/work/*")) == []


@pytest.fixture
def apart(tmp_path: Path, slurm: Any) -> Iterator[None]:
    """Node n2 with a workspace, a version of Megatron, code and a clock of its own."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("This machine gives no mount namespaces.")
    workspace = tmp_path / ".cupola"
    workspace.mkdir()
    metadata = Path(str(distribution("megatron-core").locate_file(""))) / "megatron_core-0.16.1.dist-info" / "METADATA"
    code = Path(str(cupola_platform.aliases.__file__))
    others = {
        metadata: metadata.read_text().replace("\nVersion: 0.16.1\n", "\nVersion: 0.15.0\n", 1),
        code: code.read_text() + "# changed\n",
        tmp_path / "site" / "sitecustomize.py": AN_HOUR_AHEAD,
    }
    lines = [f"mount -t tmpfs none '{workspace}'"]
    for number, (path, text) in enumerate(others.items()):
        (tmp_path / f"other-{number}").write_text(text)
        lines.append(f"mount --bind '{tmp_path}/other-{number}' '{path}'")
    slurm.mounts[2] = " && ".join(lines)
    slurm.kill_node(2)
    slurm.start_node(2)
    yield
    slurm.show()


@pytest.mark.slow
def test_a_node_that_differs_is_named_with_what_differs(cupola: Cupola, apart: None, s3: Any, tmp_path: Path) -> None:
    refused = {
        "CUPOLA_STORE_URL": f"s3://{s3.bucket}", "CUPOLA_S3_ENDPOINT_URL": s3.endpoint_url,
        "AWS_SECRET_ACCESS_KEY": "geheim",
    }  # fmt: skip
    done = cupola("doctor", "--cluster", "slurm", "--nodes", "2", "--json", **refused)
    assert done.returncode == 1
    assert "geheim" not in done.stdout + done.stderr
    odd = {
        (each["node"], each["what"]): each["detail"] for each in report_of(done)["odd"] if each["what"] not in SPEEDS
    }
    assert set(odd) == {
        ("n1", "store"), ("n2", "store"), ("n2", "code"), ("n2", "megatron-core"), ("n2", "clock"), ("n2", "folder"),
    }  # fmt: skip
    assert odd["n2", "megatron-core"] == "megatron-core: 0.15.0; the other node has 0.16.1."
    assert odd["n2", "clock"].startswith("its clock is 3600.0 s ahead.")
    assert odd["n2", "folder"].startswith("does not see this machine's workspace.")
    assert "refused the credentials" in odd["n1", "store"]
    alone = cupola("doctor", "--cluster", "slurm", "--nodes", "1", CUPOLA_CLUSTERS=NODE_2)
    assert alone.returncode == 2
    assert "node n2 wrote nothing into" in alone.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variables", "line"),
    [
        (["--cluster", "slrum"], {}, "No cluster is called 'slrum'. Did you mean 'slurm'?"),
        (["--cluster", "slurm", "--nodes", "5"], {}, "--nodes 5: a job of cluster slurm may take 4."),
        (
            ["--cluster", "slurm", "--nodes", "4"],
            {},
            "Cluster slurm has 3 nodes up, and the probe needs 4. n3 is drained",
        ),
        (["--cluster", "slurm", "--nodes", "3", "--wait", "0"], {}, "Cluster slurm had no room for the probe within 0"),
        (["--nodes", "2"], {}, "--nodes 2 is for a cluster. Name it: --cluster NAME."),
        (["--cluster", "slurm"], {"PATH": "/nowhere"}, "Cluster slurm is Slurm's, and sbatch is not on PATH."),
        (
            ["--cluster", "slurm"],
            {"CUPOLA_CLUSTERS": json.dumps({"slurm": {"partition": "mian"}})},
            "Cluster slurm: Slurm has no partition 'mian'. Did you mean 'main'? Correct clusters.slurm.partition.",
        ),
    ],
)
def test_a_probe_that_cannot_start_is_one_line(
    arguments: list[str], variables: dict[str, str], line: str, cupola: Cupola, slurm: Any,
    drained: Callable[..., None], tmp_path: Path,
) -> None:  # fmt: skip
    drained("n3")
    slurm.ask("sbatch", "--nodes=1", "--exclusive", "--output=/dev/null", "--wrap", "sleep 300")
    try:
        done = cupola("doctor", *arguments, "--json", **variables)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"cupola: error: {line}")
        assert done.stderr.count("\n") == 1
        assert len(slurm.ask("squeue", "--noheader").splitlines()) == 1  # the sleeper
        assert not (tmp_path / ".cupola").exists()
    finally:
        slurm.ask("scancel", "--user=root")
