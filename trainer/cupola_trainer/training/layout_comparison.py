"""Compare two layouts: losses and gradient norms of the first steps, from the same weights and samples."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cupola_platform.errors import ConfigError, StageFailedError
from cupola_platform.launch.interface import Launcher
from cupola_trainer.config import BatchConfig, LayoutConfig, TrainJob, write_job
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.precision_rules import validate_precision
from cupola_trainer.reporting.metrics import read_metrics


@dataclass(frozen=True)
class StepNumbers:
    """Numbers of one step in both layouts."""

    step: int
    loss: float
    grad_norm: float
    loss_against: float
    grad_norm_against: float

    @property
    def loss_difference(self) -> float:
        return abs(self.loss - self.loss_against)

    @property
    def norm_difference(self) -> float:
        """Difference relative to the larger of the two."""
        largest = max(abs(self.grad_norm), abs(self.grad_norm_against))
        return abs(self.grad_norm - self.grad_norm_against) / largest if largest else 0.0


@dataclass(frozen=True)
class Comparison:
    """Numbers of two layouts, and whether they agree."""

    layout: LayoutConfig
    against: LayoutConfig
    batch: BatchConfig
    """The batch used by both: the job's, with a global batch size that both layouts divide."""
    steps: tuple[StepNumbers, ...]
    loss_tolerance: float
    norm_tolerance: float

    @property
    def loss_difference(self) -> float:
        """The largest difference, in nats."""
        return _largest(step.loss_difference for step in self.steps)

    @property
    def norm_difference(self) -> float:
        """The largest relative difference."""
        return _largest(step.norm_difference for step in self.steps)

    @property
    def equal(self) -> bool:
        """Whether both differences are within tolerance; non-finite numbers never are."""
        return self.loss_difference <= self.loss_tolerance and self.norm_difference <= self.norm_tolerance

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "loss_difference": self.loss_difference,
            "norm_difference": self.norm_difference,
            "equal": self.equal,
        }


def verify_layout(
    job: TrainJob,
    layout: LayoutConfig,
    against: LayoutConfig,
    *,
    folder: Path,
    launcher: Launcher,
    steps: int = 5,
    loss_tolerance: float = 1e-5,
    norm_tolerance: float = 1e-4,
    started: Callable[[LayoutConfig], None] = lambda layout: None,
) -> Comparison:
    """Train the first steps of a job in two layouts, one after the other, and compare their numbers.

    Args:
        folder: an empty folder for the two runs and their logs.
        launcher: allows as many processes as the larger layout needs.
        started: called with each layout when its processes start.

    Raises:
        ConfigError: a layout does not fit the model or the data.
        StageFailedError: a run failed; names its log.
    """
    if job.model is None:
        raise ConfigError("verify-layout needs the model's shape, but job.model is missing. Set it.")
    batch = common_batch(job.batch, layout, against)
    for each in (layout, against):
        apart = getattr(job.data, "reset_at_documents", False)
        validate_layout(job.model, each, batch, reset_at_documents=apart)
        validate_precision(job.model, job.but(batch=batch), each)
    job = job.but(steps=steps, batch=batch, log_every=1, dry=True)
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = (
        _train(job.but(layout=each, output=folder / name), launcher, started)
        for name, each in (("layout", layout), ("against", against))
    )
    numbers = tuple(StepNumbers(step, *a, *b) for step, (a, b) in enumerate(zip(ours, theirs, strict=True), 1))
    return Comparison(layout, against, batch, numbers, loss_tolerance, norm_tolerance)


def common_batch(batch: BatchConfig, *layouts: LayoutConfig) -> BatchConfig:
    """The batch with the smallest global size, at least the job's, that every layout divides.

    The micro-batch size is the same for all, because the load-balancing loss of an MoE is defined per micro-batch.
    """
    ways = math.lcm(*(layout.dp * (layout.pp if layout.vp else 1) for layout in layouts))
    micro = min(batch.micro_batch_size, max(1, batch.global_batch_size // ways))
    unit = ways * micro
    return replace(batch, micro_batch_size=micro, global_batch_size=-(-batch.global_batch_size // unit) * unit)


def _train(job: TrainJob, launcher: Launcher, started: Callable[[LayoutConfig], None]) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    job.output.mkdir()
    write_job(job, job.output / "job.json")
    log = job.output / "log.txt"
    started(job.layout)
    with launcher.start(job.output / "job.json", processes=job.layout.world_size, log=log) as running:
        code = running.wait()
    if code:
        error = job.output / "error.json"
        ended = running.reason() or f"its processes exited with status {code}"
        message = json.loads(error.read_text())["message"] if error.exists() else ended
        raise StageFailedError(f"layout {layout_name(job.layout)}: {message}. Log: {log}")
    rows = [row for row in read_metrics(job.output / "metrics.jsonl") if row["event"] == "step"]
    return [(_number(row["loss"]), _number(row["grad_norm"])) for row in rows]


def layout_name(layout: LayoutConfig) -> str:
    """A layout in command-line syntax: the settings that differ from a single process."""
    default = LayoutConfig()
    values = {name: value for name, value in asdict(layout).items() if value != getattr(default, name)}
    return ",".join(f"{name}={str(value).lower()}" for name, value in values.items()) or "tp=1"


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # metrics.jsonl writes non-finite numbers as null


def _largest(values: Iterable[float]) -> float:
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)
