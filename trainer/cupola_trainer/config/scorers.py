"""The ways to score a response, shared by `preferences`, `synthesize` and RL rewards."""

from typing import Literal

Scorer = Literal["task", "execution", "reward_model", "judge", "python"]
"""`task`: the row's verifiable task. `execution`: the row's unit tests (`tests`), run on the response's Python.
`reward_model`: a checkpoint with a scalar head. `judge`: a model prompted for a grade. `python`: a function."""

PreferenceScorer = Literal["task", "execution", "reward_model"]
SynthesisScorer = Literal["task", "execution", "judge", "reward_model", "none"]

ROW_FIELDS: dict[str, str] = {"task": "task", "execution": "tests"}
"""The field that a scorer needs in a row."""
