"""The interface of objectives that learn from the model's own responses: training-loop hooks and state."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from cupola_trainer.checkpoint import Progress
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.base import Objective
from cupola_trainer.optim import Trainee


class OnlineObjective(Objective):
    """An objective with access to the model in training: its samples depend on the weights, and it may train other
    models too.

    `save` is called before each checkpoint. It writes large state into the job's folder, named by step, and returns
    small state, which goes into the checkpoint's training.json as "objective_state". `resume` is called with the loaded
    progress and restores both.
    """

    @abstractmethod
    def attach(self, trainee: Trainee, model: ModelConfig) -> None:
        """Called once per start with the model in training, before `prepare`."""

    @abstractmethod
    def gather(self, sample: int) -> dict[str, float]:
        """Generate the samples of the step that begins with `sample`, if missing. Returns metrics to report."""

    def train_others(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Train models other than the policy on the step's micro-batches. Returns metrics to report."""
        return {}

    def update(self, trainee: Trainee) -> tuple[float, bool]:
        """Update the model's weights: `Trainee.update`."""
        return trainee.update()

    @abstractmethod
    def save(self, progress: Progress) -> dict[str, Any]:
        """Called on every rank before a checkpoint is written. Returns state for it, serializable as JSON."""

    @abstractmethod
    def resume(self, progress: Progress) -> None:
        """Restore the state at `progress`, at a start (step 0 or a checkpoint) and after a rollback. Called on every
        rank.

        Raises:
            CorruptArtifactError: the state saved with that checkpoint is missing or corrupt.
        """

    def measure(self) -> dict[str, float]:
        """Additional held-out metrics, besides the means over held-out samples."""
        return {}
