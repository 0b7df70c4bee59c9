"""Of the stand-in for a Kubernetes cluster: a pod's container, which is a process of this machine, and the conditions of
objects."""

import re
import shlex
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

Object = dict[str, Any]


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes replaces it; `$$` stands for a dollar sign."""
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda match: "$" if match[0] == "$$" else environment.get(match[1], match[0]),
        text,
    )


def now() -> str:
    """The time as kubelets stamp log lines, in nanoseconds."""
    nanoseconds = time.time_ns()
    seconds = datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{seconds}.{nanoseconds % 10**9:09d}Z"


def set_condition(thing: Object, kind: str, status: str = "True", **more: str) -> None:
    conditions = thing.setdefault("status", {}).setdefault("conditions", [])
    conditions[:] = [each for each in conditions if each["type"] != kind]
    conditions.append({"type": kind, "status": status, "lastTransitionTime": now()[:19] + "Z", "reason": kind, **more})


def has(thing: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in thing.get("status", {}).get("conditions", []))


def apart(pod: Object, hidden: Sequence[str]) -> list[str]:
    """The start of a command that runs in folders of its own, where the pod mounts an `emptyDir`. These and what is
    hidden are empty file systems, in a mount namespace, and vanish with the pod's processes."""
    given = pod["spec"]["containers"][0]
    empty = {volume["name"] for volume in pod["spec"]["volumes"] if volume.get("emptyDir") == {}}
    folders = [mount["mountPath"] for mount in given["volumeMounts"] if mount["name"] in empty]
    if not folders:
        return []
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
    mounts = [f"mount -t tmpfs tmpfs {shlex.quote(folder)}" for folder in [*hidden, *folders]]
    script = " && ".join([*mounts, f"cd {shlex.quote(given['workingDir'])}", 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


class Container:
    """A pod's one container: a process, and what it printed."""

    def __init__(
        self, pod: Object, environment: Mapping[str, str], replace: Mapping[str, str], hidden: Sequence[str]
    ) -> None:  # fmt: skip
        given = pod["spec"]["containers"][0]
        command = [expand(word, environment) for word in given["command"]]
        for name, other in replace.items():
            command = [word.replace(name, other) for word in command]
        self.lines: list[tuple[str, bytes]] = []
        self.killed_for: str | None = None
        self.process = subprocess.Popen(
            [*apart(pod, hidden), *command], env=dict(environment), cwd=given["workingDir"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((now(), line.rstrip(b"\n")))

    def ended(self) -> bool:
        return self.process.poll() is not None and not self.reader.is_alive()

    def kill(self, why: str | None = None) -> None:
        """SIGKILL to everything that the container runs."""
        self.killed_for = self.killed_for or why
        with suppress(psutil.NoSuchProcess):
            agent = psutil.Process(self.process.pid)
            for process in [agent, *agent.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
