"""`cupola fit-laws`: small runs over model sizes, training lengths, learning rates and batch sizes, and power laws for
the best settings."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median_low
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cupola_flows.experiments.series import Series
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_platform.fitting.plots import laws_page
from cupola_platform.fitting.scaling import PowerLaw, Run, at_edges, check_design, fit_laws
from cupola_platform.nearest import did_you_mean
from cupola_trainer.config import ModelConfig, TrainJob

MODEL = TypeAdapter(ModelConfig)


def fit(
    series: Series,
    *,
    models: Sequence[ModelConfig],
    tokens: Sequence[int],
    rates: Sequence[float],
    batches: Sequence[int],
) -> Artifact:
    """Train every size and length at every rate and every batch size; fit and publish the laws.

    Raises:
        ConfigError: the settings cannot determine the laws, or the held-out text does not fill a sequence.
    """
    if artifact := series.published():
        return artifact
    check_design(len(models), tokens, rates, batches)
    plan = _plan(series, models, tokens, rates, batches)
    results = series.run({name: job for name, (job, _) in plan.items()})
    runs = []
    for name, (job, length) in plan.items():
        metrics = results[name].metrics
        if "final_heldout_loss" not in metrics:
            raise ConfigError(
                "the held-out text does not fill one sequence. Increase heldout_fraction, or reduce sequence_length."
            )
        batch = float(job.batch.global_batch_size * job.batch.sequence_length)
        runs.append(Run(metrics["parameters"], float(length), job.optimizer.lr, batch, metrics["final_heldout_loss"]))
    laws = fit_laws(runs, seed=series.basis.job.seed)
    report = {
        "lr": laws.lr.as_dict(),
        "batch_tokens": laws.batch.as_dict(),
        "residual": laws.residual,
        "at_edges": at_edges(runs),
        "runs": [asdict(run) for run in runs],
        "config": dict(series.config),
    }
    files = {"laws.json": json.dumps(report, indent=2), "laws.html": laws_page(laws, runs)}
    return series.publish(
        files, {"residual": laws.residual, **_metrics("lr", laws.lr), **_metrics("batch", laws.batch)}
    )


def sized(model: ModelConfig, option: str) -> ModelConfig:
    """The model with settings changed by an option such as `num_layers=4,hidden_size=64`. Raises ConfigError."""
    values: dict[str, Any] = {name: getattr(model, name) for name in ModelConfig.__dataclass_fields__}
    for part in option.split(","):
        key, equals, value = part.strip().partition("=")
        if key not in values or not equals:
            raise ConfigError(f"--size {option}: {key!r} is not a setting of a model.{did_you_mean(key, values)}")
        values[key] = value
    try:
        return MODEL.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--size {option}: {first['msg']}.") from None


def _plan(
    series: Series, models: Sequence[ModelConfig], tokens: Sequence[int], rates: Sequence[float], batches: Sequence[int]
) -> dict[str, tuple[TrainJob, int]]:
    """Jobs and their training lengths by name: for each size and length, a star around the middle rate and batch."""
    middle_rate, middle_batch = median_low(rates), median_low(batches)
    star = [(rate, middle_batch) for rate in rates]
    star += [(middle_rate, batch) for batch in batches if batch != middle_batch]
    plan = {}
    for number, model in enumerate(models):
        for length in tokens:
            for rate, batch in star:
                plan[f"size{number}-{length}-lr{rate:g}-batch{batch}"] = (
                    _job(series, model, length, rate, batch, max(batches)),
                    length,
                )
    return plan


def _job(series: Series, model: ModelConfig, length: int, rate: float, batch: int, largest: int) -> TrainJob:
    basis = series.basis
    steps = round(length / (batch * basis.job.batch.sequence_length))
    if steps < 2:
        raise ConfigError(
            f"--tokens {length}: fewer than two steps of {batch} sequences. Give more tokens, or smaller batches."
        )
    evaluated = -(-4 * largest // batch)  # the same number of held-out sequences for every batch size
    optimizer = basis.optimizer(steps, lr=rate)
    return basis.with_batch(batch, model=model, steps=steps, optimizer=optimizer, evaluate_batches=evaluated)


def _metrics(name: str, law: PowerLaw) -> dict[str, float]:
    return {f"{name}/{key}": getattr(law, key) for key in ("coefficient", "n_exponent", "d_exponent")}
