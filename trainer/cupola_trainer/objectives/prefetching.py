"""Reading a step's batches while the step before is computed."""

from concurrent.futures import Future, ThreadPoolExecutor

from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.batches import Samples, read_batches
from cupola_trainer.objectives.online import OnlineObjective
from cupola_trainer.runtime.copies import SideStream

FINGERPRINTED = False  # says when batches are read, not what is in them


class Prefetcher:
    """Reads micro-batches in a thread, one step ahead, and copies them to the device on a stream of their own.

    What was read ahead is used only if exactly these samples are asked for, so it changes no step. Samples of an
    `OnlineObjective` depend on the weights: they are read when they are asked for.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._thread = None if isinstance(objective, OnlineObjective) else ThreadPoolExecutor(1, "batches")
        self._stream = SideStream()
        self._ahead: tuple[Samples, Future[list[Batch]]] | None = None

    def read(self, samples: Samples) -> list[Batch]:
        """The micro-batches with these samples. Raises what the objective raised while it read them."""
        if self._thread is None:
            return read_batches(self.objective, samples)
        if self._ahead is None or self._ahead[0] != samples:
            self.begin(samples)
        assert self._ahead
        (_, future), self._ahead = self._ahead, None
        batches = future.result()
        self._stream.hand_over(tensor for batch in batches for tensor in batch.values())
        return batches

    def begin(self, samples: Samples) -> None:
        """Begin to read micro-batches that will be asked for next. Returns at once."""
        if self._thread is not None:
            self._ahead = samples, self._thread.submit(self._read, samples)

    def close(self) -> None:
        """End the thread, once it has finished what it reads."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _read(self, samples: Samples) -> list[Batch]:
        with self._stream.copying():
            self.objective.expect([index for micro in samples for index in micro])
            return read_batches(self.objective, samples)
