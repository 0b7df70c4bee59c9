"""torchrun for the ranks of one machine, which meet in files: no port is open for it.

The stores of torch that listen do so on every address and ask for no credential, and what they hold is unpickled:
whoever reaches the port runs code. A file is for its owner alone.
"""

import os
import sys
from pathlib import Path

STORE = "CUPOLA_STORE"
"""The variable that names the file in which the ranks meet."""

HEARTBEAT_SECONDS = 3600
"""Between the notes that torchrun's agent adds to its file for agents on other machines, of which there are none."""


def torchrun(processes: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts ranks on this machine, what they run excepted, and the variables that it needs.

    Args:
        folder: an empty one that nobody else can enter, of this start alone.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={folder / 'agent'}", "--local-addr=127.0.0.1",
        f"--rdzv-conf=store_type=file,keep_alive_interval={HEARTBEAT_SECONDS}",
        f"--log-dir={os.devnull}",  # or it leaves empty folders in /tmp for every job
    ]  # fmt: skip
    return command, {STORE: str(folder / "ranks"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
