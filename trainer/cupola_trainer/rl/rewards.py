"""Rewards of responses: a weighted sum of scorers. If a scorer fails, only that response is dropped."""

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist

from cupola_platform.errors import ConfigError, ServiceError
from cupola_platform.json_lines import Row
from cupola_platform.json_service import ask
from cupola_trainer import runtime
from cupola_trainer.config.scorers import (
    ExecutionReward,
    HttpReward,
    PatternReward,
    PythonReward,
    Reward,
    RewardModelReward,
    TaskReward,
)
from cupola_trainer.scoring.execution import passed
from cupola_trainer.scoring.tasks import score

ScoreFunction = Callable[[Row, str], float]


@dataclass(frozen=True)
class Scores:
    """The rewards of responses."""

    total: np.ndarray
    """[responses]; NaN if a scorer failed, in which case the response is left out."""
    parts: dict[str, np.ndarray]
    """Unweighted scores of each reward [responses]."""
    drops: Counter[str]
    """Number of failures by reason: "reward_raised", "reward_not_finite", "reward_unanswered"."""

    def followed_by(self, other: "Scores") -> "Scores":
        """Those of both."""
        parts = {name: np.concatenate([part, other.parts[name]]) for name, part in self.parts.items()}
        return Scores(np.concatenate([self.total, other.total]), parts, self.drops + other.drops)


def name_of(reward: Reward) -> str:
    """A reward's name in metrics."""
    return reward.function.split(":")[-1] if isinstance(reward, PythonReward) else reward.scorer.removeprefix("reward_")


def score_function(reward: Reward) -> ScoreFunction | None:
    """A reward as a function of a row and a response's text; None for a reward model, which scores tokens.

    Raises:
        ConfigError: the function cannot be imported or is not callable.
    """
    if isinstance(reward, TaskReward):
        return _by_task
    if isinstance(reward, ExecutionReward):
        return lambda row, response: passed(response, row["tests"], reward.timeout_seconds, reward.memory_bytes)
    if isinstance(reward, HttpReward):
        return lambda row, response: _by_service(reward, row, response)
    if isinstance(reward, PatternReward):
        wanted = re.compile(reward.pattern, re.DOTALL)
        return lambda row, response: float(wanted.fullmatch(response) is not None)
    return None if isinstance(reward, RewardModelReward) else load_function(reward.function)


def load_function(name: str) -> ScoreFunction:
    """Import the function `package.module:function`.

    Raises:
        ConfigError: it cannot be imported or is not callable.
    """
    module, _, function = name.partition(":")
    try:
        loaded: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The reward {name} cannot be loaded: {error}. Give package.module:function, importable by the job's "
            "processes."
        ) from error
    if not callable(loaded):
        raise ConfigError(f"The reward {name} is a {type(loaded).__name__}, not a function. Give a function.")
    return loaded  # type: ignore[no-any-return]


def score_responses(
    rewards: Sequence[Reward], rows: Sequence[Row], responses: Sequence[str]
) -> dict[str, list[float | str]]:
    """Score all responses with every reward that reads text: a number, or the reason there is none. Ranks share the
    work; all get the result."""
    mine = range(runtime.rank(), len(rows), runtime.world_size())
    verdicts: dict[str, list[float | str]] = {}
    for reward in rewards:
        function = score_function(reward)
        if function is None:
            continue
        with ThreadPoolExecutor(_threads(reward)) as pool:
            share = list(pool.map(lambda index, call=function: _verdict(call, rows[index], responses[index]), mine))  # type: ignore[misc]
        shares: list[list[float | str]] = [[]] * runtime.world_size()
        dist.all_gather_object(shares, share)
        together: list[float | str] = [0.0] * len(rows)
        for rank, part in enumerate(shares):
            together[rank :: runtime.world_size()] = part
        verdicts[name_of(reward)] = together
    return verdicts


def combine(rewards: Sequence[Reward], verdicts: dict[str, list[float | str]]) -> Scores:
    """The weighted sum of rewards; NaN if any of them failed."""
    drops: Counter[str] = Counter()
    total: np.ndarray | None = None
    parts = {}
    for reward in rewards:
        values = verdicts[name_of(reward)]
        drops.update(value for value in values if isinstance(value, str))
        part = np.array([math.nan if isinstance(value, str) else value for value in values], dtype=np.float64)
        parts[name_of(reward)] = part
        total = reward.weight * part if total is None else total + reward.weight * part
    assert total is not None
    return Scores(total, parts, drops)


def check_rewards(rewards: Sequence[Reward]) -> None:
    """Check that functions can be loaded and that names are unique, since metrics use them.

    Raises:
        ConfigError: a function cannot be loaded, or two rewards have the same name.
    """
    names = [name_of(reward) for reward in rewards]
    for name, reward in zip(names, rewards, strict=True):
        score_function(reward)
        if names.count(name) > 1:
            raise ConfigError(
                f"rewards: {name} is listed {names.count(name)} times. Give each reward once, with its weight."
            )


def _verdict(function: ScoreFunction, row: Row, response: str) -> float | str:
    try:
        value = float(function(row, response))
    except ConfigError:
        raise
    except ServiceError:
        return "reward_unanswered"
    except Exception:  # noqa: BLE001 - any failure of a reward drops only this response
        return "reward_raised"
    return value if math.isfinite(value) else "reward_not_finite"


def _threads(reward: Reward) -> int:
    """How many responses to score at a time."""
    if isinstance(reward, ExecutionReward):
        return 4  # each waits for a subprocess
    return reward.concurrency if isinstance(reward, HttpReward) else 1


def _by_service(reward: HttpReward, row: Row, response: str) -> float:
    return ask(
        reward.url,
        {"row": row, "response": response},
        lambda answer: float(answer["reward"]),
        key_variable=reward.key_variable,
        timeout=reward.timeout_seconds,
        retries=reward.retries,
    )


def _by_task(row: Row, response: str) -> float:
    failures: Counter[str] = Counter()
    value = score(row["task"], response, failures)
    if failures:
        raise ValueError("the task's scorer failed on the response")
    return value
