"""How a training job starts: torchrun on this machine."""

from cupola_platform.launch.local import LocalLauncher, RunningJob

__all__ = ["LocalLauncher", "RunningJob"]
