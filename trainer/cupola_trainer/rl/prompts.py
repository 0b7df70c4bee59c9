"""The prompts for rollouts, and the order in which they are used."""

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
from cupola_trainer.config.scorers import ROW_FIELDS, Reward
from cupola_trainer.data.chat import ChatTokenizer, RefusedError, control_tokens, encode_prompt
from cupola_trainer.data.order import order


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to the response."""

    row: Row
    """The row of the file, for the rewards."""
    tokens: list[int]
    """Token ids up to the start of the response."""


def read_prompts(
    path: Path, tokenizer: ChatTokenizer, longest: int, rewards: Sequence[Reward]
) -> tuple[list[Prompt], Counter[str]]:
    """The distinct prompts of a file of conversations (rows without their last response, with tools), and the number of
    dropped rows by reason: `problem`'s, "refused_by_template", "too_long", "duplicate", "no_task" and "no_tests" (no
    way to score a response).

    Args:
        longest: maximum tokens per prompt.

    Raises:
        ConfigError: the file does not exist, or a line is not a JSON object.
    """
    prompts: dict[str, Prompt] = {}
    drops: Counter[str] = Counter()
    control = control_tokens(tokenizer)
    for row in json_lines.read(path):
        prompt = _prompt(row, tokenizer, longest, rewards, control)
        if isinstance(prompt, str):
            drops[prompt] += 1
            continue
        key = json.dumps([prompt.row["messages"], normal_tools(row.get("tools"))], sort_keys=True)
        if key in prompts:
            drops["duplicate"] += 1
        else:
            prompts[key] = prompt
    return list(prompts.values()), drops


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts, spread over the file, because rows of a task are adjacent."""
    count = min(count, len(prompts))
    return [prompts[place * len(prompts) // count] for place in range(count)]


def _prompt(
    row: Row, tokenizer: ChatTokenizer, longest: int, rewards: Sequence[Reward], control: Collection[str]
) -> Prompt | str:
    messages: Any = row.get("messages")
    reason = problem(messages, control, row.get("tools"))
    if reason not in (None, "no_assistant_turn"):
        return str(reason)
    for scorer, field in ROW_FIELDS.items():
        if any(reward.scorer == scorer for reward in rewards) and not row.get(field):
            return f"no_{field}"
    context = messages if reason else messages[:-1]
    try:
        tokens = encode_prompt(tokenizer, context, row.get("tools"))
    except RefusedError as error:
        return error.reason
    return Prompt({**row, "messages": list(context)}, tokens) if len(tokens) <= longest else "too_long"


class PromptOrder:
    """The prompt for any index >= 0, determined by the seed and, if given, by variances."""

    def __init__(self, size: int, seed: int, variances: np.ndarray | None = None) -> None:
        """
        Args:
            variances: [size], of each prompt's rewards; prompts with higher variance come first in every epoch
                (Qwen2.5, section 4.4). None for a new random order in every epoch.
        """
        self.size, self.seed = size, seed
        self.variances = variances
        self._ranked: np.ndarray | None = None
        if variances is not None:
            shuffled = np.random.default_rng(seed).permutation(size)  # breaks ties
            self._ranked = shuffled[np.argsort(-variances[shuffled], kind="stable")]

    def place(self, index: int) -> int:
        """Number of the prompt used at `index`."""
        return order(index, self.size, self.seed) if self._ranked is None else int(self._ranked[index % self.size])
