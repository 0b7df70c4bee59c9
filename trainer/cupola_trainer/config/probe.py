"""The job that examines the nodes of a cluster, and what it reports."""

from typing import Literal

from cupola_platform.strict import Strict
from cupola_trainer.config.checkpoint_jobs import JobBase

FINGERPRINTED = False  # examines machines

CODE = ("cupola_platform", "cupola_trainer")
"""Packages whose sources must be the same everywhere."""
TOKEN = "token"
"""File in the job's folder, by which a node recognizes the folder of the machine that started the job."""
REPORT = "probe.json"
"""File in the job's folder with the ProbeReport."""


class ProbeJob(JobBase):
    """Examine the nodes of a cluster: versions, speed, folder, store, clocks. Writes `output/probe.json`."""

    kind: Literal["probe"] = "probe"
    token: str
    """What `output/token` holds."""
    store_url: str | None = None
    """`s3://bucket/prefix` that every node must reach; None for a store in the workspace."""
    s3_endpoint_url: str | None = None
    s3_region: str | None = None


class NodeReport(Strict):
    """What one node has, sees and does."""

    node: str
    """Name that the cluster's engine has for it."""
    ranks: int
    code: str
    """BLAKE3 of the sources of the packages in `CODE`."""
    versions: dict[str, str]
    """Of Python, the platform, the packages and, on GPUs, CUDA, NCCL and the driver."""
    gpus: tuple[tuple[str, float], ...]
    """Name and memory (GiB) of every GPU that a rank sees."""
    matmul_flops: float
    """Median FLOP/s of a matrix multiplication: bf16 of its slowest GPU, or fp32 of a core of its slowest rank."""
    bandwidth_within: float | None
    """Bus bandwidth (bytes/s) of an all-reduce over its own ranks, while the other nodes do the same; None for one
    rank."""
    bandwidth_between: float | None
    """The better bus bandwidth (bytes/s) of all-reduces over this node and each of two neighbours; None for one
    node."""
    sees_folder: bool
    """Whether it sees the job's folder as the machine that started the job does."""
    unseen: tuple[str, ...]
    """The nodes whose file in the job's folder it does not see."""
    store_error: str | None
    """Why it does not reach the store; None if it does, or if the store is in the workspace."""
    clock_offset: float
    """Seconds that its clock is ahead of that of rank 0's node."""
    clock_bound: float
    """Largest error of `clock_offset` in seconds: half of a message's round trip."""
    disk_free: int | None
    """Free bytes in the job's folder, which is in the workspace."""
    memory_free: int
    """Bytes of memory that a process could take."""


class ProbeReport(Strict):
    """What a probe found out."""

    nodes: tuple[NodeReport, ...]
    """By name."""
    bandwidth: float | None
    """Bus bandwidth (bytes/s) of an all-reduce over all ranks; None for one rank."""
