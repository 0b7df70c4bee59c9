"""An objective whose samples are the model's own answers: gathered when a step needs them, then learnt from for some steps.

Samples are numbered as any other objective's. Those of rollout r are the next `samples` ones, `epochs` times its rows, each
epoch in an order of its own. A rollout is made when the first of its samples is due, with the weights of that moment, and
kept in the job's folder, so that a job that is killed goes on with the same answers.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cupola_platform.errors import ConfigError, CorruptArtifactError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import Progress, read_training
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.config.reinforcement import GrpoData, OnlineDpoData, PpoData
from cupola_trainer.data.order import order
from cupola_trainer.objectives.objective import Forward, Objective
from cupola_trainer.optim import Trainee
from cupola_trainer.reinforcement.gathering import Gatherer
from cupola_trainer.reinforcement.queries import Order, Query, read_queries, spread
from cupola_trainer.reinforcement.rewards import check_rewards
from cupola_trainer.reinforcement.rollouts import Rollout

log = logging.getLogger(__name__)


class Learning(Objective):
    """What GRPO, PPO and online DPO have in common."""

    keeps_reference: bool = True
    """Whether log-probabilities under the initial weights are wanted."""

    def __init__(self, job: TrainJob, data: GrpoData | PpoData | OnlineDpoData, tokenizer: Any) -> None:
        """
        Raises:
            ConfigError: no question can be used, or the sizes do not fit each other.
        """
        self.job, self.data, self.tokenizer = job, data, tokenizer
        self.config, self.length = data.rollout, job.batch.sequence_length
        check_rewards(data.rewards)
        self.config.check(job.batch, pairs=data.objective == "online_dpo")
        longest = self.length - self.config.max_new_tokens
        self.queries, self.drops = self._read("train", longest)
        if not self.queries:
            raise ConfigError(
                f"{data.conversations} has no question that leaves max_new_tokens={self.config.max_new_tokens} of "
                f"sequence_length={self.length}; dropped: {dict(self.drops)}. Give longer sequences, or other questions."
            )
        if self.drops:
            log.info("questions dropped: %s", dict(self.drops))
        self.asked: list[Query] = spread(self._read("heldout", longest)[0], self.config.heldout_queries)
        self.order = Order(len(self.queries), job.seed)
        self.folder = job.output / "rollouts"
        self.current: Rollout | None = None
        self.number = -1
        """Of the current rollout."""

    # sizes

    @property
    def units(self) -> int:
        """Samples in one epoch over a rollout."""
        return self.config.queries * self.config.group_size

    @property
    def samples(self) -> int:
        """Samples in all epochs over a rollout."""
        return self.units * self.config.epochs

    def _read(self, split: str, longest: int) -> tuple[list[Query], Any]:
        path = self.data.conversations / f"{split}.jsonl"
        if split == "heldout" and not path.is_file():
            return [], {}
        return read_queries(path, self.tokenizer, longest, self.data.rewards)

    # what the loop calls

    def attach(self, trainee: Trainee, model: ModelConfig) -> None:
        self.gatherer = Gatherer(self.job, self.data, self.tokenizer, model, trainee.chunks, self.keeps_reference)

    def prepare(self, forward: Forward) -> None:
        """Where questions are ordered by the variance of their rewards: answer each once, by the initial weights."""
        if self.config.order == "reward_variance":
            self._order_by(self.gatherer.variances(self.queries))

    def state(self) -> dict[str, np.ndarray]:
        return {} if self.order.variances is None else {"variances": self.order.variances}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._order_by(state["variances"])

    def _order_by(self, variances: np.ndarray) -> None:
        self.order = Order(len(self.queries), self.job.seed, variances)

    def gather(self, sample: int) -> dict[str, float]:
        """Make the rollout that `sample` belongs to, unless it is there. Returns what to report of it."""
        number = sample // self.samples
        if number != self.number or self.current is None:
            first = number * self.config.queries
            queries = [self.queries[self.order.place(first + place)] for place in range(self.config.queries)]
            rollout = self.gatherer.gather(queries, number)
            self.complete(rollout)
            if not self.job.dry:
                runtime.on_first_rank(lambda: rollout.save(self._path(number)))
            self.number, self.current = number, rollout
        return self.current.metrics

    @abstractmethod
    def complete(self, rollout: Rollout) -> None:
        """Find out what the loss needs of a rollout whose rewards and log-probabilities are known: into its arrays."""

    def resume(self, progress: Progress) -> None:
        """Go back to where `progress` is: take up the rollout that was being learnt from, forget later ones.

        Raises:
            CorruptArtifactError: it is gone or torn.
        """
        self.number, self.current = -1, None
        number, inside = divmod(progress.consumed_samples, self.samples)
        runtime.on_first_rank(lambda: self._forget(number if inside else number - 1))
        if inside:
            self.current = Rollout.load(self._path(number))
            self.number = number
            if self.current.mask.shape[1] != self.length or len(self.current) != len(self._rows()):
                raise CorruptArtifactError(
                    f"{self._path(number)} is of another job. Give this job a folder of its own."
                )

    def _rows(self) -> range:
        return range(self.config.queries * self.config.group_size)

    def _path(self, number: int) -> Path:
        return self.folder / f"rollout_{number:08d}.npz"

    def _forget(self, last: int) -> None:
        """Remove rollouts after `last`, which the weights of now would make anew."""
        for path in self.folder.glob("rollout_*.npz"):
            if int(path.stem.removeprefix("rollout_")) > last:
                path.unlink()

    def save(self, progress: Progress) -> None:
        """Besides the weights: nothing is written here, but rollouts that no checkpoint needs any more are removed."""
        runtime.on_first_rank(self._prune)

    def _prune(self) -> None:
        kept = sorted((self.job.output / "checkpoints").glob("step_*"))
        if not kept:
            return
        needed = int(read_training(kept[0])["consumed_samples"]) // self.samples
        for path in self.folder.glob("rollout_*.npz"):
            if int(path.stem.removeprefix("rollout_")) < min(needed, self.number):
                path.unlink()

    def measure(self) -> dict[str, float]:
        """Mean reward of greedy answers to held-out questions; empty where there are none."""
        return self.gatherer.measure(self.asked) if self.asked else {}

    # samples

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def place(self, index: int) -> int:
        """Where sample `index` lies within the current rollout."""
        number, inside = divmod(index, self.samples)
        epoch, at = divmod(inside, self.units)
        return order(at, self.units, hash_seed(self.job.seed, number, epoch))

    def step_of(self, index: int) -> tuple[list[int], int]:
        """Places of all samples of the step that sample `index` is in, and which of them it is."""
        size = self.job.batch.global_batch_size
        first = index - index % size
        return [self.place(first + offset) for offset in range(size)], index - first


def hash_seed(seed: int, *numbers: int) -> int:
    """One seed for a place in a run."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0])
