"""Where the ranks of a job meet, and which network they listen on.

On one machine nothing listens on another address than loopback: the ranks meet in the launcher's file, and gloo and
NCCL open their ports on the loopback interface. Over several machines a cluster's launcher says where (MASTER_ADDR),
and the interfaces are the operator's to name: see "Over several machines" in docs/training.md.
"""

import os
import socket

import psutil
import torch.distributed as dist

from cupola_platform.launch.rendezvous import STORE


def stay_on_this_machine() -> None:
    """Have gloo and NCCL listen on the loopback interface only, whatever the environment names for other jobs."""
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.family == socket.AF_INET and address.address == "127.0.0.1" for address in addresses)
    )
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback


def store(world_size: int) -> dist.Store:
    """Where the ranks find each other: a file, a cluster's server, or this process's memory where it is alone."""
    if STORE in os.environ:
        return dist.FileStore(os.environ[STORE], world_size)
    if "MASTER_ADDR" in os.environ:
        joined: dist.Store = next(dist.rendezvous("env://"))[0]
        return joined
    return dist.HashStore()
