"""Base of objectives whose samples are the model's own responses, collected on demand and used for some steps.

Samples are numbered as in any objective. Each rollout provides the next `samples` samples: its rows, `epochs` times,
each epoch in a different order. A rollout is collected with the current weights when its first sample is due, and kept
in the job's folder, so that a killed job resumes with the same responses.
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
from cupola_trainer.config import ModelConfig
from cupola_trainer.config.rl import ReinforcementData
from cupola_trainer.data.order import order
from cupola_trainer.objectives.base import Forward
from cupola_trainer.objectives.inputs import ObjectiveInputs, computed_once
from cupola_trainer.objectives.online import OnlineObjective
from cupola_trainer.optim import Trainee
from cupola_trainer.rl.collector import RolloutCollector, RolloutSettings
from cupola_trainer.rl.prompts import Prompt, PromptOrder, read_prompts, spread
from cupola_trainer.rl.rewards import check_rewards
from cupola_trainer.rl.rollouts import Rollout

log = logging.getLogger(__name__)


class RolloutObjective(OnlineObjective):
    """The common base of GRPO, PPO and online DPO."""

    padded = True

    keeps_reference: bool = True
    """Whether log-probabilities under the initial weights are needed."""

    @property
    def scores_policy(self) -> bool:
        """Whether the policy's log-probabilities are needed before a rollout is trained on: not if all of it is one
        step, whose own forward pass computes them."""
        return self.samples != self.inputs.batch.global_batch_size

    def __init__(self, inputs: ObjectiveInputs) -> None:
        """
        Raises:
            ConfigError: there is no parent checkpoint, no usable prompt, or sizes are inconsistent.
        """
        if inputs.parent is None:
            raise ConfigError(
                f"the objective {inputs.name} needs a parent checkpoint: an untrained model cannot respond. Set parent."
            )
        data: ReinforcementData = inputs.data
        self.inputs, self.tokenizer = inputs, inputs.chat_tokenizer()
        self.settings = RolloutSettings(
            data=data,
            parent=inputs.parent,
            batch=inputs.batch,
            layout=inputs.layout,
            seed=inputs.seed,
            precision=inputs.precision,
        )
        self.conversations, self.rewards, self.config = data.conversations, data.rewards, data.rollout
        self.length = inputs.batch.sequence_length
        check_rewards(self.rewards)
        self.config.check(inputs.batch, pairs=data.pairs)
        longest = self.length - self.config.max_new_tokens
        self.prompts, self.drops = self._read("train", longest)
        if not self.prompts:
            raise ConfigError(
                f"{self.conversations} has no prompt that leaves max_new_tokens={self.config.max_new_tokens} of "
                f"sequence_length={self.length}; dropped: {dict(self.drops)}. Raise sequence_length, or give other "
                "prompts."
            )
        if self.drops:
            log.info("prompts dropped: %s", dict(self.drops))
        self.heldout_prompts = spread(self._read("heldout", longest)[0], self.config.heldout_prompts)
        self.order = PromptOrder(len(self.prompts), inputs.seed)
        self.folder = inputs.output / "rollouts"
        self.current: Rollout | None = None
        self.number = -1
        """Number of the current rollout."""
        self.prompts_drawn = 0
        """By all rollouts so far."""

    # sizes

    @property
    def units(self) -> int:
        """Samples in one epoch over a rollout."""
        return self.config.prompts * self.config.samples_per_prompt

    @property
    def samples(self) -> int:
        """Samples in all epochs over a rollout."""
        return self.units * self.config.epochs

    def _read(self, split: str, longest: int) -> tuple[list[Prompt], Any]:
        path = self.conversations / f"{split}.jsonl"
        if split == "heldout" and not path.is_file():
            return [], {}
        return read_prompts(path, self.tokenizer, longest, self.rewards)

    # hooks of the training loop

    def attach(self, trainee: Trainee, model: ModelConfig) -> None:
        self.collector = RolloutCollector(
            self.settings,
            self.tokenizer,
            model,
            trainee.chunks,
            keeps_reference=self.keeps_reference,
            scores_policy=self.scores_policy,
        )

    def prepare(self, forward: Forward) -> None:
        """If prompts are ordered by reward variance, measure it with the initial weights."""
        if self.config.order == "reward_variance":
            kept = self.inputs.output / "reference.npz"
            arrays = computed_once(kept, lambda: {"variances": self.collector.variances(self.prompts)})
            self.order = PromptOrder(len(self.prompts), self.inputs.seed, arrays["variances"])

    def gather(self, sample: int) -> dict[str, float]:
        """Collect the rollout that contains `sample`, unless it is current. Returns metrics to report."""
        number = sample // self.samples
        if number != self.number or self.current is None:
            self.prompts_drawn = max(self.prompts_drawn, number * self.config.prompts)  # a rollback skips prompts
            rollout = self.collector.collect(self._next_prompts(self.config.prompts), number, self._next_prompts)
            self.complete(rollout)
            if not self.inputs.dry:
                runtime.on_first_rank(lambda: rollout.save(self._path(number)))
            self.number, self.current = number, rollout
        return self.current.metrics

    def _next_prompts(self, count: int) -> list[Prompt]:
        first, self.prompts_drawn = self.prompts_drawn, self.prompts_drawn + count
        return [self.prompts[self.order.place(first + place)] for place in range(count)]

    @abstractmethod
    def complete(self, rollout: Rollout) -> None:
        """Add the arrays that the loss needs to a rollout that has rewards and log-probabilities."""

    def resume(self, progress: Progress) -> None:
        """Restore `progress`: load the rollout that was being trained on and remove later ones.

        Raises:
            CorruptArtifactError: the rollout is missing or corrupt.
        """
        self.number, self.current = -1, None
        self.prompts_drawn = progress.extra["objective_state"]["prompts_drawn"] if progress.step else 0
        number, inside = divmod(progress.consumed_samples, self.samples)
        runtime.on_first_rank(lambda: self._remove_after(number if inside else number - 1))
        if inside:
            self.current = runtime.on_first_rank(lambda: Rollout.load(self._path(number)))
            self.number = number
            if self.current.mask.shape[1] != self.length or len(self.current) != len(self._rows()):
                raise CorruptArtifactError(
                    f"{self._path(number)} belongs to another job. Give this job its own folder."
                )

    def _rows(self) -> range:
        return range(self.config.prompts * self.config.samples_per_prompt)

    def _path(self, number: int) -> Path:
        return self.folder / f"rollout_{number:08d}.npz"

    def _remove_after(self, last: int) -> None:
        """Remove rollouts after `last`, which must be collected again with the current weights."""
        for path in self.folder.glob("rollout_*.npz"):
            if int(path.stem.removeprefix("rollout_")) > last:
                path.unlink()

    def save(self, progress: Progress) -> dict[str, Any]:
        """Remove rollouts that no checkpoint needs. The current one was written when it was collected."""
        runtime.on_first_rank(self._prune)
        return {"prompts_drawn": self.prompts_drawn}

    def _prune(self) -> None:
        kept = sorted((self.inputs.output / "checkpoints").glob("step_*"))
        if not kept:
            return
        needed = int(read_training(kept[0])["consumed_samples"]) // self.samples
        for path in self.folder.glob("rollout_*.npz"):
            if int(path.stem.removeprefix("rollout_")) < min(needed, self.number):
                path.unlink()

    def measure(self) -> dict[str, float]:
        """Mean reward of greedy responses to held-out prompts; empty if there are none."""
        return self.collector.measure(self.heldout_prompts) if self.heldout_prompts else {}

    # samples

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def place(self, index: int) -> int:
        """Row or pair of the current rollout for sample `index`."""
        number, inside = divmod(index, self.samples)
        epoch, at = divmod(inside, self.units)
        return order(at, self.units, hash_seed(self.inputs.seed, number, epoch))

    def width(self, index: int) -> int:
        assert self.current
        return int(self.current.ends[self.rows_of(index)].max())

    def rows_of(self, index: int) -> list[int]:
        """Rows of the current rollout that are in sample `index`."""
        return [self.place(index)]

    def step_of(self, index: int) -> tuple[list[int], int]:
        """`place` of all samples in the step of sample `index`, and the position of `index` among them."""
        size = self.inputs.batch.global_batch_size
        first = index - index % size
        return [self.place(first + offset) for offset in range(size)], index - first


def hash_seed(seed: int, *numbers: int) -> int:
    """A seed derived from a seed and numbers."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0])
