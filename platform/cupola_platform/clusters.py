"""Clusters: named places where jobs run, described in `cupola.toml`."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cupola_platform.errors import ConfigError
from cupola_platform.strict import Strict

FINGERPRINTED = False  # says where a job runs, not what it computes

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,+:/@-]*$")]
"""A name of the engine's, which goes into scripts: no spaces, quotes or expansions."""
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Cluster(Strict):
    """One `[clusters.NAME]` of `cupola.toml`."""

    launcher: Literal["slurm"]
    """The engine that starts jobs there."""
    nodes: int = Field(default=1, ge=1)
    """Most nodes that one job may take."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of a node, one rank each. 0 for a cluster without GPUs; set `ranks_per_node` then."""
    ranks_per_node: int | None = Field(default=None, ge=1)
    """Ranks that a node without GPUs runs."""
    partition: Word | None = None
    """Slurm's partition; None for the default one."""
    account: Word | None = None
    """Slurm's account to charge; None for the user's default."""
    time_limit: Annotated[str, StringConstraints(pattern=r"^(\d+-)?\d{1,2}(:\d\d){0,2}$")] | None = None
    """Time limit of a job as Slurm writes it, such as `2-00:00:00`; None for the partition's."""
    sbatch: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]*$")], Word] = Field(default_factory=dict)
    """Further long options of sbatch, such as `{qos = "high"}`."""
    interface: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    """Network interface that the ranks of a job talk over, such as `ib0`; None for the one with the default route.
    Everybody on that network is trusted: see docs/training.md."""
    python: Path | None = None
    """Python on the nodes that has Cupola installed; None for the path of the one that runs this."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables for the ranks."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on the first node before the ranks start, such as `module load cuda`."""

    @model_validator(mode="after")
    def _has_ranks(self) -> "Cluster":
        if bool(self.gpus_per_node) == bool(self.ranks_per_node):
            raise ValueError("give either gpus_per_node or, for a cluster without GPUs, ranks_per_node")
        return self

    @property
    def per_node(self) -> int:
        """Most ranks of a job on one node."""
        return self.gpus_per_node or self.ranks_per_node or 1

    def spread(self, ranks: int, name: str) -> tuple[int, int]:
        """(nodes, ranks a node) for a job: as few nodes as have room, each with as many ranks as the others.

        Raises:
            ConfigError: the cluster has too few nodes; names what was asked for and what there is.
        """
        for nodes in range(math.ceil(ranks / self.per_node), self.nodes + 1):
            if ranks % nodes == 0:
                return nodes, ranks // nodes
        raise ConfigError(
            f"The job needs {ranks} ranks; cluster {name} runs at most {self.nodes} x {self.per_node} = "
            f"{self.nodes * self.per_node}, with as many on each node. Choose a smaller layout, or raise "
            f"clusters.{name}.nodes."
        )
