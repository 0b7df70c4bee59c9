"""Preference pairs from a model's own answers, scored by their tasks. Called by the flow `dpo`; imports no torch."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.data.conversations import Row, read_rows, write_rows
from cupola_trainer.data.files import RowFiles, read_pairs
from cupola_trainer.evaluation.tasks import is_correct, score


def make_prompts(conversations: Path, *, count: int, seed: int, to: Path) -> int:
    """Write up to `count` distinct training questions that can be scored, as prompts.jsonl of a SampleJob.

    Rows are {"id", "source", "messages" (without the answer), "task"}, in an order that the seed decides.

    Args:
        conversations: folder of a `conversations` artifact.
        to: the file to write.

    Returns:
        How many there are.

    Raises:
        ConfigError: no conversation of the folder has a task.
    """
    questions = {
        json.dumps(row["messages"][:-1]): row for row in read_rows(conversations / "train.jsonl") if row["task"]
    }
    rows = list(questions.values())
    if not rows:
        raise ConfigError(
            f"No conversation in {conversations} has a task to score answers by. Add a task to the sft stage."
        )
    random.Random(seed).shuffle(rows)
    prompts = [
        {key: row[key] for key in ("id", "source", "task")} | {"messages": row["messages"][:-1]} for row in rows[:count]
    ]
    write_rows(to, prompts)
    return len(prompts)


def make_preferences(
    prompts: Path, samples: Path, *, heldout_fraction: float, pairs_per_prompt: int, seed: int, to: Path
) -> dict[str, Any]:
    """Write train.jsonl, heldout.jsonl, samples.jsonl and report.json of a `preferences` artifact.

    A pair is a right and a wrong answer that the model gave to one prompt, both ended by itself. Prompts are held out
    whole. samples.jsonl keeps every answer, with its score.

    Args:
        prompts: what `make_prompts` wrote.
        samples: what the SampleJob wrote: {"id", "sample", "answer", "finished"}.
        heldout_fraction: of the prompts that give pairs.
        pairs_per_prompt: at most; a right answer may be in several.
        to: folder to write; made when missing.

    Returns:
        The report: {"prompts", "answers", "correct", "accuracy", "pairs": {"train", "heldout"}, "sources": {source:
        pairs}, "dropped"}. Dropped are answers ("unfinished", "empty", "duplicate") and prompts ("all_right",
        "all_wrong"); "scorer_error" counts answers on which the scorer failed, kept as wrong.

    Raises:
        ConfigError: not two prompts got both a right and a wrong answer.
    """
    drops: Counter[str] = Counter()
    answers: dict[str, list[Row]] = defaultdict(list)
    for sample in read_rows(samples):
        answers[sample["id"]].append(sample)
    rng = random.Random(seed)
    asked = list(read_rows(prompts))
    scored: list[Row] = []
    groups: list[list[Row]] = []
    for prompt in asked:
        judged = [_judge(prompt, sample, drops) for sample in answers[prompt["id"]]]
        scored += judged
        groups.append(_pair(prompt, judged, pairs_per_prompt, rng, drops))
    groups = [group for group in groups if group]
    correct = sum(row["correct"] for row in scored)
    if len(groups) < 2:
        raise ConfigError(
            f"{correct} of {len(scored)} sampled answers are right, and only {len(groups)} prompts got both a right and a "
            "wrong one. Sample more prompts or answers, at another temperature, or change how long sft trains."
        )
    rng.shuffle(groups)
    cut = min(max(1, round(len(groups) * heldout_fraction)), len(groups) - 1)
    pairs = {"train": list(chain(*groups[cut:])), "heldout": list(chain(*groups[:cut]))}
    report = {
        "prompts": len(asked),
        "answers": len(scored),
        "correct": correct,
        "accuracy": correct / len(scored),
        "pairs": {split: len(rows) for split, rows in pairs.items()},
        "sources": dict(Counter(row["task"]["name"] for rows in pairs.values() for row in rows)),
        "dropped": dict(drops),
    }
    to.mkdir(parents=True, exist_ok=True)
    for split, rows in pairs.items():
        write_rows(to / f"{split}.jsonl", rows)
    write_rows(to / "samples.jsonl", scored)
    (to / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def _judge(prompt: Row, sample: Row, drops: Counter[str]) -> Row:
    value = score(prompt["task"], sample["answer"], drops) if sample["finished"] else 0.0
    return {**sample, "score": value, "correct": is_correct(value)}


def _pair(prompt: Row, judged: list[Row], limit: int, rng: random.Random, drops: Counter[str]) -> list[Row]:
    """Up to `limit` different pairs of a right and a wrong answer to one prompt."""
    distinct: dict[str, Row] = {}
    for row in judged:
        if not row["finished"]:
            drops["unfinished"] += 1
        elif not row["answer"].strip():
            drops["empty"] += 1
        elif row["answer"] in distinct:
            drops["duplicate"] += 1
        else:
            distinct[row["answer"]] = row
    right = [row for row in distinct.values() if row["correct"]]
    wrong = [row for row in distinct.values() if not row["correct"]]
    if not right or not wrong:
        drops["all_wrong" if not right else "all_right"] += 1
        return []
    both = [(chosen, rejected) for chosen in right for rejected in wrong]
    return [
        {
            "id": f"{prompt['id']}/{chosen['sample']}-{rejected['sample']}",
            "messages": prompt["messages"],
            "chosen": chosen["answer"],
            "rejected": rejected["answer"],
            "chosen_score": chosen["score"],
            "rejected_score": rejected["score"],
            "task": prompt["task"],
        }
        for chosen, rejected in rng.sample(both, min(limit, len(both)))
    ]


def read_preferences(files: Iterable[RowFiles], *, heldout_fraction: float, seed: int, to: Path) -> dict[str, Any]:
    """Write train.jsonl, heldout.jsonl and report.json of a `preferences` artifact from pairs of others.

    Prompts are held out whole.

    Returns:
        The report: {"pairs": {"train", "heldout"}, "sources": {source: pairs}, "dropped": {reason: pairs}}.

    Raises:
        SourceError: a file cannot be read.
        ConfigError: not two prompts have a usable pair.
    """
    drops: Counter[str] = Counter()
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for source in files:
        for row in read_pairs(source, drops):
            by_prompt[json.dumps(row["messages"])].append(row)
    if len(by_prompt) < 2:
        raise ConfigError(
            f"The files hold usable pairs of {len(by_prompt)} prompts; dropped: {dict(drops)}. At least two are needed, one of "
            "them to be held out."
        )
    prompts = list(by_prompt)
    random.Random(seed).shuffle(prompts)
    cut = min(max(1, round(heldout_fraction * len(prompts))), len(prompts) - 1)
    parts = {"heldout": prompts[:cut], "train": prompts[cut:]}
    rows = {name: [row for prompt in part for row in by_prompt[prompt]] for name, part in parts.items()}
    report = {
        "pairs": {name: len(part) for name, part in rows.items()},
        "sources": dict(Counter(row["source"] for part in rows.values() for row in part)),
        "dropped": dict(drops),
    }
    to.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        write_rows(to / f"{name}.jsonl", part)
    (to / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report
