"""train(): one job from its first step to its last, through interruptions."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from cupola_platform.errors import ConfigError, NotFoundError, StageFailedError
from cupola_trainer import checkpoint, models, optim, passes, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.config import SCALAR, ModelConfig, SftData, TrainJob
from cupola_trainer.data.batches import heldout_batches, read_batches, training_samples
from cupola_trainer.faults import Monitor, Rollback, Rollbacks
from cupola_trainer.identity import check_architecture, check_head, check_resumable, check_tokenizer, data_identity
from cupola_trainer.keeping import Keeper, step_folder
from cupola_trainer.layout import validate_layout
from cupola_trainer.long_context import stretch
from cupola_trainer.lora import attaching
from cupola_trainer.metrics import MetricsWriter, train_results
from cupola_trainer.objectives import Objective, build_objective
from cupola_trainer.optim import Trainee
from cupola_trainer.profiling import Profiler
from cupola_trainer.resume import resume
from cupola_trainer.sample_log import SampleLog
from cupola_trainer.sizes import parameter_count
from cupola_trainer.step_log import StepLog
from cupola_trainer.watchdog import FOLDER, REPORT, Watchdog


def train(job: TrainJob, terminated: Callable[[], bool]) -> bool:
    """Train to `job.steps`, from the newest checkpoint in `job.output` that verifies. Every rank calls it.

    Args:
        terminated: whether this process was asked to end; the job then saves after the current step.

    Returns:
        whether the job is complete; False when it was asked to end before.

    Raises:
        ConfigError, SourceError, NotFoundError, CorruptArtifactError: the job cannot be started.
        StageFailedError: training went wrong more often than `job.faults` allows, or its last checkpoint cannot be saved.
    """
    while True:
        try:
            return _train(job, terminated)
        except BeginAgain:
            continue


def _train(job: TrainJob, terminated: Callable[[], bool]) -> bool:
    run = begin(job)
    run.start()
    try:
        while run.progress.step < run.job.steps:
            if runtime.any_rank(terminated()):
                run.preempt()
                return False
            run.step()
        run.complete()
    finally:
        run.watchdog.stop()  # after an error too: the process may go on without this job
    return True


class BeginAgain(Exception):
    """A rollback found no checkpoint: models, optimizers and what goes with them have to be those of step 0 again."""


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
        pack=getattr(job.data, "pack", False) and job.parallel.cp == 1,
        lengths=getattr(job.data, "lengths", None),
        copying=getattr(job.data, "copying", None),
        ranks=runtime.world_size(),
    )
    if job.initial:
        check_head(job.initial, checkpoint.read_model(job.initial), model)
    if job.initial and job.model:
        check_architecture(job.initial, model, replace(checkpoint.read_model(job.initial), head=model.head))
    if (tokens := getattr(job.data, "tokens", None)) is not None:
        check_tokenizer(tokenizer, tokens)
    runtime.start(job.parallel, job.seed)
    data = runtime.on_first_rank(lambda: data_identity(job))
    check_resumable(job.output / "checkpoints", model, {} if job.allow_data_change else data)
    objective = build_objective(job, tokenizer, model)
    job = _counted(job, objective)
    chunks = models.build(model, job.parallel, seed=job.seed, dtype=runtime.dtype(job.precision))
    for chunk in chunks:  # pipeline stages then tell each other each micro-batch's shape
        chunk.config.variable_seq_lengths = getattr(job.data, "lengths", None) is not None
    if job.initial:
        checkpoint.load_weights(job.initial, chunks)
    if job.lora:
        attaching.attach(chunks, job.lora, model, job.parallel, job.seed)
    trainee = optim.build(chunks, job.parallel, job.optimizer, job.steps)
    if job.optimizer.merging:
        optim.merge_online(trainee, job.optimizer.merging, job.initial, model, job.seed)
    objective.attach(trainee, model)
    _prepare(objective, trainee, job.output / "reference.npz")
    progress = resume(job.output / "checkpoints", trainee)
    objective.resume(progress)
    run = Run(job, model, tokenizer, objective, trainee, progress, data)
    attaching.check_resumed(run.progress, run.adapter)
    return run


def _counted(job: TrainJob, objective: Objective) -> TrainJob:
    """The job with as many steps as its epochs take, the last one begun counted whole."""
    if not isinstance(job.data, SftData) or job.data.epochs is None:
        return job
    assert objective.epoch
    steps = math.ceil(job.data.epochs * objective.epoch / job.batch.global_batch_size)
    return replace(job, steps=steps, data=replace(job.data, epochs=None))


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
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """`data` says what the job's data are, for its checkpoints."""
        self.job, self.model, self.tokenizer, self.objective, self.trainee = job, model, tokenizer, objective, trainee
        self.progress = progress
        self.data = dict(data or {})
        self.adapter = attaching.describe(job.initial, job.lora) if job.lora else None
        self.monitor = Monitor(job.faults, progress.extra.get("faults"))
        self.rollbacks = Rollbacks(job.output / "rollbacks.json")
        self.watchdog = Watchdog(job.output, runtime.rank(), 0 if job.dry else job.faults.hang_seconds)
        for chunk in trainee.chunks:
            chunk.register_forward_pre_hook(self.watchdog.beat)
        self.profiler = Profiler(job.profile, job.output / "profile")
        self.heldout = heldout_batches(objective, job.batch, job.evaluate_batches)
        self.metrics = MetricsWriter(job.output / "metrics.jsonl" if runtime.rank() == 0 else None)
        self.log = StepLog(job, model, trainee, self.metrics)
        self.times = self.log.times
        self.samples = SampleLog(job.output, dry=job.dry)
        self.keeper = Keeper(job, model, tokenizer, objective.name, trainee, self.metrics, self.watchdog.beat)
        self.keeper.saved_step = progress.step

    def start(self) -> None:
        runtime.on_first_rank(lambda: _clear_heartbeats(self.job.output))
        self.watchdog.start()
        self._open_logs()
        self.metrics.write(
            "start",
            kind="train",
            step=self.progress.step,
            steps=self.job.steps,
            world_size=dist.get_world_size(),
            parameters=parameter_count(self.model),
            **({"dropped": dict(self.objective.drops)} if self.objective.drops else {}),
        )
        if self.progress.step == 0 and not self.job.dry:
            self.evaluate()
        self.log.restart_clock()

    def step(self) -> None:
        with self.times.part("save"):
            self.keeper.look()
        with self.profiler.step(self.progress.step + 1):
            first = self.rollbacks.next_sample(self.progress.consumed_samples)
            with self.watchdog.pause():
                gathered = self.objective.gather(first)
            with self.times.part("data"):
                samples = training_samples(self.job.batch, first)
                batches = read_batches(self.objective, samples)
            means = passes.train(self.trainee.chunks, self.objective, batches) | gathered
            means |= self.objective.beside(batches)
            with self.times.part("save"):
                self.keeper.before_update()
            self.trainee.scheduler.step(increment=1)
            with self.times.part("optimizer"):
                grad_norm, moved = self.objective.update(self.trainee)
        self.progress = Progress(self.progress.step + 1, first + self.job.batch.global_batch_size)
        self.watchdog.step = self.progress.step
        fault = self._judge(means["loss"], moved)
        odd = fault is not None or not moved
        self.log.write(self.progress, means, grad_norm=grad_norm, moved=moved, micro_batches=len(batches), odd=odd)
        self.samples.write(self.progress.step, samples)
        if fault:
            self._roll_back(fault)
            return
        if self._due(self.job.evaluate_every):
            self.evaluate()
        if self._due(self.job.checkpoint.every):
            self.save()

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return not self.job.dry and (step == self.job.steps or (every > 0 and step % every == 0))

    def _judge(self, loss: float, moved: bool) -> str | None:
        """What is wrong after this step; every rank hears the same."""
        fault = self.monitor.judge(loss, moved)
        return runtime.on_first_rank(lambda: fault) if self.job.faults.spike_factor else fault

    def _roll_back(self, fault: str) -> None:
        """Take the weights back to an earlier checkpoint; the samples since then are not read again.

        Raises:
            BeginAgain: there is none.
            StageFailedError: it went wrong as often as `job.faults` allows.
        """
        self.keeper.wait()
        step, allowed = self.progress.step, self.job.faults.max_rollbacks
        if len(self.rollbacks.done) >= allowed:
            raise StageFailedError(
                f"At step {step} {fault}, and there were {len(self.rollbacks.done)} rollbacks "
                f"(faults.max_rollbacks={allowed}). Lower optimizer.lr={self.job.optimizer.lr:g}, or look at the data."
            )
        folder, end = self.job.output / "checkpoints", self.progress.consumed_samples
        rollback: Rollback = runtime.on_first_rank(lambda: self.rollbacks.go_back(folder, step, end, fault))
        if runtime.rank() > 0:
            self.rollbacks.done.append(rollback)
        with self.watchdog.pause():
            self.progress = resume(folder, self.trainee)
            if self.progress.step:
                self.objective.resume(self.progress)
        self._open_logs()
        self.metrics.write(
            "rollback",
            step=self.progress.step,
            from_step=step,
            reason=fault,
            skipped_samples=[rollback.first_sample, rollback.end_sample],
            rollbacks=len(self.rollbacks.done),
        )
        if self.progress.step == 0:
            raise BeginAgain
        self.monitor = Monitor(self.job.faults, self.progress.extra.get("faults"))
        self.keeper.saved_step = self.progress.step
        self.log.restart_clock()

    def _open_logs(self) -> None:
        """Begin or go on with the job's logs; what they hold past this step is dropped."""
        self.metrics.open(self.progress.step)
        self.samples.open(self.progress.step)

    def evaluate(self) -> None:
        """The mean held-out loss, and the objective's own means. Nothing where there are no held-out samples."""
        means = passes.evaluate(self.trainee.chunks, self.objective, self.heldout) if self.heldout else {}
        with self.watchdog.pause():
            means |= self.objective.measure()
        if not means:
            return
        self.metrics.write(
            "evaluate", step=self.progress.step, **{f"heldout_{name}": mean for name, mean in means.items()}
        )
        self.log.restart_clock()

    def save(self) -> None:
        """Begin to save; the checkpoint is whole some steps later."""
        with self.times.part("save"):
            self.keeper.wait()
            self.objective.save(self.progress)
            adapter = {"adapter": self.adapter} if self.adapter else {}
            state = {"faults": self.monitor.state(), "data": self.data, "objective_state": self.objective.running()}
            self.keeper.begin(self.progress, state | adapter)
        self.log.restart_clock()

    def preempt(self) -> None:
        """Save what was not saved yet, for the next start."""
        self.keeper.wait()
        if self.progress.step > self.keeper.saved_step and not self.job.dry:
            self.save()
            self.keeper.wait(last=True)
        self._end("preempted")

    def _end(self, status: str) -> None:
        self.watchdog.stop()
        self.metrics.write("end", step=self.progress.step, status=status)
        self.metrics.close()
        self.samples.close()

    def complete(self) -> None:
        """Write result.json; the last step has been evaluated, and its checkpoint was begun."""
        self.keeper.wait(last=True)
        self._end("completed")
        if runtime.rank() == 0 and not self.job.dry:
            folder = step_folder(self.job.output / "checkpoints", self.progress.step).relative_to(self.job.output)
            tokens = self.progress.consumed_samples * self.job.batch.sequence_length
            metrics: dict[str, float] = {"parameters": parameter_count(self.model), "tokens_seen": tokens}
            metrics |= train_results(self.job.output / "metrics.jsonl")
            metrics |= {f"dropped_{reason}": float(count) for reason, count in self.objective.drops.items()}
            write_result(self.job.output, {"folder": str(folder), "metrics": metrics})


def _clear_heartbeats(output: Path) -> None:
    shutil.rmtree(output / FOLDER, ignore_errors=True)
    (output / REPORT).unlink(missing_ok=True)


def _model_and_tokenizer(job: TrainJob) -> tuple[ModelConfig, Path | None]:
    model = job.model or (checkpoint.read_model(job.initial) if job.initial else None)
    if model and job.positions:
        if job.model:
            raise ConfigError(
                "the job names a model and a change of positions: a change is made to a checkpoint. Give one."
            )
        model = stretch(model, job.positions, job.batch.sequence_length)
    if model is None:
        raise ConfigError("the job names neither a model nor an initial checkpoint. Give one of them.")
    model = replace(model, head="scalar" if job.data.objective in SCALAR else "language_model")
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
