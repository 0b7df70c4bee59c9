"""Clusters: named places where jobs run, described in `cupola.toml`."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from cupola_platform.errors import ConfigError
from cupola_platform.strict import Strict, like

FINGERPRINTED = False  # says where a job runs, not what it computes

Text = Annotated[str, like(r"[^\0]*", "text without NUL, which no process can be given")]
Word = Annotated[str, like(r"[A-Za-z0-9][A-Za-z0-9_.,+:/@-]*", "a word of letters, digits and ._,+:/@-")]
"""A name of the engine's, which goes into scripts: no spaces, quotes or expansions."""
Dns = Annotated[
    str, like(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a name of at most 63 lower-case letters, digits and hyphens")
]
"""A name as Kubernetes allows it."""
Label = Annotated[
    str, like(r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,251}[A-Za-z0-9])?", "a name as Kubernetes allows it, such as rdma/hca")
]
LabelValue = Annotated[
    str, like(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", "at most 63 letters, digits and ._-, or empty")
]
Variable = Annotated[str, like(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Python = Annotated[Path, Field(strict=False), like(r"[^\0\n]*[^\0\n./][^\0\n]*", "the path of a Python")]
TimeLimit = Annotated[
    str,
    like(
        r"\d{1,6}-\d{1,2}(:\d{1,2}){0,2}|\d{1,7}(:\d{1,2}){0,2}",
        "minutes, hours:minutes:seconds or days-hours:minutes:seconds",
    ),
]
Option = Annotated[str, like(r"[a-z][a-z-]*", "a long option of sbatch without its hyphens, such as qos")]
Quantity = Annotated[str, like(r"\d+[A-Za-z]*", "a quantity as Kubernetes writes it, such as 1 or 8Gi")]
OWN_OPTIONS = {
    "array": "a stage is one job", "exclusive": "jobs take whole nodes", "job-name": "jobs are found by it",
    "nodes": "the job's layout decides", "ntasks-per-node": "it is 1", "ntasks": "it is one a node",
    "open-mode": "logs are appended to", "output": "it is the job's log", "error": "it is the job's log",
    "signal": "set save_ahead", "partition": "set partition", "account": "set account", "time": "set time_limit",
    "gpus-per-node": "set gpus_per_node", "wrap": "Cupola writes the script", "clusters": "jobs go where squeue looks",
}  # fmt: skip
"""Options of sbatch that are Cupola's own, and why or what to set instead."""
HOME = "CUPOLA_HOME"
"""Environment variable with a machine's workspace."""


def nodes_for(ranks: int, per_node: int, most: int) -> int | None:
    """As few nodes as have room for `ranks`, each with as many as the others; None if that takes more than `most`."""
    return next((nodes for nodes in range(math.ceil(ranks / per_node), most + 1) if ranks % nodes == 0), None)


def seconds_of(time_limit: str) -> int:
    """A time limit as Slurm writes it, in seconds; 0 is none."""
    days, _, rest = time_limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not days and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


class Cluster(Strict):
    """What every `[clusters.NAME]` says, whatever starts its jobs."""

    model_config = ConfigDict(strict=True)

    launcher: str
    """The engine that starts jobs there."""
    nodes: Count = 1
    """Most nodes that one job may take."""
    gpus_per_node: int = Field(default=0, ge=0, le=1_000_000)
    """GPUs of a node, one rank each. 0 for a cluster without GPUs; set `ranks_per_node` then."""
    ranks_per_node: Count | None = None
    """Ranks that a node without GPUs runs."""
    gpu_memory: float | None = Field(default=None, gt=0)
    """Memory of a GPU in GiB; None if it is not known."""
    price: float | None = Field(default=None, ge=0)
    """Price of one node for one hour, in whatever currency you pay; None if nobody counts."""
    limit: Count | None = None
    """Most ranks (GPUs, where there are any) that all runs together may take; None for as many as the cluster has."""
    shared: bool = True
    """Whether every node sees the workspace at the same path as this machine. If not, nodes fetch their inputs from
    the store and upload what they make, which needs `store_url`."""
    cache: float = Field(default=200, gt=0)
    """Most GiB of inputs that a node without a shared workspace keeps on its own disk."""
    interface: Annotated[str, like(r"[A-Za-z0-9_.-]+", "the name of a network interface, such as ib0")] | None = None
    """Network interface that the ranks of a job talk over, such as `ib0`; None for the one with the default route.
    Everybody on that network is trusted: see docs/clusters.md."""
    python: Python | None = None
    """Python on the nodes that has Cupola installed; None for the path of the one that runs this."""
    environment: dict[Variable, Text] = Field(default_factory=dict)
    """Environment variables for the ranks."""
    setup: tuple[Text, ...] = Field(default=(), strict=False)
    """Shell lines that run before the ranks start, such as `module load cuda`; the ranks inherit their environment."""

    @model_validator(mode="after")
    def _has_ranks(self) -> "Cluster":
        if bool(self.gpus_per_node) == bool(self.ranks_per_node):
            raise ValueError(
                f"has gpus_per_node = {self.gpus_per_node} and ranks_per_node = {self.ranks_per_node or 'none'}. Give "
                "one of them: the second for a cluster without GPUs"
            )
        return self

    @field_validator("environment")
    @classmethod
    def _home_is_absolute(cls, environment: dict[str, str]) -> dict[str, str]:
        if (home := environment.get(HOME)) is not None and not home.startswith("/"):
            raise ValueError(f"has {HOME} = {home!r}, the workspace on the nodes. Give an absolute path")
        return environment

    @property
    def home_on_nodes(self) -> str | None:
        """The workspace of nodes that share none; None for this machine's path."""
        return self.environment.get(HOME)

    @property
    def per_node(self) -> int:
        """Most ranks of a job on one node."""
        return self.gpus_per_node or self.ranks_per_node or 1

    def spread(self, ranks: int, name: str) -> tuple[int, int]:
        """(nodes, ranks a node) for a job: as few nodes as have room, each with as many ranks as the others.

        Raises:
            ConfigError: the cluster has too few nodes, or a lower `limit`; names what was asked for and what there is.
        """
        if self.limit and ranks > self.limit:
            raise ConfigError(
                f"The job needs {ranks} ranks; clusters.{name}.limit is {self.limit}. Choose a smaller layout, or "
                "raise the limit."
            )
        if nodes := nodes_for(ranks, self.per_node, self.nodes):
            return nodes, ranks // nodes
        raise ConfigError(
            f"The job needs {ranks} ranks; cluster {name} runs at most {self.nodes} x {self.per_node} = "
            f"{self.nodes * self.per_node}, with as many on each node. Choose a smaller layout, or raise "
            f"clusters.{name}.nodes."
        )


class LocalCluster(Cluster):
    """This machine, under a name: to give it a price, a limit or an environment."""

    launcher: Literal["local"]
    nodes: Literal[1] = 1
    shared: Literal[True] = True


class SlurmCluster(Cluster):
    """A Slurm cluster whose commands (sbatch, scontrol, scancel, sinfo) this machine has."""

    launcher: Literal["slurm"]
    partition: Word | None = None
    """Partition of the jobs; None for the default one."""
    account: Word | None = None
    """Account to charge; None for the user's default."""
    time_limit: TimeLimit | None = None
    """Time limit of a job as Slurm writes it, such as `2-00:00:00`; None for the partition's."""
    save_ahead: int = Field(default=180, ge=10, le=65535)
    """Seconds ahead of the time limit at which a job saves and goes back into the queue."""
    sbatch: dict[Option, Word] = Field(default_factory=dict)
    """Further long options of sbatch, such as `{qos = "high"}`."""

    @model_validator(mode="after")
    def _leaves_cupola_its_options(self) -> "SlurmCluster":
        for option in OWN_OPTIONS.keys() & self.sbatch.keys():
            raise ValueError(f"sets sbatch.{option}, which is Cupola's own ({OWN_OPTIONS[option]}). Leave it out")
        return self

    @model_validator(mode="after")
    def _has_time_to_train(self) -> "SlurmCluster":
        if self.time_limit and 0 < seconds_of(self.time_limit) <= self.save_ahead:
            raise ValueError(
                f"has time_limit = {self.time_limit!r}, {seconds_of(self.time_limit)} s, of which save_ahead takes "
                f"{self.save_ahead} s. Give jobs more time, or lower save_ahead"
            )
        return self


class KubernetesCluster(Cluster):
    """A Kubernetes cluster with Kubeflow Trainer or JobSet."""

    launcher: Literal["kubernetes"]
    image: Annotated[str, like(r"[a-z0-9][A-Za-z0-9_./:@-]*", "an image, such as registry.example.org/cupola:0.3")]
    """Image of the nodes, with Cupola installed."""
    context: Text | None = None
    """Context of the kubeconfig; None for the current one, or for the pod's own service account."""
    namespace: Dns = "default"
    """Namespace of the jobs."""
    queue: Dns | None = None
    """Kueue's LocalQueue; None to start jobs without Kueue."""
    volume: Dns | None = None
    """PersistentVolumeClaim with the workspace, mounted at the workspace's path; needed if `shared`. Otherwise each pod
    has an empty workspace on its node's disk, at `CUPOLA_HOME` in `environment` or at /workspace, and
    `resources = {ephemeral-storage = "800Gi"}` asks for the room."""
    service_account: Dns | None = None
    """Service account of the pods; None for the namespace's default."""
    node_selector: dict[Label, LabelValue] = Field(default_factory=dict)
    """Labels that the nodes must have."""
    secret: Dns | None = None
    """Secret whose entries become environment variables of the pods: the store's credentials."""
    python: Python | None = None
    """Python of the image that has Cupola installed; None for the one on the image's PATH."""
    cpus: float | None = Field(default=None, gt=0)
    """Cores that a pod requests; None for no request."""
    memory: float | None = Field(default=None, gt=0)
    """GiB of memory that a pod requests and may not exceed, with what its ranks keep in /dev/shm; None for no limit."""
    resources: dict[Label, Quantity] = Field(default_factory=dict)
    """Further resources of a pod, such as `{"rdma/hca" = "1"}`."""
    user: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """User id of the pods, and group of the files that they write; None for the image's, which must not be root."""
    grace: int = Field(default=120, ge=30, le=86400)
    """Seconds from SIGTERM to SIGKILL for a pod that is deleted, preempted or evicted: the time to save."""

    @model_validator(mode="after")
    def _has_a_volume(self) -> "KubernetesCluster":
        if self.shared and self.volume is None:
            raise ValueError('names no volume. Name the claim that holds the workspace (volume = "CLAIM")')
        if self.volume and not self.shared:
            raise ValueError(f"has shared = false and volume = {self.volume!r}. Leave one of them out")
        return self

    @property
    def home_on_nodes(self) -> str:
        """The workspace of pods that share none."""
        return self.environment.get(HOME, "/workspace")


AnyCluster = Annotated[LocalCluster | SlurmCluster | KubernetesCluster, Field(discriminator="launcher")]
"""One `[clusters.NAME]` of `cupola.toml`."""
BY_LAUNCHER: dict[str, type[Cluster]] = {"local": LocalCluster, "slurm": SlurmCluster, "kubernetes": KubernetesCluster}
