"""`cupola mix`: trains small models on different mixtures, fits a law for each domain's loss, and proposes the best
mixture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cupola_flows.experiments.series import Series
from cupola_platform.artifacts import Artifact
from cupola_platform.errors import ConfigError
from cupola_platform.fitting.mixtures import draw_mixtures, propose
from cupola_platform.fitting.plots import mixture_page
from cupola_trainer.config import EvaluateJob, TrainJob


def mix(
    series: Series,
    *,
    runs: int,
    steps: int,
    targets: Mapping[str, float],
    max_epochs: Mapping[str, float],
    heldout_tokens: int,
) -> Artifact:
    """Train `runs` models, evaluate each on every domain's held-out text, and propose weights.

    Raises:
        ConfigError: fewer than two sources are large enough, or there are too few runs.
    """
    basis = series.basis
    domains = [
        name
        for name, splits in basis.sources.items()
        if splits["train"]["tokens"] > basis.job.batch.sequence_length and splits["heldout"]["tokens"]
    ]
    if len(domains) < 2:
        raise ConfigError(
            f"{basis.recipe.name!r} has {len(domains)} source(s) with enough tokens, but a mixture needs at least two."
        )
    if runs < len(domains) + 2:
        raise ConfigError(f"--runs {runs} is too few for {len(domains)} sources. Give at least {len(domains) + 2}.")
    if artifact := series.published():
        return artifact
    mixtures = draw_mixtures([basis.weights.get(name, 0.0) for name in domains], runs, basis.job.seed)
    trained = series.run(
        {f"run-{i:03}": _training(series, domains, mixture, steps) for i, mixture in enumerate(mixtures)}
    )
    checkpoints = {name: result.folder for name, result in trained.items()}
    measured = series.run(
        {
            f"on-{name}": EvaluateJob(
                output=series.folder,
                checkpoints=checkpoints,
                tokens=_only(series, name),
                window=basis.job.batch.sequence_length,
                max_heldout_tokens=heldout_tokens,
            )
            for name in domains
        }
    )
    losses = np.array([[measured[f"on-{name}"].metrics[f"heldout_loss/{run}"] for name in domains] for run in trained])
    budget = basis.stage.steps * basis.job.batch.global_batch_size * basis.job.batch.sequence_length
    most = {name: cap * basis.sources[name]["train"]["tokens"] / budget for name, cap in max_epochs.items()}
    proposal = propose(domains, mixtures, losses, targets=targets or None, most=most, seed=basis.job.seed)
    report: dict[str, Any] = {
        "weights": proposal.weights,
        "low": proposal.low,
        "high": proposal.high,
        "baseline": dict(zip(domains, mixtures[0].tolist(), strict=True)),
        "predicted_loss": proposal.predicted,
        "baseline_loss": proposal.baseline,
        "residual": proposal.residual,
        "left_out_error": proposal.error,
        "rank_correlation": proposal.rank_correlation,
        "laws": {name: {"floor": law.floor, "slopes": law.slopes.tolist()} for name, law in proposal.laws.items()},
        "runs": [
            {
                "weights": dict(zip(domains, r.tolist(), strict=True)),
                "loss": dict(zip(domains, row.tolist(), strict=True)),
            }
            for r, row in zip(mixtures, losses, strict=True)
        ],
        "config": dict(series.config),
    }
    return series.publish(
        {"mixture.json": json.dumps(report, indent=2), "mixture.html": mixture_page(proposal, report["baseline"])},
        {"predicted_loss": proposal.predicted, "baseline_loss": proposal.baseline}
        | {f"weight/{name}": weight for name, weight in proposal.weights.items()},
    )


def _training(series: Series, domains: list[str], mixture: np.ndarray, steps: int) -> TrainJob:
    basis = series.basis
    weights = dict.fromkeys(basis.sources, 0.0) | dict(zip(domains, mixture.tolist(), strict=True))
    data = basis.job.data.but(weights=weights)
    job = basis.job.but(steps=steps, data=data, optimizer=basis.optimizer(steps), evaluate_batches=1)
    return job


def _only(series: Series, source: str) -> Path:
    """A view of the tokens with the held-out text of one source only."""
    tokens = series.basis.tokens.path
    view = series.folder / "views" / source
    view.mkdir(parents=True, exist_ok=True)
    for name in ("shards", "tokenizer"):
        if not (view / name).exists():
            (view / name).symlink_to((tokens / name).resolve(), target_is_directory=True)
    index = json.loads((tokens / "index.json").read_text())
    counts = index["sources"][source]
    index["sources"] = {source: {"train": {"documents": 0, "tokens": 0}, "heldout": counts["heldout"]}}
    (view / "index.json").write_text(json.dumps(index))
    return view
