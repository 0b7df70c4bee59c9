"""One device for all of a process's gloo groups.

Left to itself each group opens a device with a polling thread of its own. Megatron makes 25 groups and more for a
layout: two ranks that do nothing then cost 3.5% of a core each.
"""

from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d


@cache
def share_one_device(interface: str = "") -> None:
    """Let every gloo group made from here on run on the same device.

    Args:
        interface: the network that it listens on; empty for the one that this machine's name stands for.
    """
    new = dist.ProcessGroupGloo
    device = new.create_device(interface=interface) if interface else new.create_default_device()

    class SharedProcessGroupGloo(dist.ProcessGroupGloo):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = dist.ProcessGroupGloo._Options()
            options._timeout, options._devices = timeout, [device]
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = SharedProcessGroupGloo
