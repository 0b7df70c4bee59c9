"""How the ranks of a job rendezvous, and which network interface they listen on.

On one machine everything listens on loopback only: the ranks rendezvous through the launcher's file, and gloo and NCCL
open their ports on the loopback interface. On several machines the cluster's launcher sets MASTER_ADDR, and the
operator chooses the interfaces: see "Over several machines" in docs/training.md.
"""

import os
import socket

import psutil
import torch.distributed as dist

from cupola_platform.launch.rendezvous import STORE


def stay_on_this_machine() -> None:
    """Make gloo and NCCL listen on loopback only, overriding the environment."""
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.family == socket.AF_INET and address.address == "127.0.0.1" for address in addresses)
    )
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback


def store(world_size: int) -> dist.Store:
    """The rendezvous store: a file, the cluster's server, or this process's memory if it is alone."""
    if STORE in os.environ:
        return dist.FileStore(os.environ[STORE], world_size)
    if "MASTER_ADDR" in os.environ:
        joined: dist.Store = next(dist.rendezvous("env://"))[0]
        return joined
    return dist.HashStore()
