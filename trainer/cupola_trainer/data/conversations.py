"""Conversation and preference rows from JSON lines to token arrays: what the SFT and DPO objectives read. No torch."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cupola_platform.errors import ConfigError
from cupola_trainer.data.chat import ChatTokenizer, encode_answer, encode_conversation, encode_prompt, problem

Row = dict[str, Any]
Sample = Mapping[str, np.ndarray]


def read_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file.

    Raises:
        ConfigError: there is no such file, or a line is not a JSON object; names the line.
    """
    if not path.is_file():
        raise ConfigError(f"There is no {path}. Give the folder of an artifact of the right kind.")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path}, line {number}: not JSON ({error.msg}). Mend or remove the line.") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{path}, line {number}: not a JSON object. Mend or remove the line.")
            yield row


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write objects as JSON lines, UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def load_conversations(path: Path, tokenizer: ChatTokenizer, sequence_length: int) -> tuple[list[Sample], Counter[str]]:
    """Encoded conversations {"tokens" [n], "mask" [n]}, and how many were dropped, by reason.

    Besides `chat.problem`'s reasons: "too_long", when the tokens do not fit `sequence_length` + 1. Cutting one short
    would teach answers without an end.
    """

    def encode(row: Row) -> Sample | str:
        if reason := problem(row.get("messages")):
            return reason
        tokens, mask = encode_conversation(tokenizer, row["messages"])
        last = int(mask.nonzero()[0][-1]) + 1  # what follows the last answer teaches nothing
        return {"tokens": tokens[:last], "mask": mask[:last]} if last <= sequence_length + 1 else "too_long"

    return _load(path, encode)


def load_preferences(path: Path, tokenizer: ChatTokenizer, sequence_length: int) -> tuple[list[Sample], Counter[str]]:
    """Encoded pairs {"prompt" [p], "chosen" [c], "rejected" [r]}, answers with their end, and drops by reason."""

    def encode(row: Row) -> Sample | str:
        for answer in (row.get("chosen"), row.get("rejected")):
            turn = {"role": "assistant", "content": answer}
            if reason := problem([*(row.get("messages") or []), turn]):
                return reason
        prompt = encode_prompt(tokenizer, row["messages"])
        answers = {name: encode_answer(tokenizer, row[name]) for name in ("chosen", "rejected")}
        if len(prompt) + max(len(answer) for answer in answers.values()) > sequence_length + 1:
            return "too_long"
        return {name: np.array(ids, dtype=np.int64) for name, ids in {"prompt": prompt, **answers}.items()}

    return _load(path, encode)


def _load(path: Path, encode: Callable[[Row], Sample | str]) -> tuple[list[Sample], Counter[str]]:
    samples: list[Sample] = []
    drops: Counter[str] = Counter()
    for row in read_rows(path):
        outcome = encode(row)
        if isinstance(outcome, str):
            drops[outcome] += 1
        else:
            samples.append(outcome)
    return samples, drops
