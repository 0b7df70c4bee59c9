"""The questions that a model answers to learn from its answers, and the order that they are asked in."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cupola_platform import json_lines
from cupola_platform.conversation import normal_tools, problem
from cupola_platform.json_lines import Row
from cupola_trainer.config.reinforcement import CodeReward, Reward, TaskReward
from cupola_trainer.data.chat import ChatTokenizer, RefusedError, control_tokens, encode_prompt
from cupola_trainer.data.order import order


@dataclass(frozen=True, slots=True)
class Query:
    """One question."""

    row: Row
    """As its file has it: rewards read it."""
    prompt: list[int]
    """Token ids up to where the answer begins."""


def read_queries(
    path: Path, tokenizer: ChatTokenizer, longest: int, rewards: Sequence[Reward]
) -> tuple[list[Query], Counter[str]]:
    """The distinct questions of a file of conversations: each row without its last answer, with its tools. And how many were
    dropped, by reason: `problem`'s, "refused_by_template", "too_long", "duplicate", "no_task" and "no_tests" (nothing to score
    an answer by).

    Args:
        longest: tokens that a prompt may have.

    Raises:
        ConfigError: there is no such file, or a line of it is no JSON object.
    """
    queries: dict[str, Query] = {}
    drops: Counter[str] = Counter()
    control = control_tokens(tokenizer)
    for row in json_lines.read(path):
        found = _query(row, tokenizer, longest, rewards, control)
        if isinstance(found, str):
            drops[found] += 1
            continue
        key = json.dumps([found.row["messages"], normal_tools(row.get("tools"))], sort_keys=True)
        if key in queries:
            drops["duplicate"] += 1
        else:
            queries[key] = found
    return list(queries.values()), drops


def spread(queries: Sequence[Query], count: int) -> list[Query]:
    """At most `count` of them, from all over the file: rows of one task lie together."""
    count = min(count, len(queries))
    return [queries[place * len(queries) // count] for place in range(count)]


def _query(
    row: Row, tokenizer: ChatTokenizer, longest: int, rewards: Sequence[Reward], control: Collection[str]
) -> Query | str:
    messages: Any = row.get("messages")
    reason = problem(messages, control, row.get("tools"))
    if reason not in (None, "no_assistant_turn"):
        return str(reason)
    if any(isinstance(reward, TaskReward) for reward in rewards) and not row.get("task"):
        return "no_task"
    if any(isinstance(reward, CodeReward) for reward in rewards) and not row.get("tests"):
        return "no_tests"
    asked = messages if reason else messages[:-1]
    try:
        prompt = encode_prompt(tokenizer, asked, row.get("tools"))
    except RefusedError as error:
        return error.reason
    return Query({**row, "messages": list(asked)}, prompt) if len(prompt) <= longest else "too_long"


class Order:
    """Which question comes when: any index from 0 on, decided by the seed and, where there are any, by variances."""

    def __init__(self, size: int, seed: int, variances: np.ndarray | None = None) -> None:
        """
        Args:
            variances: [size], of each question's rewards; those with more come first, every time through (Qwen2.5,
                section 4.4). None for a new order each time through.
        """
        self.size, self.seed = size, seed
        self.variances = variances
        self._ranked: np.ndarray | None = None
        if variances is not None:
            shuffled = np.random.default_rng(seed).permutation(size)  # among equals
            self._ranked = shuffled[np.argsort(-variances[shuffled], kind="stable")]

    def place(self, index: int) -> int:
        """Of the `index`-th question ever asked."""
        return order(index, self.size, self.seed) if self._ranked is None else int(self._ranked[index % self.size])
