"""Sampling weights of sources: temperature over languages, caps on epochs."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow
from pyarrow import parquet

from cupola_platform.errors import ConfigError


def training_tokens(folder: Path) -> dict[str, dict[str, int]]:
    """Training tokens of a `tokens` artifact by source and language."""
    tokens: dict[str, dict[str, int]] = {}
    columns = ["source", "language", "split", "tokens"]
    with parquet.ParquetFile(folder / "documents.parquet") as file:
        for batch in file.iter_batches(columns=columns, batch_size=1 << 16):
            table = pyarrow.Table.from_batches([batch])
            summed = table.group_by(["split", "source", "language"]).aggregate([("tokens", "sum")])
            for row in summed.to_pylist():
                if row["split"] == "train":
                    of = tokens.setdefault(row["source"], {})
                    of[row["language"]] = of.get(row["language"], 0) + row["tokens_sum"]
    return tokens


def with_temperature(
    weights: Mapping[str, float], tokens: Mapping[str, Mapping[str, int]], temperature: float
) -> dict[str, float]:
    """Weights that balance languages: a language's share p becomes proportional to p^(1/temperature) (Conneau et al.
    2020, section 3.1). A source is scaled by the mean of its languages' factors, weighted by tokens.

    Args:
        weights: sampling weight of each source.
        tokens: tokens by source and language.
        temperature: 1 keeps the weights; above 1, rare languages are sampled more often.
    """
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    parts = {name: {of: n / sum(tokens[name].values()) for of, n in tokens[name].items()} for name in shares}
    languages: dict[str, float] = {}
    for name, share in shares.items():
        for language, part in parts[name].items():
            languages[language] = languages.get(language, 0.0) + share * part
    flat = {language: p ** (1 / temperature) for language, p in languages.items() if p > 0}
    factors = {language: p / sum(flat.values()) / languages[language] for language, p in flat.items()}
    return {
        name: share * sum(part * factors.get(language, 0.0) for language, part in parts[name].items())
        for name, share in shares.items()
    }


def with_epoch_caps(
    weights: Mapping[str, float], tokens: Mapping[str, int], budget: int, max_epochs: Mapping[str, float]
) -> dict[str, float]:
    """Weights under which no source exceeds its epoch cap; the excess is distributed over the others in proportion.

    Args:
        tokens: training tokens of each source.
        budget: tokens that training reads.
        max_epochs: maximum epochs by source.

    Raises:
        ConfigError: all sources together do not reach the budget.
    """
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    bound = {name: max_epochs[name] * tokens[name] / budget for name in shares if name in max_epochs}
    capped: dict[str, float] = {}
    while over := [name for name in shares if name not in capped and shares[name] > bound.get(name, 2.0) * (1 + 1e-9)]:
        capped |= {name: bound[name] for name in over}
        free = {name: weights[name] for name in shares if name not in capped}
        left = 1 - sum(capped.values())
        if not sum(free.values()):
            raise ConfigError(
                f"max_epochs allows only {1 - left:.0%} of the {budget:,} tokens. Raise a cap, add text, or train "
                "fewer steps."
            )
        shares = capped | {name: left * weight / sum(free.values()) for name, weight in free.items()}
    return {name: shares[name] for name in weights}
