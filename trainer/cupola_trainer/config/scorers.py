"""What scores a response: one vocabulary for `preferences`, `synthesize` and the rewards of RL."""

from typing import Literal

Scorer = Literal["task", "execution", "reward_model", "judge", "python"]
"""`task`: the verifiable task of the prompt's row. `execution`: the unit tests of the row (`tests`), run on the
response's Python. `reward_model`: a checkpoint with a scalar head. `judge`: a model that is asked for a mark.
`python`: a function."""

PreferenceScorer = Literal["task", "execution", "reward_model"]
SynthesisScorer = Literal["task", "execution", "judge", "reward_model", "none"]

ROW_FIELDS: dict[str, str] = {"task": "task", "execution": "tests"}
"""What a row must have for a scorer to score responses to it."""
