"""What runs on each node of a cluster's job: torchrun, on the network that the cluster names.

`python -m cupola_platform.launch.node --address --interface=ib0` prints this node's address there;
`python -m cupola_platform.launch.node --nodes=2 --ranks=8 --head=ADDRESS:PORT --id=ID --node=SLURM_NODEID -- -m MODULE
JOB.json` becomes torchrun. It stays where it has to pass on signals, and where nodes share no folder: there it fetches
what the ranks read and sends what they write.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from cupola_platform.launch.local import cores
from cupola_platform.launch.unshared.launcher import is_ranks
from cupola_platform.unshared.contract import read_contract

NODE = "CUPOLA_NODE"
"""Environment variable with the name that the cluster's engine has for this node."""


def main(arguments: list[str]) -> None:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    ours, theirs = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(prog="cupola_platform.launch.node")
    parser.add_argument("--address", action="store_true", help="Print this node's address and end.")
    parser.add_argument("--interface", default="", help="Network interface; the one with the default route if empty.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1, help="Ranks of each node.")
    parser.add_argument("--head", default="", help="Address and port of the rendezvous, on the first node.")
    parser.add_argument("--id", default="", help="Which start of which job this is.")
    parser.add_argument("--node", default="", help="Environment variable with this node's number, from 0.")
    parser.add_argument("--patience", type=int, default=600, help="Seconds to wait for the other nodes.")
    parser.add_argument(
        "--forward-signals", action="store_true",
        help="Pass SIGTERM on to the ranks: for engines that send it to the first process only, unlike Slurm.",
    )  # fmt: skip
    given = parser.parse_args(ours)
    interface = given.interface or default_interface()
    if given.address:
        print(address_of(interface))
        return
    first = os.environ.get(given.node, "0") == "0"
    if not first:
        wait_for(given.head, given.patience)
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={given.nodes}", f"--nproc-per-node={given.ranks}",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={given.head}", f"--rdzv-id={given.id}",
        f"--rdzv-conf=is_host={str(first).lower()},join_timeout={given.patience}",
        f"--local-addr={address_of(interface)}", f"--log-dir={os.devnull}", *theirs,
    ]  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // given.ranks)))
    os.environ[NODE] = node_name()
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    begin = partial(start, forwards=given.forward_signals)
    if contract := read_contract():
        from cupola_platform.unshared.agent import Agent

        agent = Agent(contract, Path(command.pop()).name, is_ranks)
        sys.exit(agent.run(command, begin))
    if not given.forward_signals:
        os.execv(command[0], command)
    status = begin(command).wait()
    sys.exit(128 - status if status < 0 else status)


def start(command: Sequence[str], *, forwards: bool) -> "subprocess.Popen[bytes]":
    """Start torchrun. A SIGTERM to this process no longer ends it; with `forwards`, the first one reaches the ranks."""
    torchrun = subprocess.Popen(command)
    once = iter([partial(let_save, torchrun.pid)] if forwards else [])
    signal.signal(signal.SIGTERM, lambda *_: next(once, lambda: None)())
    return torchrun


def let_save(torchrun: int) -> None:
    """Ask the ranks to save and exit; torchrun itself only if it has none yet, because it kills ranks that take more
    than 30 seconds, and hangs at a second SIGTERM."""
    with suppress(psutil.NoSuchProcess):
        agent = psutil.Process(torchrun)
        for process in agent.children() or [agent]:
            process.terminate()


def wait_for(head: str, seconds: float) -> None:
    """Wait until the first node listens. It may have to pull its image first, and have no name until then."""
    host, _, port = head.rpartition(":")
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=10):
                return
        except OSError as error:
            if time.monotonic() > until:
                sys.exit(f"{socket.gethostname()}: the first node does not answer at {head}: {error}.")
            time.sleep(1)


def node_name() -> str:
    """This node's name: the engine's, or else the host's."""
    return os.environ.get(NODE) or os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def default_interface() -> str:
    """The interface by which this machine would reach others; loopback on a machine without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: nothing is sent
            own = probe.getsockname()[0]
        except OSError:
            own = "127.0.0.1"
    return next(name for name in psutil.net_if_addrs() if own in _addresses(name))


def address_of(interface: str) -> str:
    """The IPv4 address of an interface. Exits with a line for one that has none."""
    addresses = _addresses(interface)
    if not addresses:
        sys.exit(f"{socket.gethostname()} has no IPv4 address on {interface!r}. Correct the cluster's `interface`.")
    return addresses[0]


def _addresses(interface: str) -> list[str]:
    known = psutil.net_if_addrs().get(interface, [])
    return [address.address for address in known if address.family == socket.AF_INET]


if __name__ == "__main__":
    main(sys.argv[1:])
