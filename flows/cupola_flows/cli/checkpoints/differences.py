"""`cupola checkpoint diff`."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from cupola_flows.cli.checkpoints.base import convert, resolve_checkpoint
from cupola_flows.cli.options import JsonOption, WorkspaceOption
from cupola_flows.terminal.text import stdout

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
PARTS = {
    "attention": re.compile(r"self_attn\."),
    "router": re.compile(r"mlp\.gate\."),
    "experts": re.compile(r"mlp\.experts\."),
    "shared expert": re.compile(r"mlp\.shared_expert"),
    "mlp": re.compile(r"mlp\."),
    "norms": re.compile(r".*norm"),
}
"""Parts of a layer, by tensor name; the first match counts."""
KINDS = ("checkpoint", "reward_model")


def register(app: typer.Typer) -> None:
    """Add the command to `cupola checkpoint`."""
    app.command("diff", epilog="Example: cupola checkpoint diff sft-id dpo-id")(diff)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint: id, alias or folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another checkpoint.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show the distance of B's weights from A's, relative to A's norm, by layer and part.

    0.00% means unchanged; unrelated models of the same size are 141% apart.
    Layouts may differ. For models of different shapes, common tensors are
    compared and the others counted. --json adds the norm, distance, cosine
    and share of changed elements of every tensor.
    """
    one, other = (resolve_checkpoint(each, workspace, kinds=KINDS) for each in (a, b))
    differences = json.loads(convert("diff", "--checkpoint", str(one.path), "--other", str(other.path)))
    if as_json:
        print(json.dumps({"a": one.id, "b": other.id, **differences}, indent=2))
        return
    stdout().print(_table(differences["tensors"]))
    print(f"Total {relative(differences['tensors'])}: {other.id} from {one.id}.")
    for side, artifact in (("only_a", one), ("only_b", other)):
        if differences[side]:
            print(
                f"Only in {artifact.id}: {len(differences[side])} tensors by name and shape, such as "
                f"{differences[side][0]}."
            )


def relative(rows: Iterable[Mapping[str, Any]]) -> str:
    """Distance of several tensors over their norm, such as `1.30%`; empty without tensors."""
    rows = list(rows)
    norm = math.hypot(*(row["norm"] for row in rows))
    distance = math.hypot(*(row["distance"] for row in rows))
    return f"{distance / norm:.2%}" if norm else ("0.00%" if rows and not distance else "")


def _table(rows: Iterable[Mapping[str, Any]]) -> Table:
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        layer = LAYER.fullmatch(row["name"])
        if layer:
            part = next(part for part, pattern in PARTS.items() if pattern.match(layer[2]))
            groups[f"layer {layer[1]}"][part].append(row)
        else:
            groups[row["name"].removeprefix("model.").removesuffix(".weight")][""].append(row)
    parts = [part for part in PARTS if any(part in group for group in groups.values())]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "all", *parts):
        table.add_column(heading, justify="right" if heading else "left")
    for name, group in groups.items():
        everything = [row for each in group.values() for row in each]
        table.add_row(name, relative(everything), *(relative(group.get(part, ())) for part in parts))
    return table
