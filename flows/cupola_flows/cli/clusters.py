"""`cupola clusters` and `cupola doctor`: what clusters and this machine have."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from cupola_flows.cli.options import JsonOption, WorkspaceOption, print_rows, settings_of
from cupola_flows.clusters.oddities import Oddity, gpus_in_words, oddities, per_second
from cupola_flows.clusters.probing import Probe, probe
from cupola_flows.clusters.survey import Row, survey
from cupola_flows.servers.doctor import examine
from cupola_flows.terminal.text import plain, stdout
from cupola_platform.artifacts.digests import code_version
from cupola_platform.errors import ConfigError
from cupola_platform.settings import Settings
from cupola_trainer.config import NodeReport
from cupola_trainer.config.probe import CODE

SHOWN = ("python", "torch", "megatron-core", "driver")
"""Versions in the table; the others are compared too."""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: cupola clusters")(clusters)
    app.command(epilog="Example: cupola doctor --cluster NAME --nodes 2")(doctor)


def clusters(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List this machine and the clusters of cupola.toml, and what each answers now."""
    rows = survey(settings_of(workspace))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print_rows([_cells(row) for row in rows], as_json=False, empty="")
    console = stdout()
    for row in rows:
        lines = [f"{node} is {why}" for node, why in row.nodes_down.items()]
        for line in [row.reason, *lines] if row.reason else lines:
            _line(console, f"{row.cluster or 'this machine'}: {line}")


def _cells(row: Row) -> dict[str, str]:
    each = f"{row.gpus_per_node} GPUs" if row.gpus_per_node else f"{row.ranks_per_node} ranks"
    return {
        "cluster": row.cluster or "(this machine)",
        "launcher": row.launcher,
        "size": f"{row.nodes} x {each}",
        "GPU memory": _number(row.gpu_memory_gib, " GiB"),
        "node hour": _number(row.price_per_node_hour),
        "state": row.state,
        "free": _number(row.nodes_free),
        "busy": _number(row.nodes_busy),
        "down": _number(None if row.nodes_free is None else len(row.nodes_down)),
        "waiting jobs": _number(row.jobs_waiting),
    }


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:g}{unit}"


def doctor(
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="NAME", help="Probe a cluster's nodes instead of this machine.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", metavar="N", min=1, help="Nodes to probe. Default: all a job may take."),
    ] = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Minutes that the probe may wait in the queue.")] = 10,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Check that this machine, or each node of a cluster, has what Cupola needs. Exits with status 1 if not."""
    settings = settings_of(workspace)
    if cluster is not None:
        raise typer.Exit(0 if _probe(settings, cluster, nodes, wait, as_json) else 1)
    if nodes is not None:
        raise ConfigError(f"--nodes {nodes} is for a cluster. Name it: --cluster NAME.")
    rows = examine(settings)
    print_rows(rows, as_json=as_json, empty="")
    if any(row["state"] == "missing" for row in rows):
        raise typer.Exit(1)


def _probe(settings: Settings, name: str, nodes: int | None, wait: float, as_json: bool) -> bool:
    """Probe a cluster and print the result; whether all is well."""
    progress = Console(stderr=True, quiet=as_json)
    probed = probe(settings, name, nodes, minutes=wait, say=lambda text: _line(progress, text))
    odd = oddities(probed.report, settings.clusters[name], code_version(*CODE))
    well = not odd and not probed.down
    if as_json:
        print(json.dumps(_as_json(name, probed, odd, well), indent=2))
    else:
        _show(name, probed, odd, has_store=settings.store_url is not None)
    return well


def _as_json(name: str, probed: Probe, odd: list[Oddity], well: bool) -> dict[str, Any]:
    return {
        "cluster": name,
        "well": well,
        "nodes": [node.model_dump(mode="json") for node in probed.report.nodes],
        "bandwidth": probed.report.bandwidth,
        "odd": [asdict(each) for each in odd],
        "down": dict(probed.down),
        "probed": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _show(name: str, probed: Probe, odd: list[Oddity], *, has_store: bool) -> None:
    nodes = probed.report.nodes
    versions = [each for each in SHOWN if any(each in node.versions for node in nodes)]
    print_rows([_node_cells(node, versions, has_store) for node in nodes], as_json=False, empty="")
    console = stdout()
    if probed.report.bandwidth is not None:
        speed = per_second(probed.report.bandwidth, "B/s")
        _line(console, f"All-reduce over all {sum(node.ranks for node in nodes)} ranks: {speed} bus bandwidth.")
    for each in odd:
        _line(console, f"{each.node}: {each.detail}")
    for node, why in probed.down.items():
        _line(console, f"{node}: not probed, it is {why}.")
    count = len({each.node for each in odd} | set(probed.down))
    _line(console, f"Odd nodes of cluster {name}: {count}." if count else f"Cluster {name} is well.")


def _line(console: Console, text: str) -> None:
    console.print(plain(text), soft_wrap=True)


def _node_cells(node: NodeReport, versions: list[str], has_store: bool) -> dict[str, str]:
    return {
        "node": node.node,
        "code": node.code[:12],
        **{name: node.versions.get(name, "none") for name in versions},
        "GPUs": gpus_in_words(node) or "none",
        "matmul": f"{per_second(node.matmul_flops, 'FLOP/s')} per {'GPU' if node.gpus else 'core'}",
        "within": _bandwidth(node.bandwidth_within),
        "between": _bandwidth(node.bandwidth_between),
        "folder": "shared" if node.sees_folder else "apart",
        **({"store": "unreachable" if node.store_error else "reached"} if has_store else {}),
        "clock": f"{1e3 * node.clock_offset:+.1f} ± {1e3 * node.clock_bound:.1f} ms",
        "disk": "" if node.disk_free is None else f"{node.disk_free / 2**30:.0f} GiB",
        "memory": f"{node.memory_free / 2**30:.0f} GiB",
    }


def _bandwidth(value: float | None) -> str:
    return "" if value is None else per_second(value, "B/s")
