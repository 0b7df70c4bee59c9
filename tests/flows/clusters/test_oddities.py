"""Which nodes of a probe's report are named, and why."""

from typing import Any

import pytest

from cupola_flows.clusters.oddities import oddities, per_second
from cupola_platform.clusters import Cluster
from cupola_trainer.config import NodeReport, ProbeReport

CODE = "c" * 64
H100 = ("NVIDIA H100", 79.6)
GPUS = Cluster(launcher="slurm", nodes=3, gpus_per_node=2, gpu_memory=80)
CORES = Cluster(launcher="slurm", nodes=3, ranks_per_node=2)


def node(name: str, **changes: Any) -> NodeReport:
    """A healthy node of `GPUS`, changed."""
    return NodeReport(
        **{
            "node": name, "ranks": 2, "code": CODE, "versions": {"torch": "2.9.0", "driver": "550.54"},
            "gpus": (H100, H100), "matmul_flops": 700e12, "bandwidth_within": 400e9, "bandwidth_between": 45e9,
            "sees_folder": True, "unseen": (), "store_error": None, "clock_offset": 0.0, "clock_bound": 0.001,
            "disk_free": 2**40, "memory_free": 2**40, **changes,
        }
    )  # fmt: skip


def odd(*nodes: NodeReport, cluster: Cluster = GPUS) -> list[tuple[str, str]]:
    report = ProbeReport(nodes=nodes, bandwidth=45e9)
    return [(each.node, each.detail) for each in oddities(report, cluster, CODE)]


def test_equal_nodes_are_not_odd() -> None:
    assert odd(node("n1"), node("n2"), node("n3")) == []
    assert odd(node("n1", bandwidth_between=None)) == []


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"versions": {"torch": "2.8.0", "driver": "550.54"}}, "torch: 2.8.0; the others have 2.9.0."),
        ({"versions": {"torch": "2.9.0"}}, "driver: none; the others have 550.54."),
        (
            {"versions": {"torch": "2.9.0", "driver": "550.54", "NCCL": "2.27"}},
            "NCCL: 2.27; the others have none.",
        ),
        ({"code": "d" * 64}, f"has other code of Cupola ({'d' * 12}) than this machine ({'c' * 12})."),
        ({"matmul_flops": 500e12}, "matmul per GPU: 500 TFLOP/s, 0.71 of the median 700 TFLOP/s."),
        ({"bandwidth_within": 300e9}, "all-reduce within the node: 300 GB/s, 0.75 of the median 400 GB/s."),
        ({"bandwidth_between": 4.5e9}, "all-reduce with neighbours: 4.5 GB/s, 0.10 of the median 45 GB/s."),
        ({"clock_offset": 1.5}, "its clock is 1.5 s ahead. Run a time service, such as chrony, on every node."),
        ({"clock_offset": -7.25}, "its clock is 7.2 s behind. Run a time service, such as chrony, on every node."),
        (
            {"sees_folder": False, "unseen": ("n1", "n3")},
            "does not see this machine's workspace. Mount it there at the same path, or set shared = false.",
        ),
        ({"unseen": ("n3",)}, "does not see what n3 wrote into the workspace."),
        (
            {"store_error": "s3://b on AWS refused the credentials (403)."},
            "does not reach the store: s3://b on AWS refused the credentials (403).",
        ),
    ],
)
def test_a_node_that_differs_from_two_others_is_named(changes: dict[str, Any], detail: str) -> None:
    assert odd(node("n1"), node("n2", **changes), node("n3")) == [("n2", detail)]


@pytest.mark.parametrize(
    "changes",
    [
        {"matmul_flops": 561e12},
        {"bandwidth_between": 36.1e9},
        {"clock_offset": 0.9},
        {"clock_offset": 2.9, "clock_bound": 2.0},
        {"disk_free": None},
    ],
)
def test_small_differences_are_not_odd(changes: dict[str, Any]) -> None:
    assert odd(node("n1"), node("n2", **changes), node("n3")) == []


def test_gpus_that_are_missing_or_smaller_than_the_settings_say_are_named() -> None:
    assert odd(node("n1"), node("n2", gpus=(H100,)), node("n3")) == [
        ("n2", "sees 1 GPUs; cupola.toml says 2."),
        ("n2", "GPUs: 1 x NVIDIA H100, 80 GiB; the others have 2 x NVIDIA H100, 80 GiB."),
    ]
    small = (("NVIDIA A100", 39.4), ("NVIDIA A100", 39.4))
    assert odd(node("n1", gpus=small), node("n2", gpus=small)) == [
        ("n1", "has a GPU of 39 GiB; cupola.toml says 80 GiB."),
        ("n2", "has a GPU of 39 GiB; cupola.toml says 80 GiB."),
    ]


def test_of_two_nodes_that_differ_the_second_is_named() -> None:
    other = node("n2", versions={"torch": "2.8.0", "driver": "550.54"})
    assert odd(node("n1"), other) == [("n2", "torch: 2.8.0; the other node has 2.9.0.")]


def test_a_node_apart_is_not_missed_by_the_others() -> None:
    apart = node("n2", sees_folder=False, unseen=("n1", "n3"))
    names = {name for name, _ in odd(node("n1", unseen=("n2",)), apart, node("n3", unseen=("n2",)))}
    assert names == {"n2"}


def test_nodes_without_a_shared_folder_are_not_odd_if_the_settings_say_so() -> None:
    apart = node("n2", sees_folder=False, unseen=("n1",), gpus=())
    own = node("n1", unseen=("n2",), gpus=())
    assert odd(own, apart, cluster=CORES.but(shared=False)) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(812.4e12, "812 TB/s"), (46.12e9, "46.1 GB/s"), (3e5, "0.3 MB/s"), (999.6e9, "1000 GB/s"), (1.2e15, "1.2 PB/s")],
)
def test_speeds_have_metric_prefixes(value: float, text: str) -> None:
    assert per_second(value, "B/s") == text
