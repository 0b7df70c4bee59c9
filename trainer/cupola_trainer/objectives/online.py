"""What an objective adds that learns from the model's own responses: hooks of the training loop, and state."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from cupola_trainer.checkpoint import Progress
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.base import Objective
from cupola_trainer.optim import Trainee


class OnlineObjective(Objective):
    """An objective that knows the model in training: its samples depend on the weights,
    and it may train other models too.

    State is kept in one way. `save` is called before each checkpoint of the model: it writes what is large into the
    job's folder, named by the step, and returns what is small, which that checkpoint's training.json keeps as
    "objective_state". `resume` is called with the progress that was loaded, and reads both back.
    """

    @abstractmethod
    def attach(self, trainee: Trainee, model: ModelConfig) -> None:
        """Called once a start with the model in training, before `prepare`."""

    @abstractmethod
    def gather(self, sample: int) -> dict[str, float]:
        """Make what the step that begins with this sample reads, unless it is there. Returns what to report of it."""

    def train_others(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Train the models beside the policy on the step's micro-batches. Returns what to report."""
        return {}

    def update(self, trainee: Trainee) -> tuple[float, bool]:
        """Let the model take its step: `Trainee.update`."""
        return trainee.update()

    @abstractmethod
    def save(self, progress: Progress) -> dict[str, Any]:
        """A checkpoint of this moment is about to be written. Returns plain JSON for it. Every rank calls it."""

    @abstractmethod
    def resume(self, progress: Progress) -> None:
        """The job is at `progress`: at a start, from step 0 or a checkpoint, and after a rollback. Every rank calls it.

        Raises:
            CorruptArtifactError: what was saved with that checkpoint is gone or torn.
        """

    def measure(self) -> dict[str, float]:
        """Means to report as held-out ones, besides those of held-out samples."""
        return {}
