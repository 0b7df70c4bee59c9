"""Write a step's line in metrics.jsonl: the objective's means, throughput and utilization."""

import time

from cupola_trainer import runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.config import ModelConfig, TrainJob
from cupola_trainer.models.router import take_expert_load
from cupola_trainer.objectives import passes
from cupola_trainer.optim import Trainee
from cupola_trainer.reporting.metrics import MetricsWriter
from cupola_trainer.runtime.speed import matmul_peak
from cupola_trainer.training.timing import StepTimes, flops_per_token

FINGERPRINTED = False  # only reports progress


class StepLog:
    """Writes the lines. Throughput and timings are averaged over the steps since the last line."""

    def __init__(self, job: TrainJob, model: ModelConfig, trainee: Trainee, metrics: MetricsWriter) -> None:
        self.job, self.model, self.trainee, self.metrics = job, model, trainee, metrics
        self.times = StepTimes()
        self.times.attach(trainee)
        self.matmul_peak = matmul_peak()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time since the last line out of the throughput: it was not spent training."""
        self._clock, self._steps = time.monotonic(), 0

    def write(
        self,
        progress: Progress,
        means: dict[str, float],
        *,
        grad_norm: float,
        moved: bool,
        micro_batches: int,
        odd: bool,
    ) -> None:
        """Count a finished step, and write its line if it is due or if the step was `odd`."""
        self._steps += 1
        step = progress.step
        if not odd and step % self.job.log_every and step != self.job.steps:
            return
        tokens = self._steps * self.job.batch.global_batch_size * self.job.batch.sequence_length
        if self.model.moe:
            means |= passes.aux_losses(self.model, micro_batches * self._steps)
            means |= take_expert_load(self.trainee.chunks, self.model, tokens)
        tokens_per_second = tokens / (time.monotonic() - self._clock)
        self.metrics.write(
            "step",
            step=step,
            **means,
            grad_norm=grad_norm,
            lr=self.trainee.learning_rate,
            tokens_per_second=tokens_per_second,
            mfu=tokens_per_second * self._flops_per_token(step) / self.matmul_peak,
            consumed_samples=progress.consumed_samples,
            memory_bytes=runtime.memory_bytes(),
            **self.times.take(self._steps),
            **({} if moved else {"skipped": True}),
        )
        self.restart_clock()

    def _flops_per_token(self, step: int) -> float:
        """FLOPs per token at this step's mean sequence length."""
        schedule = getattr(self.job.data, "lengths", None)
        length = schedule.mean_length(step - 1) if schedule else self.job.batch.sequence_length
        return flops_per_token(self.model, length)
