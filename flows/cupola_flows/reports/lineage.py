"""A lineage as a tree for the terminal, and as JSON."""

from typing import Any

from rich.text import Text
from rich.tree import Tree

from cupola_flows.terminal.text import number, plain
from cupola_platform.workspace import LineageNode


def as_tree(node: LineageNode) -> Tree:
    """A rich tree with the artifact at its root. Artifacts that were shown before are only named."""
    tree = Tree(_label(node))
    _grow(tree, node, {node.digest})
    return tree


def as_json(node: LineageNode) -> dict[str, Any]:
    """The same tree as plain JSON."""
    return {
        "id": node.id,
        "digest": node.digest,
        "kind": node.kind,
        "stage": node.stage,
        "metrics": node.metrics,
        "sources": [{"name": s.name, "files": s.files, "bytes": s.bytes} for s in node.sources],
        "parents": [as_json(parent) for parent in node.parents],
    }


def _grow(tree: Tree, node: LineageNode, shown: set[str]) -> None:
    for source in node.sources:
        label = plain(f" {source.name}: {source.files:,} files, {source.bytes / 1e6:.1f} MB")
        tree.add(Text.assemble(("source", "dim"), label))
    for parent in node.parents:
        if parent.digest in shown:
            tree.add(Text.assemble(_label(parent), (" (above)", "dim")))
            continue
        shown.add(parent.digest)
        _grow(tree.add(_label(parent)), parent, shown)


def _label(node: LineageNode) -> Text:
    metrics = ", ".join(f"{name} {number(value)}" for name, value in list(node.metrics.items())[:3])
    return Text.assemble(
        (node.id, "bold"),
        plain(f" {node.kind} "),
        plain(node.stage, "cyan"),
        plain(f"  {metrics}" if metrics else "", "dim"),
    )
