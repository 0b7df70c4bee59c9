"""Roll back to an earlier checkpoint when gradients are not finite or the loss spikes.

Only the weights go back: the samples between that checkpoint and the fault are skipped (PaLM, section 5.1, does so by
hand). The skipped windows are kept in rollbacks.json, so that a job killed and restarted reads the same samples: a run
is a function of its seed and these windows.
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
from cupola_trainer.checkpoint.folders import step_of
from cupola_trainer.config import FaultConfig

log = logging.getLogger(__name__)


class Monitor:
    """Detects faults after each step. Its state is saved with each checkpoint, so a resumed job detects the same."""

    def __init__(self, config: FaultConfig, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what `state()` returned; None for a new job."""
        self.config = config
        self.bad_in_a_row = int(state["bad_in_a_row"]) if state else 0
        self.losses: deque[float] = deque(state["losses"] if state else (), maxlen=config.spike_window)

    def state(self) -> dict[str, Any]:
        """The state, serializable as JSON."""
        return {"bad_in_a_row": self.bad_in_a_row, "losses": list(self.losses)}

    def judge(self, loss: float, moved: bool) -> str | None:
        """Describe what went wrong in a step; None if nothing did.

        Args:
            moved: whether the gradient was finite, so that the weights were updated.
        """
        if not moved:
            self.bad_in_a_row += 1
            limit = self.config.bad_gradients
            return f"the gradient was not finite for {limit} steps in a row" if self.bad_in_a_row == limit else None
        self.bad_in_a_row = 0
        factor = self.config.spike_factor
        if factor and len(self.losses) == self.config.spike_window:
            median = statistics.median(self.losses)
            if loss > factor * median:
                return f"the loss jumped to {loss:.4g}, more than {factor:g} times the median {median:.4g}"
        if factor:
            self.losses.append(loss)
        return None


@dataclass(frozen=True)
class Rollback:
    """One return to an earlier checkpoint."""

    from_step: int
    to_step: int
    first_sample: int
    """First of the skipped samples."""
    end_sample: int
    """One past the last of them."""
    reason: str


def remove_after(checkpoints: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for folder in checkpoints.glob("step_*"):
        if step_of(folder) > step:
            shutil.rmtree(folder)


class Rollbacks:
    """The rollbacks of a job, stored in rollbacks.json."""

    def __init__(self, path: Path, due: Callable[[int], bool] = lambda step: True) -> None:
        """`due` tells after which steps an uninterrupted job saves. Checkpoints saved on interruption are never rolled
        back to: the skipped samples would depend on them."""
        self.path, self.due = path, due
        kept = json.loads(path.read_bytes()) if path.exists() else []
        self.done = [Rollback(**entry) for entry in kept]

    def next_sample(self, sample: int) -> int:
        """`sample`, or the end of the skipped window that contains it."""
        for window in sorted(self.done, key=lambda window: window.first_sample):
            if window.first_sample <= sample < window.end_sample:
                sample = window.end_sample
        return sample

    def choose(self, checkpoints: Path) -> int | None:
        """The step to go back to, or None: that of the newest healthy checkpoint not rolled back to before, else of the
        oldest healthy one."""
        tried = {rollback.to_step for rollback in self.done}
        good = []
        for folder in sorted(checkpoints.glob("step_*"), reverse=True):
            training = read_training(folder)
            if training["faults"]["bad_in_a_row"] == 0 and self.due(int(training["step"])):
                good.append(int(training["step"]))
        return next((step for step in good if step not in tried), good[-1] if good else None)

    def add(self, rollback: Rollback) -> None:
        """Record a rollback, synced to disk."""
        self.done.append(rollback)
        write_text(self.path, json.dumps([asdict(entry) for entry in self.done], indent=1))

    def go_back(self, checkpoints: Path, from_step: int, end_sample: int, reason: str) -> Rollback:
        """Choose a checkpoint, or step 0 if none is left, remove those after it and record the rollback.
        Called on the first rank.

        Removal comes first: a job killed in between resumes at the chosen checkpoint and hits the same fault.
        """
        step = self.choose(checkpoints) or 0
        remove_after(checkpoints, step)
        first = int(read_training(checkpoints / f"step_{step:08d}")["consumed_samples"]) if step else 0
        self.add(rollback := Rollback(from_step, step, self.next_sample(first), end_sample, reason))
        log.warning("step %d: %s; rolling back to step %d and skipping samples %d to %d",
                    from_step, reason, step, rollback.first_sample, end_sample - 1)  # fmt: skip
        return rollback
