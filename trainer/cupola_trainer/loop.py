"""train(): one job from its first step to its last, through interruptions."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.distributed as dist

from cupola_platform.errors import ConfigError, NotFoundError, StageFailedError
from cupola_trainer import checkpoint, models, optim, passes, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.data.batches import heldout_batches, training_batches
from cupola_trainer.layout import validate_layout
from cupola_trainer.metrics import MetricsWriter, train_results
from cupola_trainer.models.router import take_expert_load
from cupola_trainer.objectives import Objective, build_objective
from cupola_trainer.optim import Trainee
from cupola_trainer.profiling import Profiler
from cupola_trainer.resume import prune, resume, step_folder
from cupola_trainer.timing import StepTimes, flops_per_token

SKIPS_IN_A_ROW = 3
"""Steps in a row without a finite gradient that end the job."""

log = logging.getLogger(__name__)


def train(job: TrainJob, terminated: Callable[[], bool]) -> bool:
    """Train to `job.steps`, from the newest checkpoint in `job.output` that verifies. Every rank calls it.

    Args:
        terminated: whether this process was asked to end; the job then saves after the current step.

    Returns:
        whether the job is complete; False when it was asked to end before.

    Raises:
        ConfigError, SourceError, NotFoundError, CorruptArtifactError: the job cannot be started.
        StageFailedError: the gradient was not finite three steps in a row.
    """
    run = begin(job)
    run.start()
    while run.progress.step < job.steps:
        if runtime.any_rank(terminated()):
            run.preempt()
            return False
        run.step()
    run.complete()
    return True


def begin(job: TrainJob) -> "Run":
    """The job with its model, data and optimizer, at the step of its newest checkpoint. Every rank calls it.

    Raises:
        ConfigError, SourceError, NotFoundError, CorruptArtifactError: the job cannot be started.
    """
    model, tokenizer = _model_and_tokenizer(job)
    validate_layout(
        model,
        job.parallel,
        job.batch,
        objective=job.data.objective,
        reset_at_documents=getattr(job.data, "reset_at_documents", False),
        ranks=runtime.world_size(),
    )
    runtime.start(job.parallel, job.seed)
    objective = build_objective(job, tokenizer)
    chunks = models.build(model, job.parallel, seed=job.seed, dtype=runtime.dtype(job.precision))
    if job.initial:
        checkpoint.load_weights(job.initial, chunks)
    trainee = optim.build(chunks, job.parallel, job.optimizer, job.steps)
    _prepare(objective, trainee, job.output / "reference.npz")
    return Run(job, model, tokenizer, objective, trainee, resume(job.output / "checkpoints", trainee))


class Run:
    """A job under way: one step, and what is due after it."""

    def __init__(
        self,
        job: TrainJob,
        model: ModelConfig,
        tokenizer: Path | None,
        objective: Objective,
        trainee: Trainee,
        progress: Progress,
    ) -> None:
        self.job, self.model, self.tokenizer, self.objective, self.trainee = job, model, tokenizer, objective, trainee
        self.progress = progress
        self.saved_step = progress.step
        self.skipped_in_a_row = 0
        self.times = StepTimes()
        self.times.attach(trainee)
        self.flops_per_token = flops_per_token(model, job.batch.sequence_length)
        self.matmul_peak = runtime.matmul_peak()
        self.profiler = Profiler(job.profile, job.output / "profile")
        self.timed_steps = 0
        self.clock = time.monotonic()
        self.heldout = heldout_batches(objective, job.batch, job.evaluate_batches)
        self.metrics = MetricsWriter(job.output / "metrics.jsonl" if runtime.rank() == 0 else None)

    def start(self) -> None:
        self.metrics.open(self.progress.step)
        self.metrics.write(
            "start",
            kind="train",
            step=self.progress.step,
            steps=self.job.steps,
            world_size=dist.get_world_size(),
            parameters=models.parameter_count(self.model),
        )
        if self.progress.step == 0 and not self.job.dry:
            self.evaluate()
        self._restart_clock()

    def step(self) -> None:
        with self.profiler.step(self.progress.step + 1):
            with self.times.part("data"):
                batches = training_batches(self.objective, self.job.batch, self.progress.step)
            means = passes.train(self.trainee.chunks, self.objective, batches)
            self.trainee.scheduler.step(increment=1)
            with self.times.part("optimizer"):
                grad_norm, moved = self.trainee.update()
        consumed = self.progress.consumed_samples + self.job.batch.global_batch_size
        self.progress = Progress(self.progress.step + 1, consumed)
        self.timed_steps += 1
        self._log_step(means, grad_norm, moved, len(batches))
        self._give_up_on_bad_gradients(moved)
        if self._due(self.job.evaluate_every):
            self.evaluate()
        if self._due(self.job.checkpoint.every):
            self.save()

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return not self.job.dry and (step == self.job.steps or (every > 0 and step % every == 0))

    def _log_step(self, means: dict[str, float], grad_norm: float, moved: bool, micro_batches: int) -> None:
        step = self.progress.step
        if moved and step % self.job.log_every and step != self.job.steps:
            return
        tokens = self.timed_steps * self.job.batch.global_batch_size * self.job.batch.sequence_length
        if self.model.moe:
            means |= passes.aux_losses(self.model, micro_batches * self.timed_steps)
            means |= take_expert_load(self.trainee.chunks, self.model, tokens)
        tokens_per_second = tokens / (time.monotonic() - self.clock)
        self.metrics.write(
            "step",
            step=step,
            **means,
            grad_norm=grad_norm,
            lr=self.trainee.learning_rate,
            tokens_per_second=tokens_per_second,
            mfu=tokens_per_second * self.flops_per_token / self.matmul_peak,
            consumed_samples=self.progress.consumed_samples,
            memory_bytes=runtime.memory_bytes(),
            **self.times.take(self.timed_steps),
            **({} if moved else {"skipped": True}),
        )
        self._restart_clock()

    def _give_up_on_bad_gradients(self, moved: bool) -> None:
        self.skipped_in_a_row = 0 if moved else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == SKIPS_IN_A_ROW:
            raise StageFailedError(
                f"The gradient was not finite {SKIPS_IN_A_ROW} steps in a row, the last at step {self.progress.step}. "
                f"Lower optimizer.lr={self.job.optimizer.lr:g}, or look at those steps' data."
            )

    def evaluate(self) -> None:
        """The mean held-out loss, and the objective's own means. Nothing where there are no held-out samples."""
        if not self.heldout:
            return
        means = passes.evaluate(self.trainee.chunks, self.objective, self.heldout)
        self.metrics.write(
            "evaluate", step=self.progress.step, **{f"heldout_{name}": mean for name, mean in means.items()}
        )
        self._restart_clock()

    def save(self) -> None:
        folder = step_folder(self.job.output / "checkpoints", self.progress.step)
        checkpoint.save(
            folder,
            self.trainee.chunks,
            model=self.model,
            parallel=self.job.parallel,
            step=self.progress.step,
            consumed_samples=self.progress.consumed_samples,
            seed=self.job.seed,
            objective=self.objective.name,
            tokenizer=self.tokenizer,
            optimizer=self.trainee.optimizer,
            scheduler=self.trainee.scheduler,
        )
        self.saved_step = self.progress.step
        self.metrics.write("checkpoint", step=self.progress.step, path=str(folder.relative_to(self.job.output)))
        if runtime.rank() == 0:
            prune(folder.parent, self.job.checkpoint.keep)
        self._restart_clock()

    def preempt(self) -> None:
        """Save what was not saved yet, for the next start."""
        if self.progress.step > self.saved_step and not self.job.dry:
            self.save()
        self.metrics.write("end", step=self.progress.step, status="preempted")
        self.metrics.close()

    def complete(self) -> None:
        """Write result.json; the last step has been evaluated and saved."""
        self.metrics.write("end", step=self.progress.step, status="completed")
        self.metrics.close()
        if runtime.rank() == 0 and not self.job.dry:
            folder = step_folder(self.job.output / "checkpoints", self.progress.step).relative_to(self.job.output)
            tokens = self.progress.consumed_samples * self.job.batch.sequence_length
            metrics: dict[str, float] = {"parameters": models.parameter_count(self.model), "tokens_seen": tokens}
            metrics |= train_results(self.job.output / "metrics.jsonl")
            write_result(self.job.output, {"folder": str(folder), "metrics": metrics})

    def _restart_clock(self) -> None:
        self.clock, self.timed_steps = time.monotonic(), 0


def _model_and_tokenizer(job: TrainJob) -> tuple[ModelConfig, Path | None]:
    model = job.model or (checkpoint.read_model(job.initial) if job.initial else None)
    if model is None:
        raise ConfigError("the job names neither a model nor an initial checkpoint. Give one of them.")
    if not model.vocab_size:
        raise ConfigError("model.vocab_size=0: the size is the tokenizer's, padded to a multiple of 64. Fill it in.")
    if job.tokenizer and not job.tokenizer.is_dir():
        raise NotFoundError(f"tokenizer {job.tokenizer} is no folder. Give the folder that a tokenizer was saved in.")
    inherited = job.initial / "tokenizer" if job.initial else None
    return model, job.tokenizer or (inherited if inherited and inherited.is_dir() else None)


def _prepare(objective: Objective, trainee: Trainee, kept: Path) -> None:
    """Let the objective see the initial weights, once in the job's life: a resumed job takes back the same bits."""
    if runtime.on_first_rank(kept.exists):
        objective.restore(dict(np.load(kept)))
        return
    objective.prepare(lambda batch: passes.token_losses(trainee.chunks, batch))
    state = objective.state()
    if state and runtime.rank() == 0:
        temporary = kept.with_name(f".{kept.stem}.partial.npz")
        np.savez(temporary, **state)  # type: ignore[arg-type]
        temporary.replace(kept)


def write_result(output: Path, result: dict[str, object]) -> None:
    """Write result.json in one piece: from then on the job is complete."""
    temporary = output / ".result.json.partial"
    with temporary.open("w") as file:
        json.dump(result, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(output / "result.json")
