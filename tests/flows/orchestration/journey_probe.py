"""Runs Cupola and records which of its files are on the call stack when a named function is called.

`journey_probe.py OUT STATION,... cupola ARGUMENT...` runs the command up to the start of a training job;
`journey_probe.py OUT STATION,... job JOB.json` runs a job in this process. A station is FILE:FUNCTION, such as
`recipe/loading.py:load_recipe`. OUT gets a JSON object: station to files, from the entry point to the station.
"""

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = ("/cupola_platform/", "/cupola_trainer/", "/cupola_flows/")


class Stations:
    """The call stacks at the first call of each station."""

    def __init__(self, names: list[str], out: Path) -> None:
        self.out = out
        self.seen: dict[str, list[str]] = {}
        self.waiting: dict[str, list[str]] = {}
        for file, function in (name.split(":") for name in names):
            self.waiting.setdefault(function, []).append(file)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code.co_name not in self.waiting:  # runs at every call in the process
            return
        files = self.waiting[function := frame.f_code.co_name]
        for file in [each for each in files if frame.f_code.co_filename.endswith(f"/{each}")]:
            files.remove(file)
            self.seen[f"{file}:{function}"] = _ours(frame)
            self.out.write_text(json.dumps(self.seen))


def _ours(frame: FrameType | None) -> list[str]:
    files: list[str] = []
    while frame is not None:
        path = frame.f_code.co_filename
        package = next((package for package in PACKAGES if package in path), None)
        if package:
            files.append(package.strip("/") + "/" + path.rpartition(package)[2])
        frame = frame.f_back
    return list(dict.fromkeys(reversed(files)))


def main(out: Path, stations: list[str], what: str, *arguments: str) -> None:
    sys.setprofile(Stations(stations, out))
    if what == "job":
        from cupola_trainer.__main__ import main as job

        sys.exit(job(Path(arguments[0])))
    from cupola_flows.cli import main as cupola
    from cupola_platform.launch.local import LocalJob

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    LocalJob.__init__ = interrupted  # type: ignore[method-assign, assignment]  # the job is probed separately
    sys.argv = ["cupola", *arguments]
    cupola()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), *sys.argv[3:])
