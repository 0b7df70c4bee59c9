"""Check on one GPU, in ten minutes, what cannot be checked without one.

    python benchmarks/gpu_check run [--small] [--out FOLDER] [--only SECTION,...] [--minutes 10] [--wheels FOLDER]
    python benchmarks/gpu_check wheels [--to .wheels] [--python 3.12]     # for a machine without a network
    python benchmarks/gpu_check reference                                 # numbers that `run` compares with, on a CPU

`run` writes gpu-check.json and gpu-check.md and prints the latter. Exit status: 0 if no row failed, 1 if one did, 2 if
it cannot start: no GPU, wheels of another Python.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

STARTED = time.time()
HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # of benchmarks, where `gpu_check` and the scripts that it shares are


def main() -> int:
    options = _options()
    from gpu_check.wheels import WheelError

    try:
        status: int = options.command(options)
    except WheelError as error:
        return _refuse(str(error))
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="check, and write the result")
    run.add_argument("--small", action="store_true", help="tiny models, on a CPU too")
    run.add_argument("--out", type=Path, default=Path(), help="folder of the result; this one by default")
    run.add_argument("--only", default="", help="sections to run, separated by commas; all by default")
    run.add_argument("--minutes", type=float, default=10.0, help="the whole check ends within them")
    run.add_argument("--wheels", type=Path, help="folder that `wheels` made: install it into an environment first")
    run.add_argument("--reference", type=Path, default=HERE / "reference.json", help="numbers to compare with")
    run.add_argument("--until", type=float, help=argparse.SUPPRESS)
    run.set_defaults(command=_run)
    wheels = commands.add_parser("wheels", help="collect what a machine with torch alone lacks, 64 MiB at most")
    wheels.add_argument("--to", type=Path, default=Path(".wheels"))
    wheels.add_argument("--python", default="3.12", help="the other machine's Python")
    wheels.set_defaults(command=_wheels)
    reference = commands.add_parser("reference", help="compute the reference on this CPU")
    reference.add_argument("--reference", type=Path, default=HERE / "reference.json", help="file to write")
    reference.set_defaults(command=_reference)
    sections = commands.add_parser("sections")  # what `run` starts
    sections.add_argument("rows", type=Path)
    sections.add_argument("until", type=float)
    sections.add_argument("names", nargs="+")
    sections.add_argument("--small", action="store_true")
    sections.add_argument("--reference", type=Path)
    sections.set_defaults(command=_sections)
    peer = commands.add_parser("peer")  # what the section `speed` starts
    peer.add_argument("model")
    peer.add_argument("peer")
    peer.add_argument("folder", type=Path)
    peer.add_argument("lengths", type=int, nargs="+")
    peer.add_argument("--small", action="store_true")
    peer.set_defaults(command=_peer)
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    from gpu_check import driver, page, wheels

    names = [name for name in options.only.split(",") if name] or list(driver.SECONDS)
    if unknown := sorted(set(names) - set(driver.SECONDS)):
        return _refuse(f"--only={','.join(unknown)}: the sections are {', '.join(driver.SECONDS)}.")
    if not options.small and not _has_gpu():
        return _refuse(
            "torch sees no GPU here, and this is a check of one. Run it where there is a GPU, or the same with tiny models "
            "on a CPU: --small"
        )
    if options.wheels:
        return wheels.run_installed(options.wheels, _inner(options))
    if (missing := next(filter(_is_missing, ("cupola_trainer", "cupola_platform", "megatron")), None)) is not None:
        return _refuse(f"{missing} is not installed. Run `make gpu-check`, or without a network give --wheels.")
    from gpu_check import device

    rows, seconds = driver.check(names, _form(options), _end(options))
    path = page.write(options.out, rows, seconds, device.name(), options.small)
    print(path.with_suffix(".md").read_text())
    failed = [row for row in rows if row.status == "failed"]
    for row in failed:
        print(f"failed: {row.section}: {row.name}: {row.reason}", file=sys.stderr)
    return 1 if failed else 0


def _inner(options: argparse.Namespace) -> list[str]:
    """The arguments of the same run in the environment with the wheels, with the time that is left."""
    return ["run", "--out", str(options.out), "--only", options.only, "--until", str(_end(options)), *_form(options)]


def _end(options: argparse.Namespace) -> float:
    """When the check must have ended, in the clock of `time.time`."""
    until: float | None = options.until
    return until or STARTED + 60 * float(options.minutes)


def _form(options: argparse.Namespace) -> list[str]:
    """The arguments that every process of a check takes."""
    return ["--reference", str(options.reference.resolve()), *(["--small"] if options.small else [])]


def _refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


def _has_gpu() -> bool:
    if _is_missing("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _is_missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def _wheels(options: argparse.Namespace) -> int:
    from gpu_check import wheels

    wheels.collect(options.to, options.python)
    return 0


def _reference(options: argparse.Namespace) -> int:
    from gpu_check import parity

    parity.write_reference(options.reference)
    print(options.reference)
    return 0


def _sections(options: argparse.Namespace) -> int:
    from gpu_check import driver

    return driver.run_sections(options.names, options.rows, options.small, options.reference, options.until)


def _peer(options: argparse.Namespace) -> int:
    from gpu_check import speed

    speed.peer_process(options.model, options.peer, options.folder, options.lengths, options.small)
    return 0


if __name__ == "__main__":
    sys.exit(main())
