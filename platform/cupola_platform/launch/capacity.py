"""What a cluster answers when it is asked what it could run now."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a cluster answers when it is asked what it could run now."""

    nodes: int
    """Nodes that are up."""
    free: int
    """Nodes on which nothing runs."""
    waiting: int = 0
    """Jobs in its queue that have not started, whoever sent them."""
    down: Mapping[str, str] = field(default_factory=dict)
    """Nodes that cannot run jobs, each with the engine's reason."""
