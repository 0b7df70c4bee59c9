"""Slurm's commands: what they are asked on a login node and on the nodes of a job, and what their answers mean."""

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence

from cupola_platform.errors import ConfigError, ServiceError, StageFailedError
from cupola_platform.nearest import did_you_mean
from cupola_platform.security.credential import without_credentials

ASK_EVERY = 2.0
"""Seconds between two questions to Slurm's controller about one job."""
ANSWER_WITHIN = 12.0
"""Seconds for the answer about nodes and queue. Slurm's commands themselves give up on a dead controller after 10."""
COMMAND_WITHIN = 120.0
"""Seconds for any other command: a busy controller makes sbatch wait."""
PATIENCE = 300.0
"""Seconds for which a controller that does not answer is asked again."""
AWAY = re.compile("no answer within|contact slurm controller|timed out|Zero Bytes")
"""In what a command says when nothing answers it."""
OUT_OF_USE = {"down", "fail", "error", "powering_down", "powered_down", "unknown", "no_respond"}


def known_of(job: str) -> dict[str, str]:
    """What Slurm knows about a job; empty if it knows none by that number, or does not answer."""
    return fields(_run(["scontrol", "--oneliner", "show", "job", job]).stdout)


def fields(line: str) -> dict[str, str]:
    """The `Name=value` fields of a line of scontrol."""
    return dict(word.partition("=")[::2] for word in line.split() if "=" in word)


def lost(nodes: Sequence[str]) -> list[str]:
    """Those of some nodes that are known to be out of use; none while the controller is away."""
    states = state_of(nodes)
    return [name for name in nodes if name in states and is_out_of_use(states[name])]


def state_of(nodes: Sequence[str]) -> dict[str, str]:
    """Slurm's word for the state of nodes, by name; empty if it does not answer."""
    lines = _run(["sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T"]).stdout.splitlines()
    return {name: state.strip() for name, _, state in (line.partition(" ") for line in lines)}


def is_out_of_use(state: str) -> bool:
    """Whether a node in this state cannot run a step now. A draining one still can."""
    return state.strip().endswith("*") or state.strip().rstrip("*~#!%$@^-+").lower() in OUT_OF_USE


def nodes_of(partitions: str, cluster: str = "") -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The names of partitions (given with commas between; the default one if empty), and the state of each of their
    nodes with its reason. Raises ConfigError for one that does not exist, which sinfo does not mind."""
    lines = answer(["sinfo", "--all", "--noheader", "--Node", "--format=%P|%N|%T|%E"], cluster).splitlines()
    nodes: dict[str, dict[str, tuple[str, str]]] = {}
    default: list[str] = []
    for marked, node, state, why in (line.split("|", 3) for line in lines):
        name = marked.removesuffix("*")  # of the default partition
        default = [name] if name != marked else default
        nodes.setdefault(name, {})[node] = state, why
    names = partitions.split(",") if partitions else default
    if not names:
        raise ConfigError(f"Cluster {cluster}: Slurm has no default partition. Set clusters.{cluster}.partition.")
    for name in names:
        if name not in nodes:
            raise ConfigError(
                f"Cluster {cluster}: Slurm has no partition {name!r}.{did_you_mean(name, nodes)} Correct "
                f"clusters.{cluster}.partition."
            )
    return names, {node: state for name in names for node, state in nodes[name].items()}


def up(nodes: Mapping[str, tuple[str, str]]) -> int:
    """How many nodes could take a new job, now or once others end."""
    return sum(takes_jobs(state) for state, _ in nodes.values())


def ask(number: str) -> dict[str, str]:
    """What Slurm knows about a job; empty for one that it does not know. Asks again while no controller answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = _run(["scontrol", "--oneliner", "show", "job", number])
        if done.returncode == 0:
            return fields(done.stdout)
        if "Invalid job id" in done.stderr:
            return {}
        if time.monotonic() > deadline:
            raise StageFailedError(f"Slurm's controller does not answer: {_line(done.stderr)} The job goes on.")
        time.sleep(ASK_EVERY)


def number_of(name: str, cluster: str) -> str | None:
    """The number of the job in the queue that has this name; None if there is none. Raises ServiceError."""
    numbers = answer(["squeue", "--all", "--noheader", f"--name={name}", "--format=%i"], cluster).split()
    return numbers[-1] if numbers else None


def takes_jobs(state: str) -> bool:
    """Whether a node in one of sinfo's states runs a job now or could start one."""
    return not is_out_of_use(state) and not state.startswith(("drain", "maint", "reboot"))


def in_words(state: str, why: str) -> str:
    """sinfo marks a node that does not answer with a star, and gives `none` for no reason."""
    words = f"{state[:-1]}, does not answer" if state.endswith("*") else state
    return words if why == "none" else f"{words}: {why}"


def answer(words: Sequence[str], cluster: str) -> str:
    done = _run(words, timeout=ANSWER_WITHIN)
    if done.returncode:
        raise ServiceError(f"Cluster {cluster}: {words[0]} does not answer: {_line(done.stderr)}")
    return done.stdout


def command(words: Sequence[str], cluster: str = "", *, tolerant: bool = False) -> str:
    """A command's output, unless `tolerant` whatever happened: the job may have ended.

    Raises:
        ConfigError: Slurm refuses, with its own reason.
        ServiceError: Slurm does not answer.
    """
    done = _run(words)
    if done.returncode and not tolerant:
        where = f"Cluster {cluster}: " if cluster else ""
        if AWAY.search(done.stderr):
            raise ServiceError(f"{where}{words[0]} does not answer: {_line(done.stderr)} Try again later.")
        more = f" Correct clusters.{cluster} in cupola.toml." if cluster else ""
        raise ConfigError(f"{where}{words[0]} refused: {_line(done.stderr)}{more}")
    return done.stdout


def _run(words: Sequence[str], timeout: float = COMMAND_WITHIN) -> "subprocess.CompletedProcess[str]":
    """Run a command. One that takes too long fails as one that Slurm does not answer."""
    environment = {**without_credentials(os.environ), "LC_ALL": "C"}
    try:
        return subprocess.run(words, check=False, capture_output=True, text=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer within {timeout:.0f} s")
    except OSError as error:
        raise ConfigError(
            f"{words[0]} cannot be run: {error.strerror}. Put Slurm's client on PATH, or use a login node."
        ) from None


def _line(text: str) -> str:
    """Everything that a command complained about, in one line."""
    lines = [line.partition("error: ")[2] or line for line in text.strip().splitlines() if not line.startswith("Try ")]
    return f"{'; '.join(dict.fromkeys(lines)).rstrip('.')}." if lines else "no reason given."
