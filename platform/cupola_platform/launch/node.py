"""What runs on each node of a cluster's job: torchrun, on the network that the cluster names.

`python -m cupola_platform.launch.node --address --interface=ib0` prints this node's address there;
`python -m cupola_platform.launch.node --nodes=2 --ranks=8 --interface=ib0 -- -m MODULE JOB.json` becomes torchrun.
"""

import argparse
import os
import socket
import sys

import psutil

PORTS = (20_000, 40_000)
"""Of the rendezvous, by the job's number: below what systems hand out to clients."""


def main(arguments: list[str]) -> None:
    ours, _, theirs = arguments, "", []
    if "--" in arguments:
        at = arguments.index("--")
        ours, theirs = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(prog="cupola_platform.launch.node")
    parser.add_argument("--address", action="store_true")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--interface", default="")
    given = parser.parse_args(ours)
    interface = given.interface or default_interface()
    if given.address:
        print(address_of(interface))
        return
    command = torchrun(given.nodes, given.ranks, address_of(interface)) + theirs
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    os.execv(command[0], command)


def torchrun(nodes: int, ranks: int, address: str) -> list[str]:
    """torchrun for this node of a Slurm job: the first node holds the rendezvous."""
    number, node = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_NODEID"])
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    first, last = PORTS
    port = first + (number * 7 + restart) % (last - first)
    return [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={ranks}",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={os.environ['CUPOLA_HEAD']}:{port}", f"--rdzv-id={number}.{restart}",
        f"--rdzv-conf=is_host={str(node == 0).lower()}", f"--local-addr={address}", f"--log-dir={os.devnull}",
    ]  # fmt: skip


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
