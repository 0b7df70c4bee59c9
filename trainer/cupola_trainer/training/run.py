"""A running training job: its step, what is due after a step, and rollbacks."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cupola_platform.errors import StageFailedError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.checkpoint.folders import step_folder
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.lora import attaching
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.batches import heldout_batches, training_samples
from cupola_trainer.objectives.online import OnlineObjective
from cupola_trainer.objectives.prefetching import Prefetcher
from cupola_trainer.optim import Trainee
from cupola_trainer.reporting.metrics import MetricsWriter
from cupola_trainer.reporting.results import train_results, write_result
from cupola_trainer.runtime import folders
from cupola_trainer.training.autosave import Autosave, is_due
from cupola_trainer.training.faults import Monitor, Rollback, Rollbacks, remove_after
from cupola_trainer.training.profiling import Profiler
from cupola_trainer.training.resume import resume
from cupola_trainer.training.sample_log import SampleLog
from cupola_trainer.training.step_log import StepLog
from cupola_trainer.training.watchdog import FOLDER, REPORT, Watchdog


class BeginAgain(Exception):
    """A rollback found no checkpoint: the model, the optimizer and other state must be rebuilt as of step 0."""


class Run:
    """A running job."""

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
        """`data` is the job's `data_identity`, kept in its checkpoints."""
        self.job, self.model, self.tokenizer, self.objective, self.trainee = job, model, tokenizer, objective, trainee
        self.online = objective if isinstance(objective, OnlineObjective) else None
        self.progress = progress
        self.data = dict(data or {})
        self.adapter = attaching.describe(job.parent, job.lora) if job.lora else None
        self.monitor = Monitor(job.faults, progress.extra.get("faults"))
        self.rollbacks = Rollbacks(
            job.output / "rollbacks.json", lambda step: is_due(job.checkpoint.every, step, job.steps)
        )
        self.watchdog = Watchdog(job.output, runtime.rank(), 0 if job.dry else job.faults.hang_seconds)
        for chunk in trainee.chunks:
            chunk.register_forward_pre_hook(self.watchdog.beat)
        self.profiler = Profiler(job.profile, job.output / "profile")
        self.batches = Prefetcher(objective)
        self.heldout = heldout_batches(objective, job.batch, job.evaluate_batches)
        self.metrics = MetricsWriter(job.output / "metrics.jsonl" if runtime.rank() == 0 else None)
        self.log = StepLog(job, model, trainee, self.metrics)
        self.times = self.log.times
        self.samples = SampleLog(job.output, dry=job.dry)
        self.autosave = Autosave(job, model, tokenizer, objective.name, trainee, self.metrics, self.watchdog.beat)
        self.autosave.saved_step = progress.step

    def start(self) -> None:
        folders.on_each_folder(lambda: _clear_heartbeats(self.job.output))
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
        runtime.seed_step(self.job.seed, self.progress.step)
        with self.times.part("save"):
            self.autosave.look()
        with self.profiler.step(self.progress.step + 1):
            first = self.rollbacks.next_sample(self.progress.consumed_samples)
            with self.watchdog.pause():
                gathered = self.online.gather(first) if self.online else {}
            with self.times.part("data"):
                samples = training_samples(self.objective, self.job.batch, first)
                batches = self.batches.read(samples)
            if self.progress.step + 1 < self.job.steps and self.online is None:
                following = self.rollbacks.next_sample(first + self.job.batch.global_batch_size)
                self.batches.begin(training_samples(self.objective, self.job.batch, following))
            means = passes.train(self.trainee.chunks, self.objective, batches) | gathered
            means |= self.online.train_others(batches) if self.online else {}
            with self.times.part("save"):
                self.autosave.before_update()
            self.trainee.scheduler.step(increment=1)
            with self.times.part("optimizer"):
                grad_norm, moved = self.online.update(self.trainee) if self.online else self.trainee.update()
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
        return not self.job.dry and is_due(every, self.progress.step, self.job.steps)

    def _judge(self, loss: float, moved: bool) -> str | None:
        """Describe what went wrong in this step; the same on every rank."""
        fault = self.monitor.judge(loss, moved)
        return runtime.on_first_rank(lambda: fault) if self.job.faults.spike_factor else fault

    def _roll_back(self, fault: str) -> None:
        """Load the weights of an earlier checkpoint and skip the samples read since.

        Raises:
            BeginAgain: there is no earlier checkpoint.
            StageFailedError: `job.faults` allows no more rollbacks.
        """
        self.autosave.wait()
        step, allowed = self.progress.step, self.job.faults.max_rollbacks
        if len(self.rollbacks.done) >= allowed:
            raise StageFailedError(
                f"At step {step} {fault}, after {len(self.rollbacks.done)} rollbacks "
                f"(faults.max_rollbacks={allowed}). Lower optimizer.lr={self.job.optimizer.lr:g}, or check the data."
            )
        folder, end = self.job.output / "checkpoints", self.progress.consumed_samples
        rollback: Rollback = runtime.on_first_rank(lambda: self.rollbacks.go_back(folder, step, end, fault))
        folders.on_each_folder(lambda: remove_after(folder, rollback.to_step))
        if runtime.rank() > 0:
            self.rollbacks.done.append(rollback)
        with self.watchdog.pause():
            self.progress = resume(folder, self.trainee)
            if self.online and self.progress.step:
                self.online.resume(self.progress)
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
        self.autosave.saved_step = self.progress.step
        self.log.restart_clock()

    def _open_logs(self) -> None:
        """Open the job's logs, dropping lines past the current step."""
        self.metrics.open(self.progress.step)
        self.samples.open(self.progress.step)

    def evaluate(self) -> None:
        """Log the mean held-out loss and the objective's metrics, if there are held-out samples."""
        means = passes.evaluate(self.trainee.chunks, self.objective, self.heldout) if self.heldout else {}
        with self.watchdog.pause():
            means |= self.online.measure() if self.online else {}
        if not means:
            return
        self.metrics.write(
            "evaluate", step=self.progress.step, **{f"heldout_{name}": mean for name, mean in means.items()}
        )
        self.log.restart_clock()

    def save(self) -> None:
        """Start a save; the checkpoint is complete some steps later."""
        with self.times.part("save"):
            self.autosave.wait()
            kept = self.online.save(self.progress) if self.online else {}
            adapter = {"adapter": self.adapter} if self.adapter else {}
            state = {"faults": self.monitor.state(), "data": self.data, "objective_state": kept}
            self.autosave.begin(self.progress, state | adapter)
        self.log.restart_clock()

    def preempt(self) -> None:
        """Save unsaved progress for the next start."""
        self.autosave.wait()
        if self.progress.step > self.autosave.saved_step and not self.job.dry:
            self.save()
            self.autosave.wait(last=True)
        self._end("preempted")

    def _end(self, status: str) -> None:
        self.watchdog.stop()
        self.metrics.write("end", step=self.progress.step, status=status)
        self.metrics.close()
        self.samples.close()

    def close(self) -> None:
        """End the threads of this run; after an error too, because the process may outlive its job."""
        self.batches.close()
        self.watchdog.stop()

    def complete(self) -> None:
        """Finish the last save and write result.json. `step` has already evaluated and begun to save."""
        self.autosave.wait(last=True)
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
