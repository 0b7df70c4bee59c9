"""Preference pairs from a model's own responses, or from files. Called by the flow `dpo`; imports no torch."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.errors import ConfigError
from cupola_platform.json_lines import Row
from cupola_platform.rows.drops import Drops, in_words
from cupola_trainer.data.files import RowFiles, read_pairs, usable
from cupola_trainer.data.shapes import prompt_of
from cupola_trainer.scoring.tasks import is_correct, score


def make_prompts(conversations: Path, *, count: int, seed: int, to: Path, needs: str | None = "task") -> int:
    """Write up to `count` distinct training prompts that can be scored, as prompts.jsonl of a SampleJob.

    Rows are {"id", "source", "messages" (without the response), "tools", "task", "tests"}, in an order set by the seed.

    Args:
        conversations: folder of a `conversations` artifact.
        needs: the field that scoring needs: `task`, `tests`, or None.
        to: the file to write.

    Returns:
        The number of prompts written.

    Raises:
        ConfigError: no conversation in the folder has that field.
    """
    distinct = {
        prompt_of(row): row for row in json_lines.read(conversations / "train.jsonl") if not needs or row.get(needs)
    }
    rows = list(distinct.values())
    if not rows:
        wanted = {"task": "a task to score responses by", "tests": "tests to score responses by"}.get(
            needs or "", "a prompt"
        )
        raise ConfigError(
            f"No conversation in {conversations} has {wanted}. Add some to the conversations, or use another scorer."
        )
    random.Random(seed).shuffle(rows)
    prompts = [
        {key: row.get(key) for key in ("id", "source", "tools", "task", "tests")} | {"messages": row["messages"][:-1]}
        for row in rows[:count]
    ]
    json_lines.write(to, prompts)
    return len(prompts)


def make_preferences(
    prompts: Path,
    samples: Path,
    *,
    heldout_fraction: float,
    pairs_per_prompt: int,
    seed: int,
    to: Path,
    scores: Sequence[float | None] | None = None,
    min_gap: float | None = None,
    made_by: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write train.jsonl, heldout.jsonl, samples.jsonl and report.json of a `preferences` artifact.

    A pair is a right and a wrong response to one prompt, neither truncated; with `min_gap`, a better and a worse one,
    the widest differences first. All pairs of a prompt are in one split. samples.jsonl keeps every response and its
    score.

    Args:
        prompts: output of `make_prompts`.
        samples: output of the SampleJob: {"id", "sample", "response", "finished"}.
        heldout_fraction: share of the prompts with pairs to hold out.
        pairs_per_prompt: maximum; a right response may be in several.
        to: output folder, created if missing.
        scores: scores of the samples, in order, None for one that cannot be scored; None to score by the prompts'
            tasks.
        min_gap: for rewards as scores: the difference that a pair's scores must exceed.
        made_by: the `model` and `scorer` to record with each pair.

    Returns:
        The report: {"prompts", "responses", "correct", "accuracy" (with `min_gap`, "mean_score" instead),
        "pairs": {"train", "heldout"}, "sources": {source: pairs}, "dropped"}. Dropped are responses ("not_scored",
        "unfinished", "empty", "duplicate") and prompts ("all_right", "all_wrong", "alike"); "scorer_error" counts
        responses on which the scorer failed, kept as wrong.

    Raises:
        ConfigError: fewer than two prompts have a pair.
    """
    drops: Counter[str] = Counter()
    responses: dict[str, list[Row]] = defaultdict(list)
    for place, sample in enumerate(json_lines.read(samples)):
        if scores is None:
            responses[sample["id"]].append(sample)
        elif scores[place] is None:
            drops["not_scored"] += 1
        else:
            responses[sample["id"]].append({**sample, "score": scores[place]})
    rng = random.Random(seed)
    asked = list(json_lines.read(prompts))
    scored: list[Row] = []
    groups: list[list[Row]] = []
    for prompt in asked:
        judged = [_judge(prompt, sample, drops) for sample in responses[prompt["id"]]]
        scored += judged
        made = _pair(prompt, judged, pairs_per_prompt, min_gap, rng, drops)
        groups.append([pair | {"synthesis": {"of": prompt["id"], **made_by}} for pair in made] if made_by else made)
    groups = [group for group in groups if group]
    correct = sum(row["correct"] for row in scored)
    if len(groups) < 2:
        wanted = "both a right and a wrong one" if min_gap is None else f"two whose rewards differ by over {min_gap:g}"
        raise ConfigError(
            f"{correct} of {len(scored)} sampled responses are right, and only {len(groups)} prompts have {wanted}; "
            f"dropped: {in_words(drops, {})}. "
            "Sample more prompts or responses, change the temperature, or train sft for longer or shorter."
        )
    numbers = {"correct": correct, "accuracy": correct / len(scored)}
    if min_gap is not None:
        numbers = {"mean_score": sum(row["score"] for row in scored) / len(scored)}
    rng.shuffle(groups)
    cut = min(max(1, round(len(groups) * heldout_fraction)), len(groups) - 1)
    pairs = {"train": list(chain(*groups[cut:])), "heldout": list(chain(*groups[:cut]))}
    report = {
        "prompts": len(asked),
        "responses": len(scored),
        **numbers,
        "pairs": {split: len(rows) for split, rows in pairs.items()},
        "sources": dict(Counter(_source(row) for rows in pairs.values() for row in rows)),
        "dropped": dict(drops),
    }
    to.mkdir(parents=True, exist_ok=True)
    for split, rows in pairs.items():
        json_lines.write(to / f"{split}.jsonl", rows)
    json_lines.write(to / "samples.jsonl", scored)
    (to / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def _judge(prompt: Row, sample: Row, drops: Counter[str]) -> Row:
    value = sample.get("score")
    if value is None:
        value = score(prompt["task"], sample["response"], drops) if sample["finished"] else 0.0
    return {**sample, "score": value, "correct": is_correct(value)}


def _source(pair: Row) -> str:
    task = pair["task"] or {}
    return str(task.get("name") or "without a task")


def _pair(
    prompt: Row, judged: list[Row], limit: int, min_gap: float | None, rng: random.Random, drops: Counter[str]
) -> list[Row]:
    """Up to `limit` distinct pairs of a better and a worse response to one prompt."""
    distinct: dict[str, Row] = {}
    for row in judged:
        if not row["finished"]:
            drops["unfinished"] += 1
        elif not row["response"].strip():
            drops["empty"] += 1
        elif row["response"] in distinct:
            drops["duplicate"] += 1
        else:
            distinct[row["response"]] = row
    both = _right_and_wrong(distinct, rng, drops) if min_gap is None else _by_gap(distinct, min_gap, drops)
    return [
        {
            "id": f"{prompt['id']}/{chosen['sample']}-{rejected['sample']}",
            "messages": prompt["messages"],
            **({"tools": prompt["tools"]} if prompt.get("tools") else {}),
            "chosen": chosen["response"],
            "rejected": rejected["response"],
            "chosen_score": chosen["score"],
            "rejected_score": rejected["score"],
            "task": prompt["task"],
        }
        for chosen, rejected in both[:limit]
    ]


def _right_and_wrong(responses: Mapping[str, Row], rng: random.Random, drops: Counter[str]) -> list[tuple[Row, Row]]:
    """Every right response with every wrong one, in random order."""
    right = [row for row in responses.values() if row["correct"]]
    wrong = [row for row in responses.values() if not row["correct"]]
    if not right or not wrong:
        drops["all_wrong" if not right else "all_right"] += 1
        return []
    return rng.sample(pairs := list(product(right, wrong)), len(pairs))


def _by_gap(responses: Mapping[str, Row], min_gap: float, drops: Counter[str]) -> list[tuple[Row, Row]]:
    """Responses whose scores differ by more than `min_gap`, the widest difference first."""
    ordered = sorted(responses.values(), key=lambda row: -row["score"])
    pairs = [pair for pair in combinations(ordered, 2) if pair[0]["score"] - pair[1]["score"] > min_gap]
    if not pairs:
        drops["alike"] += 1
    return sorted(pairs, key=lambda pair: pair[1]["score"] - pair[0]["score"])


def read_preferences(files: Iterable[RowFiles], *, heldout_fraction: float, seed: int, to: Path) -> dict[str, Any]:
    """Write train.jsonl, heldout.jsonl and report.json of a `preferences` artifact from third-party pairs.

    All pairs of a prompt are in one split.

    Returns:
        The report: {"pairs": {"train", "heldout"}, "sources": {source: pairs}, "dropped": {reason: pairs}}.

    Raises:
        SourceError: a file cannot be read.
        ConfigError: fewer than two prompts have a usable pair.
    """
    drops = Drops()
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    seen: set[str] = set()
    for source in files:
        for row in usable(read_pairs, source, drops):
            asked = json.dumps([row["messages"], row.get("tools") or []], sort_keys=True)
            whole = asked + json.dumps([row["chosen"], row["rejected"]], sort_keys=True)
            if whole in seen:
                drops.drop("repeated", row["id"])
            else:
                seen.add(whole)
                by_prompt[asked].append(row)
    if len(by_prompt) < 2:
        raise ConfigError(
            f"The files hold usable pairs of {len(by_prompt)} prompts; dropped: {drops.in_words()}. Give at least "
            "two, so that one can be held out."
        )
    prompts = list(by_prompt)
    random.Random(seed).shuffle(prompts)
    cut = min(max(1, round(heldout_fraction * len(prompts))), len(prompts) - 1)
    parts = {"heldout": prompts[:cut], "train": prompts[cut:]}
    rows = {name: [row for prompt in part for row in by_prompt[prompt]] for name, part in parts.items()}
    report = {
        "pairs": {name: len(part) for name, part in rows.items()},
        "sources": dict(Counter(row["source"] for part in rows.values() for row in part)),
        **drops.report(),
    }
    to.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        json_lines.write(to / f"{name}.jsonl", part)
    (to / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report
