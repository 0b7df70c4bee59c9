"""What an artifact was made from, and what was made from it, as nodes and edges without repetition."""

from dataclasses import dataclass

import pandas as pd

from cupola_dashboards.queries.workspace import workspace
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import NotFoundError
from cupola_platform.registry import ArtifactRow
from cupola_platform.workspace import LineageNode, SourceSummary


@dataclass(frozen=True)
class Graph:
    """The ancestry of `root`: each artifact once, edges from what was taken to what it went into."""

    root: str
    nodes: dict[str, LineageNode]
    edges: tuple[tuple[str, str], ...]

    @property
    def sources(self) -> list[tuple[str, SourceSummary]]:
        """(digest of the `tokens` artifact, source of its text)."""
        return [(digest, source) for digest, node in self.nodes.items() for source in node.sources]


def ancestry(digest: str) -> Graph:
    """The graph down to the sources. Reads manifests and the registry; no checkpoint is fetched.

    Raises:
        NotFoundError: the store does not hold it.
    """
    opened = workspace()
    node = opened.lineage(Artifact(opened.root, opened.store.manifest(digest)))
    nodes: dict[str, LineageNode] = {}
    edges: dict[tuple[str, str], None] = {}
    _collect(node, nodes, edges)
    return Graph(digest, nodes, tuple(edges))


def made_from(digest: str) -> pd.DataFrame:
    """What took the artifact in: id, kind, stage, recipe, created."""
    rows = [(row.id, row.kind, row.stage, row.recipe, row.created) for row in workspace().registry.children(digest)]
    return pd.DataFrame(rows, columns=["id", "kind", "stage", "recipe", "created"])


def artifacts(limit: int = 500) -> list[ArtifactRow]:
    """The newest artifacts of every kind."""
    return workspace().registry.artifacts(limit=limit)


def artifact(digest: str) -> ArtifactRow:
    """One artifact by its whole digest, an alias, or the digest's first characters. Raises NotFoundError."""
    registry = workspace().registry
    alias = registry.alias(digest)
    matches = registry.starting_with(alias.digest if alias else digest, limit=2)
    if len(matches) != 1:
        raise NotFoundError(
            f"{digest!r} names {'several artifacts' if matches else 'no artifact'}. Choose one from the list."
        )
    return matches[0]


def _collect(node: LineageNode, nodes: dict[str, LineageNode], edges: dict[tuple[str, str], None]) -> None:
    if node.digest in nodes:
        return
    nodes[node.digest] = node
    for parent in node.parents:
        edges[(parent.digest, node.digest)] = None
        _collect(parent, nodes, edges)
