"""Conversations to fine-tune on, made without any model: verifiable tasks, and question-answer pairs from the corpus.

Called in process by the flow `sft`; imports no torch.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from cupola_platform.errors import ConfigError
from cupola_trainer.config import STRICT
from cupola_trainer.data.chat import problem
from cupola_trainer.data.conversations import Row, write_rows
from cupola_trainer.data.documents import pairs_of_split
from cupola_trainer.evaluation.tasks import Task, make_tasks


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskSource:
    """Training questions from one generator of reasoning-gym."""

    name: str
    """The generator, such as chain_sum."""

    count: int = Field(default=2000, ge=1)
    """Training conversations; fewer when the generator has no more distinct questions."""

    config: dict[str, Any] = Field(default_factory=dict)
    """The generator's own settings, such as max_digits. Seed and size come from the recipe."""


def make_conversations(
    *,
    tasks: Iterable[TaskSource],
    corpus: Path | None,
    corpus_conversations: int,
    heldout_per_task: int,
    seed: int,
    to: Path,
) -> dict[str, Any]:
    """Write train.jsonl, heldout.jsonl and report.json of a `conversations` artifact. Same arguments, same bytes.

    No question is in both files. Conversations from the corpus are held out with their documents.

    Args:
        tasks: the generators; each gives `heldout_per_task` questions more than it trains on.
        corpus: folder of a `tokens` artifact; none for tasks only.
        corpus_conversations: training conversations to make from the corpus; up to `heldout_per_task` more are held out.
        to: folder to write; made when missing.

    Returns:
        The report: {"train", "heldout": {source: conversations}, "short": {source: conversations wanted but not to be
        had}, "dropped": {reason: conversations}}.

    Raises:
        ConfigError: a task that cannot be used, one with too few questions to hold any out, or nothing to make.
    """
    tasks = tuple(tasks)
    if not tasks and not (corpus and corpus_conversations):
        raise ConfigError(
            "There is nothing to make conversations from. Name at least one task, or a corpus and a count."
        )
    heldout: list[Row] = []
    train: list[Row] = []
    wanted: Counter[str] = Counter()
    for place, source in enumerate(tasks):
        made = _from_tasks(source, heldout_per_task, seed + 7919 * place)
        heldout += made[:heldout_per_task]
        train += made[heldout_per_task:]
        wanted[source.name] += source.count
    drops: Counter[str] = Counter()
    if corpus and corpus_conversations:
        heldout += _from_corpus(corpus, "heldout", heldout_per_task, seed, drops)
        train += _from_corpus(corpus, "train", corpus_conversations, seed, drops)
        wanted["corpus"] = corpus_conversations
    heldout = list(_usable(heldout, set(), drops))
    train = list(_usable(train, {_question(row) for row in heldout}, drops))
    random.Random(seed).shuffle(train)
    counts = {name: Counter(row["source"] for row in rows) for name, rows in (("train", train), ("heldout", heldout))}
    short = {name: count - counts["train"][name] for name, count in wanted.items() if counts["train"][name] < count}
    report = {**{name: dict(count) for name, count in counts.items()}, "short": short, "dropped": dict(drops)}
    to.mkdir(parents=True, exist_ok=True)
    write_rows(to / "train.jsonl", train)
    write_rows(to / "heldout.jsonl", heldout)
    (to / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def _from_tasks(source: TaskSource, heldout: int, seed: int) -> list[Row]:
    made = make_tasks(source.name, source.config, heldout + source.count, seed)
    if len(made) <= heldout:
        raise ConfigError(
            f"Task {source.name} with {json.dumps(source.config)} has only {len(made)} distinct questions; "
            f"heldout_per_task={heldout} leaves none to train on. Widen its config, or hold out {len(made) // 4}."
        )
    return [_task_row(task, f"{source.name}-{seed}-{number}") for number, task in enumerate(made)]


def _task_row(task: Task, name: str) -> Row:
    return _row(name, task.name, task.question, task.answer) | {"task": task.reference()}


def _from_corpus(corpus: Path, split: str, count: int, seed: int, drops: Counter[str]) -> list[Row]:
    """The first `count` distinct pairs of a split's documents."""
    rows: dict[str, Row] = {}
    for question, answer in pairs_of_split(corpus / "documents.parquet", split, seed, drops):
        if len(rows) == count:
            break
        if question in rows:
            drops["repeated"] += 1
        else:
            rows[question] = _row(f"corpus-{split}-{len(rows)}", "corpus", question, answer)
    return list(rows.values())


def _row(name: str, source: str, question: str, answer: str) -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "source": source, "messages": messages, "task": None}


def _usable(rows: Iterable[Row], taken: set[str], drops: Counter[str]) -> Iterator[Row]:
    """Rows whose question is new and whose text is sound; the others are counted."""
    seen = set(taken)
    for row in rows:
        question = _question(row)
        if question in taken:
            drops["held_out"] += 1
        elif question in seen:
            drops["repeated"] += 1
        elif reason := problem(row["messages"]):
            drops[reason] += 1
        else:
            seen.add(question)
            yield row


def _question(row: Row) -> str:
    return str(row["messages"][0]["content"])
