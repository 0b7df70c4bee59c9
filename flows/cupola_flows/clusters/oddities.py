"""Which nodes of a probed cluster are odd, and why."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median, median_low

from cupola_platform.clusters import Cluster
from cupola_trainer.config import NodeReport, ProbeReport

SLOW = 0.8
"""Share of the median speed below which a node is odd."""
CLOCK = 1.0
"""Seconds by which a clock may differ, besides the error of measuring it."""
MEMORY = 0.9
"""Least share of the memory in `cupola.toml` that a GPU must have; drivers keep some."""

Pick = Callable[[NodeReport], float | None]


@dataclass(frozen=True)
class Oddity:
    """One thing that is wrong with one node."""

    node: str
    what: str
    detail: str
    """A sentence about the node, without its name."""


def oddities(report: ProbeReport, cluster: Cluster, code: str) -> list[Oddity]:
    """Everything that is wrong, by node.

    Args:
        code: digest of Cupola's sources on this machine, whose fingerprints name what the cluster makes.
    """
    nodes = report.nodes
    wrong = [*_versions(nodes, code), *_gpus(nodes, cluster), *_speeds(nodes), *_clocks(nodes), *_stores(nodes)]
    if cluster.shared:
        wrong += _folders(nodes)
    names = [node.node for node in nodes]
    return sorted(wrong, key=lambda each: names.index(each.node))


def _versions(nodes: Sequence[NodeReport], code: str) -> Iterator[Oddity]:
    for node in nodes:
        if node.code != code:
            yield Oddity(
                node.node, "code", f"has other code of Cupola ({node.code[:12]}) than this machine ({code[:12]})."
            )
    for name in {name: None for node in nodes for name in node.versions}:
        yield from _different(nodes, name, [node.versions.get(name, "none") for node in nodes])


def _gpus(nodes: Sequence[NodeReport], cluster: Cluster) -> Iterator[Oddity]:
    for node in nodes:
        if len(node.gpus) < cluster.gpus_per_node:
            yield Oddity(node.node, "GPUs", f"sees {len(node.gpus)} GPUs; cupola.toml says {cluster.gpus_per_node}.")
        least = min((memory for _, memory in node.gpus), default=0.0)
        if node.gpus and cluster.gpu_memory and least < MEMORY * cluster.gpu_memory:
            yield Oddity(
                node.node, "GPUs", f"has a GPU of {least:.0f} GiB; cupola.toml says {cluster.gpu_memory:g} GiB."
            )
    yield from _different(nodes, "GPUs", [gpus_in_words(node) or "none" for node in nodes])


def _different(nodes: Sequence[NodeReport], what: str, values: Sequence[str]) -> Iterator[Oddity]:
    """Nodes whose value is not the most common one; of two nodes that differ, the second."""
    usual = Counter(values).most_common(1)[0][0]
    others = "the others have" if len(nodes) > 2 else "the other node has"
    for node, own in zip(nodes, values, strict=True):
        if own != usual:
            yield Oddity(node.node, what, f"{what}: {own}; {others} {usual}.")


def _speeds(nodes: Sequence[NodeReport]) -> Iterator[Oddity]:
    unit = "GPU" if any(node.gpus for node in nodes) else "core"
    picks: dict[str, tuple[Pick, str]] = {
        f"matmul per {unit}": (lambda node: node.matmul_flops, "FLOP/s"),
        "all-reduce within the node": (lambda node: node.bandwidth_within, "B/s"),
        "all-reduce with neighbours": (lambda node: node.bandwidth_between, "B/s"),
    }
    for what, (pick, per) in picks.items():
        speeds = [(node.node, speed) for node in nodes if (speed := pick(node)) is not None]
        usual = median(speed for _, speed in speeds) if speeds else 0.0
        for name, speed in speeds:
            if speed < SLOW * usual:
                share = f"{speed / usual:.2f} of the median {per_second(usual, per)}"
                yield Oddity(name, what, f"{what}: {per_second(speed, per)}, {share}.")


def _clocks(nodes: Sequence[NodeReport]) -> Iterator[Oddity]:
    usual = median_low([node.clock_offset for node in nodes])
    for node in nodes:
        ahead = node.clock_offset - usual
        if abs(ahead) > CLOCK + node.clock_bound:
            yield Oddity(
                node.node, "clock", f"its clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}. Run a time "
                "service, such as chrony, on every node.",
            )  # fmt: skip


def _folders(nodes: Sequence[NodeReport]) -> Iterator[Oddity]:
    apart = {node.node for node in nodes if not node.sees_folder}
    for node in nodes:
        if node.node in apart:
            yield Oddity(
                node.node, "folder", "does not see this machine's workspace. Mount it there at the same path, or set "
                "shared = false.",
            )  # fmt: skip
        elif unseen := [name for name in node.unseen if name not in apart]:
            yield Oddity(node.node, "folder", f"does not see what {', '.join(unseen)} wrote into the workspace.")


def _stores(nodes: Sequence[NodeReport]) -> Iterator[Oddity]:
    for node in nodes:
        if node.store_error:
            yield Oddity(node.node, "store", f"does not reach the store: {node.store_error}")


def gpus_in_words(node: NodeReport) -> str:
    """`8 x NVIDIA H100 80GB HBM3, 79 GiB`; empty without GPUs."""
    kinds = Counter((name, round(memory)) for name, memory in node.gpus)
    return " and ".join(f"{count} x {name}, {memory} GiB" for (name, memory), count in kinds.items())


def per_second(value: float, unit: str) -> str:
    """A speed with a metric prefix: `812 TFLOP/s`, `46.1 GB/s`."""
    prefixes = {"M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    prefix = max((each for each in prefixes if value >= prefixes[each]), key=prefixes.__getitem__, default="M")
    scaled = value / prefixes[prefix]
    return f"{scaled:.0f} {prefix}{unit}" if scaled >= 100 else f"{scaled:.3g} {prefix}{unit}"
