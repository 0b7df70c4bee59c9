"""Conversations to fine-tune on, made without any model: verifiable tasks, and prompt-response pairs from the corpus.

Called in process by the flow `sft`; imports no torch.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from cupola_platform import json_lines
from cupola_platform.conversation import problem
from cupola_platform.errors import ConfigError
from cupola_platform.json_lines import Row
from cupola_platform.rows.drops import Drops
from cupola_platform.strict import STRICT
from cupola_trainer.data.documents import pairs_of_split
from cupola_trainer.data.files import RowFiles, read_conversations, usable
from cupola_trainer.data.shapes import prompt_of
from cupola_trainer.scoring.tasks import make_tasks


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskSource:
    """Training prompts from one generator of reasoning-gym."""

    name: str
    """The generator, such as chain_sum."""

    count: int = Field(default=2000, ge=1)
    """Training conversations. A generator with fewer distinct prompts has them repeated, which keeps the mixture."""

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
    files: Iterable[RowFiles] = (),
) -> dict[str, Any]:
    """Write train.jsonl, heldout.jsonl and report.json of a `conversations` artifact. Same arguments, same bytes.

    No prompt is in both files. Conversations from the corpus are held out with their documents, and never repeated.

    Args:
        tasks: the generators.
        corpus: folder of a `tokens` artifact; none for tasks only.
        corpus_conversations: training conversations to make from the corpus, at most.
        heldout_per_task: prompts of each task to hold out, at most a quarter of the distinct ones; as many
            conversations from the corpus.
        to: folder to write; made when missing.
        files: conversations of others; of each a twentieth is held out, at most `heldout_per_task`.

    Returns:
        The report: {"train", "distinct", "heldout": {source: conversations}, "dropped": {reason: conversations}};
        "distinct" are the training conversations without their repetitions.

    Raises:
        ConfigError: a task that cannot be used, one with too few prompts to hold any out, or nothing to make.
    """
    tasks, files = tuple(tasks), tuple(files)
    if not tasks and not files and not (corpus and corpus_conversations):
        raise ConfigError(
            "There is nothing to make conversations from. Name at least one task, files, or a corpus and a count."
        )
    drops = Drops()
    parts = [_from_tasks(source, heldout_per_task, seed + 7919 * place) for place, source in enumerate(tasks)]
    counts = [source.count for source in tasks]
    if corpus and corpus_conversations:
        documents = corpus / "documents.parquet"
        held = _from_corpus(documents, "heldout", heldout_per_task, seed, drops)
        parts.append((held, _from_corpus(documents, "train", corpus_conversations, seed, drops)))
        counts.append(0)
    for place, source in enumerate(files):
        parts.append(_from_files(source, heldout_per_task, seed + 104_729 * place, drops))
        counts.append(0)
    seen: set[str] = set()
    heldout = list(_usable(chain(*(held for held, _ in parts)), seen, frozenset(), drops))
    asked = frozenset(map(prompt_of, heldout))
    distinct = [list(_usable(train, seen, asked, drops)) for _, train in parts]
    train = list(chain(*map(_repeated, distinct, counts)))
    if not train:
        raise ConfigError(f"Not one conversation is left to train on; dropped: {drops.in_words()}. Name other sources.")
    random.Random(seed).shuffle(train)
    made = {"train": train, "distinct": chain(*distinct), "heldout": heldout}
    report = {name: dict(Counter(row["source"] for row in rows)) for name, rows in made.items()} | drops.report()
    to.mkdir(parents=True, exist_ok=True)
    json_lines.write(to / "train.jsonl", train)
    json_lines.write(to / "heldout.jsonl", heldout)
    (to / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def heldout_prompts(tasks: Iterable[TaskSource], heldout_per_task: int, seed: int) -> dict[str, list[str]]:
    """What `make_conversations` holds out of the tasks, by task: what training must not see before."""
    return {
        f"{source.name}-{place}": [
            str(row["messages"][0]["content"]) for row in _from_tasks(source, heldout_per_task, seed + 7919 * place)[0]
        ]
        for place, source in enumerate(tasks)
    }


def _from_tasks(source: TaskSource, heldout: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Held-out and training conversations, all distinct."""
    made = make_tasks(source.name, source.config, heldout + source.count, seed)
    if len(made) < 4:
        raise ConfigError(
            f"Task {source.name} with {json.dumps(source.config)} has only {len(made)} distinct prompts: too few to "
            "learn from some and be tested on others. Widen its config."
        )
    rows = [
        _row(f"{source.name}-{seed}-{number}", task.name, task.question, task.answer) | {"task": task.reference()}
        for number, task in enumerate(made)
    ]
    cut = min(heldout, len(rows) // 4)
    return rows[:cut], rows[cut : cut + source.count]


def _repeated(rows: list[Row], count: int) -> list[Row]:
    """The rows, and more rounds of them until there are `count`."""
    rounds = (row | {"id": f"{row['id']}/{place // len(rows)}"} for place, row in enumerate(islice(cycle(rows), count)))
    return rows + list(rounds)[len(rows) :]


def _from_corpus(documents: Path, split: str, count: int, seed: int, drops: Drops) -> list[Row]:
    """The first `count` distinct pairs of a split's documents."""
    rows: dict[str, Row] = {}
    for prompt, response in pairs_of_split(documents, split, seed, drops):
        if len(rows) == count:
            break
        if prompt in rows:
            drops.drop("repeated", f"{documents.name}, {split} documents")
        else:
            rows[prompt] = _row(f"corpus-{split}-{len(rows)}", "corpus", prompt, response)
    return list(rows.values())


def _from_files(files: RowFiles, most: int, seed: int, drops: Drops) -> tuple[list[Row], list[Row]]:
    """Held-out and training conversations of others, in an order that the seed decides.
    Prompts are held out whole."""
    rows = usable(read_conversations, files, drops)
    random.Random(seed).shuffle(rows)
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_prompt[prompt_of(row)].append(row)
    room = min(most, len(rows) // 20)
    heldout: list[Row] = []
    train: list[Row] = []
    for alike in by_prompt.values():
        (heldout if len(heldout) + len(alike) <= room else train).extend(alike)
    return heldout, train


def _row(name: str, source: str, prompt: str, response: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"id": name, "source": source, "messages": messages, "task": None}


def _usable(rows: Iterable[Row], seen: set[str], heldout: Collection[str], drops: Drops) -> Iterator[Row]:
    """Rows of sound text that were not `seen`, and whose prompt is not held out; the others are counted."""
    for row in rows:
        prompt = prompt_of(row)
        whole = prompt + json.dumps(row["messages"][-1], sort_keys=True)
        if whole in seen:
            drops.drop("repeated", row["id"])
        elif prompt in heldout:
            drops.drop("prompt_held_out", row["id"])
        elif reason := problem(row["messages"]):
            drops.drop(reason, row["id"])
        else:
            seen.add(whole)
            yield row
