"""One device for all of a process's gloo groups.

By default each group opens a device with its own polling thread. Megatron creates 25 or more groups per layout: two
idle ranks then use 3.5% of a core each.
"""

from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d


@cache
def share_one_device(interface: str = "") -> None:
    """Make every gloo group created from now on use the same device.

    Args:
        interface: network interface to listen on; empty for the one that this machine's hostname resolves to.
    """
    new = dist.ProcessGroupGloo
    device = new.create_device(interface=interface) if interface else new.create_default_device()

    class SharedProcessGroupGloo(dist.ProcessGroupGloo):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = dist.ProcessGroupGloo._Options()
            options._timeout, options._devices = timeout, [device]
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = SharedProcessGroupGloo
