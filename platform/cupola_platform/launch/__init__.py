"""How a training job starts: torchrun on this machine."""

from cupola_platform.launch.local import LocalLauncher, RunningJob
from cupola_platform.launch.rendezvous import torchrun

__all__ = ["LocalLauncher", "RunningJob", "torchrun"]
