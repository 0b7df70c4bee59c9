"""The stage `synthesize`: conversations that a model behind an endpoint writes, each with its prompt, model and score."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cupola_flows.context import StageContext
from cupola_flows.execution import runs
from cupola_flows.stages.synthesis import SynthesizeStage
from cupola_platform.artifacts import Artifact
from cupola_platform.endpoint import Completion, Endpoint
from cupola_platform.errors import ConfigError
from cupola_trainer.evaluation.tasks import score

Row = dict[str, Any]

REWORD = (
    "Write the following request in other words. Keep its meaning and every number and name in it. Give the new request "
    "only.\n\n{question}"
)
JUDGE = (
    "Mark the answer to the question from 0 (useless or wrong) to 10 (right, complete, clear). Give the mark only.\n\n"
    "Question:\n{question}\n\nAnswer:\n{answer}"
)


def synthesize(ctx: StageContext, stage: SynthesizeStage, conversations: Artifact) -> Artifact:
    """Ask the model, filter what it says, and publish what is left; what was answered before a stop is not asked again.

    Raises:
        ConfigError: no question to ask, a filter that has nothing to go by, or nothing passes it.
        ServiceError: the endpoint does not answer.
    """
    taken = questions(conversations.path, stage, ctx.seed)
    answered = ctx.folder / "answered.jsonl"
    drops: Counter[str] = Counter()
    kept: list[Row] = []
    for row in _answered(ctx, stage, taken, answered):
        if row["drop"]:
            drops[row["drop"]] += 1
        else:
            kept.append({key: value for key, value in row.items() if key != "drop"})
    held = {row["id"] for row in taken[: max(1, round(len(taken) * stage.heldout_fraction))]}
    splits = {
        "train": [row for row in kept if row["synthesis"]["of"] not in held],
        "heldout": [row for row in kept if row["synthesis"]["of"] in held],
    }
    if not splits["train"]:
        raise ConfigError(
            f"stage {ctx.name}: of {len(taken) * stage.samples} texts none is left to train on ({_told(drops)}). Lower "
            "min_score, ask another model, or take more rows."
        )
    folder = ctx.empty("conversations")
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    counts = {split: len(rows) for split, rows in splits.items()}
    report: dict[str, Any] = {
        "asked": len(taken) * stage.samples,
        "kept": len(kept),
        "dropped": dict(drops),
        "conversations": counts,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    metrics = {f"{split}_conversations": float(count) for split, count in counts.items()}
    metrics |= {"asked": float(report["asked"]), "kept": float(len(kept))}
    return ctx.publish(folder, parents=[conversations], metrics=metrics)


def questions(folder: Path, stage: SynthesizeStage, seed: int) -> list[Row]:
    """The distinct training questions that the filter can judge, in an order that the seed decides."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    needs = {"scorer": "task", "execution": "tests"}.get(stage.filter)
    distinct = {json.dumps(row["messages"][:-1]): row for row in rows if not needs or row.get(needs)}
    if not distinct:
        raise ConfigError(
            f"filter={stage.filter} needs conversations with `{needs}`, and none has any. Choose another filter."
        )
    found = list(distinct.values())
    random.Random(seed).shuffle(found)
    return found[: stage.max_rows]


def _answered(ctx: StageContext, stage: SynthesizeStage, taken: Sequence[Row], file: Path) -> Iterator[Row]:
    """Every text with its score or the reason of its drop, in order; each is written down as soon as it is known."""
    done = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    whole = [line for line in done if line.endswith("\n")]  # the last may be torn
    file.write_text("".join(whole), encoding="utf-8")
    work = [(row, sample) for row in taken for sample in range(stage.samples)]
    yield from (json.loads(line) for line in whole)
    size = 4 * stage.endpoint.concurrency
    with file.open("a", encoding="utf-8") as lines:
        for start in range(len(whole), len(work), size):
            for row in _write(stage, work[start : start + size], ctx.seed + start):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                lines.flush()
                yield row
            ctx.display.advance(ctx.name, "synthesize", min(start + size, len(work)), len(work))


def _write(stage: SynthesizeStage, work: Sequence[tuple[Row, int]], seed: int) -> list[Row]:
    seeds = range(seed, seed + len(work))
    prompts = [_prompt(stage, row) for row, _ in work]
    model = Endpoint(stage.endpoint)
    said = list(model.map(prompts, temperature=stage.temperature, max_new_tokens=stage.max_new_tokens, seeds=seeds))
    made = [_messages(stage, row, of.text.strip()) for (row, _), of in zip(work, said, strict=True)]
    scores = _scores(stage, [row for row, _ in work], made, seeds)
    return [
        {
            "id": f"{row['id']}/{stage.make}-{sample}",
            "source": f"synthesis-{row['source']}",
            "messages": messages,
            "task": row.get("task"),
            "synthesis": {
                "of": row["id"],
                "prompt": prompt,
                "model": stage.endpoint.model,
                "filter": stage.filter,
                "score": value,
            },
            "drop": _reason(stage, of, value),
        }
        for (row, sample), prompt, of, messages, value in zip(work, prompts, said, made, scores, strict=True)
    ]


def _prompt(stage: SynthesizeStage, row: Row) -> list[Row]:
    asked: list[Row] = row["messages"][:-1]
    if stage.make == "answers":
        return asked
    return [{"role": "user", "content": REWORD.format(question=asked[-1]["content"])}]


def _messages(stage: SynthesizeStage, row: Row, text: str) -> list[Row]:
    """The conversation with the model's text in it."""
    if stage.make == "answers":
        return [*row["messages"][:-1], {"role": "assistant", "content": text}]
    return [*row["messages"][:-2], {"role": "user", "content": text}, row["messages"][-1]]


def _reason(stage: SynthesizeStage, said: Completion, score: float) -> str:
    """Why a text is dropped; empty where it is kept."""
    if not said.finished:
        return "unfinished"
    if not said.text.strip():
        return "empty"
    return "" if score >= stage.min_score else "low score"


def _scores(
    stage: SynthesizeStage, rows: Sequence[Row], made: Sequence[list[Row]], seeds: Sequence[int]
) -> list[float]:
    answers = [str(messages[-1]["content"]) for messages in made]
    if stage.filter == "scorer":
        return [score(row["task"], answer) for row, answer in zip(rows, answers, strict=True)]
    if stage.filter == "execution":
        programs = (f"{code_of(answer)}\n\n{row['tests']}" for row, answer in zip(rows, answers, strict=True))
        return [float(runs(program)) for program in programs]
    if stage.filter == "none":
        return [stage.min_score] * len(rows)
    prompts = [
        [{"role": "user", "content": JUDGE.format(question=messages[-2]["content"], answer=messages[-1]["content"])}]
        for messages in made
    ]
    marks = Endpoint(stage.judge or stage.endpoint).map(prompts, temperature=0.0, max_new_tokens=16, seeds=seeds)
    return [mark_of(completion.text) for completion in marks]


def mark_of(text: str) -> float:
    """A judge's mark over 10; 0 where it gives none from 0 to 10."""
    found = re.search(r"\d+(?:\.\d+)?", text)
    value = float(found[0]) / 10 if found else 0.0
    return value if value <= 1 else 0.0


def code_of(answer: str) -> str:
    """The first fenced block of an answer, or all of it."""
    found = re.search(r"```(?:python)?\s*\n(.*?)```", answer, re.DOTALL)
    return found[1] if found else answer


def _told(drops: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in drops.most_common()) or "nothing was dropped"
