"""How far the sampling engine's log-probabilities are from training's, and what to do about it.

An engine with other kernels or another precision samples from a policy that is not quite the one in training. Yao et
al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training") show that this can ruin a run, and
correct it by truncated importance sampling; masking tokens whose weight is too large is the variant of IcePop (Ling
team 2025) with an upper bound only.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from cupola_platform.errors import StageFailedError
from cupola_trainer.config.rl import RolloutConfig

WIDE = 0.1
"""A token whose log-probabilities differ by more is counted in `sampler_gap_wide`."""
EDGES = torch.logspace(-8, 1, 37, dtype=torch.float64)
"""Edges of the bins from which the percentile is read: four a decade."""
QUARTERS = 4
PREFIX = "sampler_gap_"


def correction(scored: Tensor, sampled: Tensor, config: RolloutConfig) -> Tensor | None:
    """Weights of the token losses [b, s], without gradient: the probability in training over that in sampling,
    truncated at `correction_cap`, or 0 above it. None if nothing is corrected."""
    if config.correction == "none":
        return None
    ratio = (scored - sampled).exp()
    if config.correction == "truncate":
        return ratio.clamp(max=config.correction_cap)
    return ratio.masked_fill(ratio > config.correction_cap, 0)


def gap_sums(scored: Tensor, sampled: Tensor, quarters: Tensor) -> dict[str, Tensor]:
    """Sums over a micro-batch from which `gap_metrics` computes its metrics.

    Args:
        scored, sampled: [b, s], log-probabilities of response tokens in training and in sampling.
        quarters: [b, s], 1 to 4 for the quarter of the response that a trained token is in; 0 for other tokens.
    """
    inside = quarters > 0
    gap = (scored - sampled).abs()[inside].double()
    of = quarters[inside].long() - 1
    edges = EDGES.to(gap.device)
    binned = torch.bincount(torch.bucketize(gap, edges), minlength=len(edges) + 1)
    tokens = torch.bincount(of, minlength=QUARTERS)
    totals = torch.bincount(of, weights=gap, minlength=QUARTERS)
    sums = {f"bin{number}": count for number, count in enumerate(binned)}
    sums |= {f"tokens{number}": count for number, count in enumerate(tokens)}
    sums |= {f"total{number}": total for number, total in enumerate(totals)}
    return {f"{PREFIX}{name}": value for name, value in (sums | {"wide": (gap > WIDE).sum()}).items()}


def gap_metrics(means: Mapping[str, float], most: float | None) -> dict[str, float]:
    """`means` with the sums of `gap_sums` replaced by the mean gap of a token, its 99th percentile (the upper edge of a
    bin, so up to 1.8 times too large), the share of tokens over 0.1, and the mean in each quarter of the responses.

    Args:
        most: the largest mean gap that is accepted; None for any.

    Raises:
        StageFailedError: the mean gap is larger.
    """
    kept = {name: mean for name, mean in means.items() if not name.startswith(PREFIX)}
    given = {name.removeprefix(PREFIX): mean for name, mean in means.items() if name.startswith(PREFIX)}
    tokens = [given.get(f"tokens{number}", 0.0) for number in range(QUARTERS)]
    if not sum(tokens):
        return kept
    totals = [given[f"total{number}"] for number in range(QUARTERS)]
    bins = torch.tensor([given[f"bin{number}"] for number in range(len(EDGES) + 1)], dtype=torch.float64)
    place = int((bins.cumsum(0) >= 0.99 * bins.sum() * (1 - 1e-9)).nonzero()[0])
    mean = sum(totals) / sum(tokens)
    if most is not None and mean > most:
        raise StageFailedError(
            f"Log-probabilities in sampling and in training differ by {mean:.4g} a token, more than rollout.max_gap="
            f"{most:g}. Sample with engine=megatron, correct it (rollout.correction), or raise max_gap."
        )
    edges = [0.0 if bins[0] == bins.sum() else float(EDGES[0]), *EDGES.tolist()[1:], float("inf")]
    metrics = {"sampler_gap": mean, "sampler_gap_p99": edges[place], "sampler_gap_wide": given["wide"] / sum(tokens)}
    for number, (total, count) in enumerate(zip(totals, tokens, strict=True), start=1):
        if count:
            metrics[f"sampler_gap_quarter{number}"] = total / count
    return kept | metrics
