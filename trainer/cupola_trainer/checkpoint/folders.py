"""Names of a job's checkpoint folders."""

from pathlib import Path


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of a step's checkpoint."""
    return checkpoints / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """Step of a checkpoint folder."""
    return int(folder.name.removeprefix("step_"))
