"""Run Cupola and write down which of our files are on the call stack at every station of a reader's journey from a
command to the gradient of its loss.

`journey_probe.py OUT command ARGUMENT...` runs `cupola` up to the start of a training job, and ends there;
`journey_probe.py OUT job JOB.json` runs a job in this process. OUT gets a JSON object: station to files, from the
entry point to the function of the station.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

JOURNEYS = {
    "command": {
        "the recipe is read": "recipe/loading.py:load_recipe",
        "its stages are sorted": "recipe/schema.py:order",
        "it is validated": "recipe/validation.py:validate",
        "earlier results are recognised": "runs/fingerprint.py:fingerprint",
        "the stage runs": "stages/posttraining/sft.py:run",
        "its job starts": "launch/local.py:start",
    },
    "job": {
        "the job is read": "config/jobs.py:read_job",
        "the objective is found": "training/objective_table.py:build_objective",
        "a conversation becomes tokens and a loss mask": "data/chat.py:encode_conversation",
        "the model is built": "cupola_trainer/models/__init__.py:build",
        "the optimizer is built": "cupola_trainer/optim/__init__.py:build",
        "a row is sampled": "objectives/sft.py:sample",
        "rows become a batch": "objectives/sft.py:collate",
        "the model gives token losses": "models/output.py:forward",
        "the loss is computed": "objectives/sft.py:loss",
        "the gradient": "torch/autograd/__init__.py:backward",
    },
}
"""What a reader looks for, and the function that does it: FILE:FUNCTION."""
PACKAGES = ("/cupola_platform/", "/cupola_trainer/", "/cupola_flows/")


class Stations:
    """The call stacks at the first call of each station."""

    def __init__(self, stations: Mapping[str, str], out: Path) -> None:
        self.out = out
        self.seen: dict[str, list[str]] = {}
        self.waiting: dict[str, dict[str, str]] = {}
        for station, place in stations.items():
            file, function = place.split(":")
            self.waiting.setdefault(function, {})[file] = station

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code.co_name not in self.waiting:  # runs at every call in the process
            return
        files = self.waiting[frame.f_code.co_name]
        for file in [each for each in files if frame.f_code.co_filename.endswith(f"/{each}")]:
            self.seen[files.pop(file)] = _ours(frame)
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


def main(out: Path, journey: str, *arguments: str) -> None:
    sys.setprofile(Stations(JOURNEYS[journey], out))
    if journey == "job":
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
    main(Path(sys.argv[1]), *sys.argv[2:])
