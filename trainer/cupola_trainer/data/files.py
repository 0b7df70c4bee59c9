"""Conversations and pairs from files of others: JSON lines, or a Hugging Face dataset, in the shapes that are about.

Called in process by flows; imports no torch.
"""

import glob
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.artifacts.digests import digest_file, digest_files
from cupola_platform.errors import SourceError
from cupola_platform.json_lines import Row
from cupola_platform.strict import STRICT
from cupola_trainer.data.chat import problem

SPEAKERS = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system",
            "tool": "tool", "observation": "tool"}  # fmt: skip
"""ShareGPT's names of roles."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RowFiles:
    """Files of rows, or a dataset of rows."""

    path: str | None = None
    """JSON-lines files (.jsonl, .jsonl.gz), `**` allowed. Either this or `dataset`."""

    dataset: str | None = None
    """A dataset of the Hugging Face hub, or a local folder of one."""

    split: str = "train"
    """The dataset's split."""

    source: str | None = None
    """What the rows are filed under; none for the file's or the dataset's name."""

    tag: str | None = None
    """A tag for rows that have none of their own: tags can be balanced."""

    @model_validator(mode="after")
    def _one_place(self) -> "RowFiles":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("rows come either from `path` or from a `dataset`: give one of them")
        return self


def state(files: RowFiles) -> str:
    """What the files hold, for a fingerprint: their digests; of a dataset on the hub, its name.

    Raises:
        SourceError: no file matches.
    """
    if files.path:
        return digest_files((str(path), digest_file(path)) for path in _matching(files.path))
    folder = Path(str(files.dataset)).expanduser()
    if not folder.is_dir():
        return f"{files.dataset}/{files.split}"
    return digest_files((str(path), digest_file(path)) for path in folder.rglob("*") if path.is_file())


def read_conversations(files: RowFiles, drops: Counter[str]) -> Iterator[Row]:
    """Rows {"id", "source", "messages", "task": null} and "tools", "tag", "tests" where there are any; what is not usable is
    counted.

    A row has "messages", ShareGPT's "conversations", a "prompt" with a "completion", or Alpaca's "instruction". "tests" are
    Python that an answer has to pass: a text, or a list of them.

    Raises:
        SourceError: a file or a dataset cannot be read; names the line.
    """
    for name, row in _rows(files):
        messages = _messages(row)
        if reason := problem(messages) or _problem_of_tests(row.get("tests")):
            drops[reason] += 1
        else:
            yield {"id": name, "source": files.source or _stem(files), "messages": messages, "task": None} | _extras(
                row, files
            )


def read_pairs(files: RowFiles, drops: Counter[str]) -> Iterator[Row]:
    """Rows {"id", "source", "messages", "chosen", "rejected", "chosen_score", "rejected_score", "task": null}.

    "chosen" and "rejected" are answers, or whole conversations of which the last turn is the answer. Besides
    `chat.problem`'s reasons: "equal_answers", "other_prompts" (the two conversations differ before their ends).

    Raises:
        SourceError: a file or a dataset cannot be read; names the line.
    """
    for name, row in _rows(files):
        prompt = _prompt(row.get("prompt", row.get("messages")))
        (before, chosen), (other, rejected) = (_answer(row.get(side), prompt) for side in ("chosen", "rejected"))
        reason = next(
            filter(None, (problem([*start, *end]) for start, end in ((before, chosen), (other, rejected)))), None
        )
        if before != other:
            drops["other_prompts"] += 1
        elif reason:
            drops[reason] += 1
        elif chosen == rejected:
            drops["equal_answers"] += 1
        else:
            yield {
                "id": name,
                "source": files.source or _stem(files),
                "messages": before,
                "chosen": chosen[0]["content"],
                "rejected": rejected[0]["content"],
                "chosen_score": row.get("chosen_score"),
                "rejected_score": row.get("rejected_score"),
                "task": None,
            } | _extras(row, files)


def _messages(row: Row) -> Any:
    if "conversations" in row and isinstance(row["conversations"], Sequence):
        turns = [_shared(turn) for turn in row["conversations"]]
        return [{"role": "system", "content": row["system"]}, *turns] if row.get("system") else turns
    if "instruction" in row:
        question = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return [*_prompt(question), {"role": "assistant", "content": row.get("output")}]
    if "prompt" in row:
        before, answer = _answer(row.get("completion"), _prompt(row["prompt"]))
        return [*before, *answer]
    return row.get("messages")


def _shared(turn: Any) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    return {"role": SPEAKERS.get(turn["from"], turn["from"]), "content": turn.get("value")}


def _prompt(value: Any) -> list[Any]:
    return [{"role": "user", "content": value}] if isinstance(value, str) else list(value or [])


def _answer(value: Any, prompt: list[Any]) -> tuple[list[Any], list[Any]]:
    """What comes before an answer, and the answer as a turn. A whole conversation brings its own beginning."""
    if not isinstance(value, list) or not value:
        return prompt, [{"role": "assistant", "content": value}]
    return (value[:-1] if len(value) > 1 else prompt), value[-1:]


def _extras(row: Row, files: RowFiles) -> Row:
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
    found = {"tools": tools, "tag": row.get("tag") or files.tag, "margin": row.get("margin")}
    found["tests"] = row.get("tests")
    return {name: value for name, value in found.items() if value}


def _problem_of_tests(tests: Any) -> str | None:
    parts = tests if isinstance(tests, list) else [tests or ""]
    return None if all(isinstance(part, str) for part in parts) else "malformed_tests"


def _rows(files: RowFiles) -> Iterator[tuple[str, Row]]:
    if files.dataset:
        yield from ((f"{files.dataset}/{number}", row) for number, row in enumerate(_dataset(files)))
        return
    for path in _matching(str(files.path)):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise SourceError(f"{path}, line {number} is not JSON: {error}. Mend or remove the line.") from None
                if not isinstance(row, dict):
                    raise SourceError(f"{path}, line {number} is no JSON object. Mend or remove the line.")
                yield f"{path.name}/{number}", row


def _dataset(files: RowFiles) -> Iterator[Row]:
    import datasets

    folder = Path(str(files.dataset)).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            rows = saved[files.split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            name = str(folder) if folder.is_dir() else files.dataset
            rows = datasets.load_dataset(name, split=files.split, streaming=True)
        yield from rows
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"dataset={files.dataset!r}, split={files.split!r} cannot be read: {first}. "
            "Give a dataset of the hub that this machine can reach, or a local folder."
        ) from error


def _matching(pattern: str) -> list[Path]:
    found = [Path(name) for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
    files = [path for path in found if path.is_file()]
    if not files:
        raise SourceError(f"path={pattern!r} matches no file. Give JSON lines (.jsonl, .jsonl.gz).")
    return files


def _stem(files: RowFiles) -> str:
    return Path(str(files.path or files.dataset)).name.split(".")[0].replace("*", "") or "files"
