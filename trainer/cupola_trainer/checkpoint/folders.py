"""Names of a job's checkpoint folders."""

from pathlib import Path


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step whose checkpoint lies there."""
    return int(folder.name.removeprefix("step_"))
