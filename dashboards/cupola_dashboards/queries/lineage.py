"""An artifact's ancestors and descendants, as unique nodes and edges."""

from dataclasses import dataclass

import pandas as pd

from cupola_dashboards.queries.workspace import workspace
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import NotFoundError
from cupola_platform.registry import ArtifactRow
from cupola_platform.workspace import LineageNode, SourceSummary


@dataclass(frozen=True)
class Graph:
    """The ancestry of `root`: each artifact once, with edges from parents to children."""

    root: str
    nodes: dict[str, LineageNode]
    edges: tuple[tuple[str, str], ...]

    @property
    def sources(self) -> list[tuple[str, SourceSummary]]:
        """Pairs of (digest of a `tokens` artifact, source of its text)."""
        return [(digest, source) for digest, node in self.nodes.items() for source in node.sources]


def ancestry(digest: str) -> Graph:
    """The graph down to the sources, from manifests and the registry. No checkpoint is fetched.

    Raises:
        NotFoundError: the store does not have it.
    """
    opened = workspace()
    node = opened.lineage(Artifact(opened.root, opened.store.manifest(digest)))
    nodes: dict[str, LineageNode] = {}
    edges: dict[tuple[str, str], None] = {}
    _collect(node, nodes, edges)
    return Graph(digest, nodes, tuple(edges))


def made_from(digest: str) -> pd.DataFrame:
    """Artifacts made from it: id, kind, stage, recipe, created."""
    rows = [(row.id, row.kind, row.stage, row.recipe, row.created) for row in workspace().registry.children(digest)]
    return pd.DataFrame(rows, columns=["id", "kind", "stage", "recipe", "created"])


def artifacts(limit: int = 500) -> list[ArtifactRow]:
    """The newest artifacts of every kind."""
    return workspace().registry.artifacts(limit=limit)


def artifact(digest: str) -> ArtifactRow:
    """One artifact by digest, alias or the digest's first characters. Raises NotFoundError."""
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
