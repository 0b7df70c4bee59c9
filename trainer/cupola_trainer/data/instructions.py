"""Fine-tuning conversations made without a model: verifiable tasks, and prompt-response pairs from the corpus.

Called in-process by the flow `sft`; imports no torch.
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
    """Training prompts from one reasoning-gym generator."""

    name: str
    """The generator, such as chain_sum."""

    count: int = Field(default=2000, ge=1)
    """Training conversations. If there are fewer distinct prompts, they are repeated, which preserves the mixture."""

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
    """Write train.jsonl, heldout.jsonl and report.json of a `conversations` artifact, deterministically.

    No prompt is in both files. Conversations from the corpus are held out with their documents and never repeated.

    Args:
        tasks: the generators.
        corpus: folder of a `tokens` artifact; None for none.
        corpus_conversations: maximum training conversations from the corpus.
        heldout_per_task: prompts to hold out per task, at most a quarter of the distinct ones; the same number of
            conversations from the corpus.
        to: output folder, created if missing.
        files: third-party conversations; a twentieth of each is held out, at most `heldout_per_task`.

    Returns:
        The report: {"train", "distinct", "heldout": {source: conversations}, "dropped": {reason: conversations}};
        "distinct" counts training conversations without repetitions.

    Raises:
        ConfigError: a task is unusable or has too few prompts to hold any out, or there is no source.
    """
    tasks, files = tuple(tasks), tuple(files)
    if not tasks and not files and not (corpus and corpus_conversations):
        raise ConfigError(
            "There is nothing to make conversations from. Give tasks, files, or a corpus with corpus_conversations."
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
        raise ConfigError(f"No conversation is left to train on; dropped: {drops.in_words()}. Give other sources.")
    random.Random(seed).shuffle(train)
    made = {"train": train, "distinct": chain(*distinct), "heldout": heldout}
    report = {name: dict(Counter(row["source"] for row in rows)) for name, rows in made.items()} | drops.report()
    to.mkdir(parents=True, exist_ok=True)
    json_lines.write(to / "train.jsonl", train)
    json_lines.write(to / "heldout.jsonl", heldout)
    (to / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def heldout_prompts(tasks: Iterable[TaskSource], heldout_per_task: int, seed: int) -> dict[str, list[str]]:
    """The prompts that `make_conversations` holds out, by task: earlier training must not see them."""
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
            "split into training and held-out prompts. Widen its config."
        )
    rows = [
        _row(f"{source.name}-{seed}-{number}", task.name, task.question, task.answer) | {"task": task.reference()}
        for number, task in enumerate(made)
    ]
    cut = min(heldout, len(rows) // 4)
    return rows[:cut], rows[cut : cut + source.count]


def _repeated(rows: list[Row], count: int) -> list[Row]:
    """The rows, repeated in rounds until there are `count`."""
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
    """Held-out and training conversations from files, in an order set by the seed. All rows of a prompt are in one
    split."""
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
    """Valid rows that are not in `seen` and whose prompt is not held out; the others are counted."""
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
