"""When training goes wrong: gradients that are not finite and losses that jump take the weights back to an earlier
checkpoint.

The weights go back, the data do not: the samples between that checkpoint and the fault are never read again (PaLM,
section 5.1, does so by hand). Where they lie is kept in rollbacks.json, so that a job that is killed and started again
reads what it would have read: a run is a function of its seed and of these windows.
"""

import json
import logging
import shutil
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cupola_platform.durable import write_text
from cupola_trainer.checkpoint.description import read_training
from cupola_trainer.config import FaultConfig

log = logging.getLogger(__name__)


class Monitor:
    """Judges each step. Its state is kept with each checkpoint, so that a resumed job judges alike."""

    def __init__(self, config: FaultConfig, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what `state()` gave; none for a new job."""
        self.config = config
        self.bad_in_a_row = int(state["bad_in_a_row"]) if state else 0
        self.losses: deque[float] = deque(state["losses"] if state else (), maxlen=config.spike_window)

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"bad_in_a_row": self.bad_in_a_row, "losses": list(self.losses)}

    def judge(self, loss: float, moved: bool) -> str | None:
        """What is wrong after a step, in words; none when nothing is.

        Args:
            moved: whether the gradient was finite, so that the weights moved.
        """
        if not moved:
            self.bad_in_a_row += 1
            limit = self.config.bad_gradients
            return f"the gradient was not finite {limit} steps in a row" if self.bad_in_a_row == limit else None
        self.bad_in_a_row = 0
        factor = self.config.spike_factor
        if factor and len(self.losses) == self.config.spike_window:
            median = statistics.median(self.losses)
            if loss > factor * median:
                return f"the loss jumped to {loss:.4g}, over {factor:g} times the median {median:.4g}"
        if factor:
            self.losses.append(loss)
        return None


@dataclass(frozen=True)
class Rollback:
    """One return to an earlier checkpoint."""

    from_step: int
    to_step: int
    first_sample: int
    """Of the samples that are never read again."""
    end_sample: int
    """The one after the last of them."""
    reason: str


class Rollbacks:
    """The rollbacks of a job, as rollbacks.json keeps them."""

    def __init__(self, path: Path, due: Callable[[int], bool] = lambda step: True) -> None:
        """`due` says after which steps an undisturbed job saves. What an interruption saved besides is never gone back
        to, or the samples that are skipped would depend on it."""
        self.path, self.due = path, due
        kept = json.loads(path.read_bytes()) if path.exists() else []
        self.done = [Rollback(**entry) for entry in kept]

    def next_sample(self, sample: int) -> int:
        """`sample`, or where the window that it lies in ends."""
        for window in sorted(self.done, key=lambda window: window.first_sample):
            if window.first_sample <= sample < window.end_sample:
                sample = window.end_sample
        return sample

    def choose(self, checkpoints: Path) -> int | None:
        """The step to go back to: of the newest checkpoint saved in good health that was not gone back to before, else
        of the oldest in good health; none when there is none."""
        tried = {rollback.to_step for rollback in self.done}
        good = []
        for folder in sorted(checkpoints.glob("step_*"), reverse=True):
            training = read_training(folder)
            if training["faults"]["bad_in_a_row"] == 0 and self.due(int(training["step"])):
                good.append(int(training["step"]))
        return next((step for step in good if step not in tried), good[-1] if good else None)

    def add(self, rollback: Rollback) -> None:
        """Keep one, synced to disk."""
        self.done.append(rollback)
        write_text(self.path, json.dumps([asdict(entry) for entry in self.done], indent=1))

    def go_back(self, checkpoints: Path, from_step: int, end_sample: int, reason: str) -> Rollback:
        """Choose a checkpoint, or the beginning where none is left; remove those after it, and keep that.
        The first rank calls it.

        Removing comes first: a job that is killed in between resumes at the chosen checkpoint and meets the same fault.
        """
        step = self.choose(checkpoints) or 0
        for folder in checkpoints.glob("step_*"):
            if int(folder.name.removeprefix("step_")) > step:
                shutil.rmtree(folder)
        first = int(read_training(checkpoints / f"step_{step:08d}")["consumed_samples"]) if step else 0
        self.add(rollback := Rollback(from_step, step, self.next_sample(first), end_sample, reason))
        log.warning("step %d: %s; going back to step %d, samples %d to %d are skipped",
                    from_step, reason, step, rollback.first_sample, end_sample - 1)  # fmt: skip
        return rollback
