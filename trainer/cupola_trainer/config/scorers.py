"""The ways to score a response, shared by `preferences`, `synthesize` and RL rewards, and the settings of rewards."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.strict import STRICT, PublicUrl

Scorer = Literal["task", "execution", "reward_model", "judge", "python", "http", "pattern"]
"""`task`: the row's verifiable task. `execution`: the row's unit tests (`tests`), run on the response's Python.
`reward_model`: a checkpoint with a scalar head. `judge`: a model prompted for a grade. `python`: a function.
`http`: a service. `pattern`: a regular expression."""

PreferenceScorer = Literal["task", "execution", "reward_model"]
SynthesisScorer = Literal["task", "execution", "judge", "reward_model", "none"]

ROW_FIELDS: dict[str, str] = {"task": "task", "execution": "tests"}
"""The field that a scorer needs in a row."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskReward:
    """The scorer of the prompt's task (reasoning-gym): 1 for a correct response, less otherwise."""

    scorer: Literal["task"] = "task"
    weight: float = 1.0
    """Weight of the score in the total reward."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutionReward:
    """The share of a row's unit tests that the response's Python passes. The code runs in a sandbox without network or
    write access. Rows carry {"tests": [Python statements]}."""

    scorer: Literal["execution"] = "execution"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """Limit on CPU time and on wall time, for all tests of a response together."""
    memory_bytes: int = Field(default=512 * 2**20, ge=2**26)
    """Address space limit of the process."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardModelReward:
    """A reward model's score of prompt and response."""

    scorer: Literal["reward_model"] = "reward_model"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    checkpoint: Path
    """Folder of a checkpoint with a scalar head and the policy's tokenizer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PythonReward:
    """A Python function of the prompt's row and the response text: `function(row, response) -> float`."""

    scorer: Literal["python"] = "python"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:function`, importable by the job's processes."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HttpReward:
    """A service's score: it is sent {"row": ..., "response": ...} as JSON and answers {"reward": number}."""

    scorer: Literal["http"] = "http"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    url: PublicUrl
    """Where to POST. It must not contain a user, password or key, because recipes are stored and shown."""
    key_variable: str = "CUPOLA_REWARD_KEY"
    """Environment variable with the key, sent as a bearer token; if it is unset, none is sent."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Seconds to wait for one score."""
    retries: int = Field(default=2, ge=0)
    """Further attempts after a late, missing or unreadable score."""
    concurrency: int = Field(default=16, ge=1)
    """Requests at a time, of each rank."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PatternReward:
    """1 for a response that has the wanted form, else 0."""

    scorer: Literal["pattern"] = "pattern"
    weight: float = 1.0
    """Weight of the score in the total reward."""
    pattern: str = Field(min_length=1)
    """A regular expression that the whole response must match; `.` matches newlines too."""

    @model_validator(mode="after")
    def _compiles(self) -> "PatternReward":
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is not a regular expression: {error}") from None
        return self


Reward = Annotated[
    TaskReward | ExecutionReward | RewardModelReward | PythonReward | HttpReward | PatternReward,
    Field(discriminator="scorer"),
]
