"""Encoding conversation and preference rows from JSON lines, for the SFT and DPO objectives. Imports no torch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cupola_platform.conversation import as_message, problem
from cupola_platform.errors import ConfigError
from cupola_platform.json_lines import Row, read_numbered
from cupola_platform.json_lines import read as read_rows
from cupola_platform.json_lines import write as write_rows
from cupola_platform.rows.drops import Drops
from cupola_trainer.data.chat import (
    ChatTokenizer,
    RefusedError,
    control_tokens,
    encode_conversation,
    encode_response,
    turn_end,
)

__all__ = ["Sample", "load_conversations", "load_preferences", "read_rows", "refuse_empty", "tag_of", "write_rows"]

Sample = Mapping[str, np.ndarray]


def load_conversations(path: Path, tokenizer: ChatTokenizer, sequence_length: int) -> tuple[list[Sample], Drops]:
    """Encoded conversations {"tokens" [n], "mask" [n]}, and drops by reason.

    Besides `problem`'s reasons: "refused_by_template"; "too_long", if the tokens do not fit `sequence_length` + 1.
    Truncating them would teach responses without an end.

    Raises:
        ConfigError: the file is malformed, or the tokenizer's chat template is unusable for training.
    """
    control = control_tokens(tokenizer)
    turn_end(tokenizer)

    def encode(row: Row) -> Sample | str:
        if reason := problem(row.get("messages"), control, row.get("tools")):
            return reason
        tokens, mask = encode_conversation(tokenizer, row["messages"], row.get("tools"))
        last = int(mask.nonzero()[0][-1]) + 1  # nothing is trained on after the last response
        return {"tokens": tokens[:last], "mask": mask[:last]} if last <= sequence_length + 1 else "too_long"

    return _load(path, encode)


def load_preferences(path: Path, tokenizer: ChatTokenizer, sequence_length: int) -> tuple[list[Sample], Drops]:
    """Encoded pairs {"prompt" [p], "chosen" [c], "rejected" [r], "margin" [], "tag" []}, responses with end token, and
    drops by reason.

    A response is a text, or a list with the one message that calls tools; its tokens are those that SFT trains on.
    "tag": see `tag_of`. "margin": the row's own, else the difference of its scores, else 0. Drop reasons besides those
    of `problem` and `load_conversations`: "equal_responses", which carry no preference; "wrong_order", where the
    rejected response has the better score.
    """
    control = control_tokens(tokenizer)
    turn_end(tokenizer)

    def encode(row: Row) -> Sample | str:
        asked, tools = row.get("messages") or [], row.get("tools")
        responses = {side: as_message(row.get(side)) for side in ("chosen", "rejected")}
        for response in responses.values():
            if reason := problem([*asked, response], control, tools):
                return reason
        if (margin := _margin(row)) is None:
            return "wrong_order"
        (prompt, chosen), (_, rejected) = (
            encode_response(tokenizer, asked, response, tools) for response in responses.values()
        )
        if chosen == rejected:
            return "equal_responses"
        if len(prompt) + max(len(chosen), len(rejected)) > sequence_length + 1:
            return "too_long"
        tokens = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        arrays = {name: np.array(ids, dtype=np.int64) for name, ids in tokens.items()}
        return {**arrays, "margin": np.array(margin, dtype=np.float32), "tag": np.array(tag_of(row))}

    return _load(path, encode)


def tag_of(row: Row) -> str:
    """The tag that a row is balanced under: its own, else its task's name, else its source, else empty."""
    task = row.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    return str(row.get("tag") or name or row.get("source") or "")


def _margin(row: Row) -> float | None:
    """None if the scores contradict the order."""
    scores = [row.get(name) for name in ("chosen_score", "rejected_score")]
    better, worse = (float(score) if isinstance(score, int | float) else 0.0 for score in scores)
    if None not in scores and better < worse:
        return None
    margin = row.get("margin")
    return float(margin) if isinstance(margin, int | float) else better - worse if None not in scores else 0.0


def refuse_empty(samples: list[Sample], drops: Drops, file: Path, what: str, sequence_length: int) -> None:
    """Refuse a training file with no usable rows.

    Raises:
        ConfigError: lists what was dropped and where, most common reason first.
    """
    if samples:
        return
    move = "Try a longer sequence_length" if set(drops) == {"too_long"} else "Fix the rows, or train on others"
    raise ConfigError(
        f"{file.parent} has no usable {what} that fits sequence_length={sequence_length}; dropped: "
        f"{drops.in_words()}. {move}."
    )


def _load(path: Path, encode: Callable[[Row], Sample | str]) -> tuple[list[Sample], Drops]:
    samples: list[Sample] = []
    drops = Drops()
    for number, row in read_numbered(path):
        try:
            outcome = encode(row)
        except RefusedError as error:
            outcome = error.reason
        if isinstance(outcome, str):
            drops.drop(outcome, f"{path.name}, line {number}")
        else:
            samples.append(outcome)
    return samples, drops
