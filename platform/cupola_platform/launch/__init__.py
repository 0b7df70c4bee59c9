"""How a job starts: a launcher for each kind of place, chosen in `launcher.make_launcher`."""

from cupola_platform.launch.launcher import Launcher, RunningJob, make_launcher, that_fit
from cupola_platform.launch.rendezvous import torchrun

FINGERPRINTED = False  # starts jobs

__all__ = ["Launcher", "RunningJob", "make_launcher", "that_fit", "torchrun"]
