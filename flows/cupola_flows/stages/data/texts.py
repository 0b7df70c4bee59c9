"""Selection of prompts, writing of texts, and filtering by score."""

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from cupola_flows.execution.context import StageContext
from cupola_flows.stages.data import requests
from cupola_flows.stages.data.requests import judging, mark_of
from cupola_flows.stages.data.synthesis import SynthesisSettings
from cupola_flows.stages.data.writers import EndpointWriter, Writer
from cupola_platform import json_lines
from cupola_platform.conversation import words
from cupola_platform.errors import ConfigError
from cupola_trainer.config import ROW_FIELDS
from cupola_trainer.data.shapes import prompt_of
from cupola_trainer.scoring.execution import shares_passed
from cupola_trainer.scoring.tasks import score

Row = dict[str, Any]

ABOUT = ("messages", "finished", "score", "drop")
"""Keys of a text that are not published as its `synthesis`."""


def prompts(folder: Path, stage: SynthesisSettings, seed: int) -> list[Row]:
    """The distinct training prompts that can be scored, shuffled by the seed."""
    rows = list(json_lines.read(folder / "train.jsonl"))
    needs = ROW_FIELDS.get(stage.scorer)
    distinct = {prompt_of(row): row for row in rows if not needs or row.get(needs)}
    if not distinct:
        raise ConfigError(
            f"scorer={stage.scorer} needs conversations with `{needs}`, but there are none. Choose another scorer."
        )
    usable = [row for row in distinct.values() if stage.make == "responses" or _ends_in_text(row)]
    if not usable:
        raise ConfigError(
            f"make={stage.make} needs conversations that end with a prompt and a text response, but there are none."
        )
    random.Random(seed).shuffle(usable)
    return usable[: stage.max_rows]


def documents(folder: Path, stage: SynthesisSettings, seed: int) -> list[Row]:
    """Training documents of the corpus, sampled by their digests. Keeps only the selected ones in memory."""
    taken: list[tuple[int, str, Row]] = []
    with parquet.ParquetFile(folder / "documents.parquet") as file:
        columns = ["id", "source", "split", "digest", "text"]
        for batch in file.iter_batches(columns=columns, batch_size=256):
            for row in batch.to_pylist():
                if row["split"] == "train":
                    draw = random.Random(f"{seed}{row['digest']}").getrandbits(62)
                    text = {**row, "text": row["text"][: stage.document_characters]}
                    add = heapq.heappush if len(taken) < stage.max_rows else heapq.heappushpop
                    add(taken, (-draw, row["id"], text))
    return [row for _, _, row in sorted(taken, key=lambda item: -item[0])]


def _ends_in_text(row: Row) -> bool:
    last: list[Row] = row["messages"][-2:]
    return [turn["role"] for turn in last] == ["user", "assistant"] and bool(last[1].get("content"))


def written(
    ctx: StageContext, stage: SynthesisSettings, writer: Writer, taken: Sequence[Row], file: Path
) -> Iterator[Row]:
    """Yield every text with its score, in order, and append each to `file` at once."""
    done = [json_lines.parse(line) for line in json_lines.whole_lines(file)]
    json_lines.write(file, done)
    work = [(row, sample) for row in taken for sample in range(stage.samples_per_prompt)]
    yield from done
    with file.open("ab") as lines:
        for start in range(len(done), len(work), writer.at_once):
            part = work[start : start + writer.at_once]
            for row in _write(stage, writer, part, ctx.seed + start, start):
                lines.write(json_lines.dump(row))
                lines.flush()
                yield row
            ctx.display.advance(ctx.name, "synthesize", start + len(part), len(work))


def _write(
    stage: SynthesisSettings, writer: Writer, work: Sequence[tuple[Row, int]], seed: int, start: int
) -> list[Row]:
    def say(messages: Any, step: str) -> Any:
        at = f"{step}-{start}"
        return writer.say(messages, temperature=stage.temperature, length=stage.max_new_tokens, seed=seed, step=at)

    rows = [row for row, _ in work]
    made = requests.make(stage, rows, range(seed, seed + len(work)), say)
    scores = _scores(stage, writer, rows, made, seed, start)
    return [
        {
            "id": f"{row['id']}/{stage.make}-{sample}",
            "source": f"synthesis-{row['source']}",
            "messages": text["messages"],
            "task": row.get("task"),
            **({"tools": row["tools"]} if row.get("tools") else {}),
            "finished": text["finished"],
            "synthesis": {
                "of": row["id"],
                "model": writer.name,
                "scorer": stage.scorer,
                "score": value,
                **{key: entry for key, entry in text.items() if key not in ABOUT},
            },
        }
        for (row, sample), text, value in zip(work, made, scores, strict=True)
    ]


def filtered(stage: SynthesisSettings, texts: Sequence[Row]) -> tuple[list[Row], Counter[str]]:
    """The texts to keep, and the number dropped for each reason."""
    drops: Counter[str] = Counter()
    passing: dict[str, list[Row]] = {}
    for text in texts:
        if reason := _reason(stage, text):
            drops[reason] += 1
        else:
            row = {key: value for key, value in text.items() if key != "finished"}
            passing.setdefault(row["synthesis"]["of"], []).append(row)
    if stage.keep == "best":
        best = [max(rows, key=lambda row: row["synthesis"]["score"]) for rows in passing.values()]
        if more := sum(map(len, passing.values())) - len(best):
            drops["not the best"] = more
        return best, drops
    return [row for rows in passing.values() for row in rows], drops


def _reason(stage: SynthesisSettings, text: Row) -> str:
    """Why a text is dropped; empty if it is kept."""
    if not text["finished"]:
        return "unfinished"
    if not text["messages"]:
        return "no prompt and response" if stage.make == "prompts" else "empty"
    if text["synthesis"]["score"] is None:
        return "not to be scored"
    return "" if text["synthesis"]["score"] >= stage.min_score else "low score"


def _scores(
    stage: SynthesisSettings, writer: Writer, rows: Sequence[Row], made: Sequence[Row], seed: int, start: int
) -> list[float]:
    """Scores of the texts; 0 for unusable ones, and for those that a reward model scores later."""
    good = [place for place, text in enumerate(made) if text["messages"]]
    responses = [words(made[place]["messages"][-1]) for place in good]
    scores = [0.0] * len(made)
    if stage.scorer == "task":
        values = [score(rows[place]["task"], response) for place, response in zip(good, responses, strict=True)]
    elif stage.scorer == "execution":
        tests = [rows[place]["tests"] for place in good]
        values = shares_passed(list(zip(responses, tests, strict=True)))
    elif stage.scorer == "judge":
        judge = EndpointWriter(stage.judge) if stage.judge else writer
        prompts = [{"messages": judging(made[place]["messages"])} for place in good]
        marks = judge.say(prompts, temperature=0.0, length=16, seed=seed, step=f"judge-{start}")
        values = [mark_of(mark.text) for mark in marks]
    else:
        values = [stage.min_score if stage.scorer == "none" else 0.0] * len(good)
    for place, value in zip(good, values, strict=True):
        scores[place] = value
    return scores


def mean_score(rows: Sequence[Row]) -> float:
    return float(sum(row["synthesis"]["score"] for row in rows) / max(len(rows), 1))
