"""torchrun for the ranks of one machine, which rendezvous through files so that no port is open.

torch's network stores listen on every address without a credential and unpickle their contents, so anyone who reaches
the port can run code. A file is accessible to its owner only.
"""

import os
import sys
from pathlib import Path

STORE = "CUPOLA_STORE"
"""Environment variable that names the ranks' rendezvous file."""

HEARTBEAT_SECONDS = 3600
"""Seconds between the keep-alive entries that torchrun's agent writes for agents on other machines. There are none."""


def torchrun(processes: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts ranks on this machine, up to the program they run, and the environment it needs.

    Args:
        folder: an empty folder for this start only, accessible to nobody else.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={folder / 'agent'}", "--local-addr=127.0.0.1",
        f"--rdzv-conf=store_type=file,keep_alive_interval={HEARTBEAT_SECONDS}",
        f"--log-dir={os.devnull}",  # otherwise every job leaves empty folders in /tmp
    ]  # fmt: skip
    return command, {STORE: str(folder / "ranks"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
