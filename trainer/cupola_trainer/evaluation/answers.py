"""Task accuracy by generation, and texts to be read by people."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.conversation import words
from cupola_trainer.data.chat import RefusedError, encode_prompt
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.loading import Loaded
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.scoring.intervals import wilson
from cupola_trainer.scoring.tasks import is_correct, score

SHOWN_ANSWERS = 20
"""Answers that a report quotes, from the first questions of every task in turn."""

BATCH_SIZE = 256
"""Sequences in one forward pass. Answers are short and the models that a CPU evaluates are small."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out conversation that can be scored."""

    messages: list[dict[str, Any]]
    """Up to where the answer belongs."""
    task: dict[str, Any]
    """{"name", "entry"}"""
    tools: Any = None
    """What may be called."""


def read_questions(conversations: Path, per_task: int) -> list[Question]:
    """The first `per_task` held-out questions of every task of a `conversations` artifact."""
    seen: Counter[str] = Counter()
    questions = []
    for row in json_lines.read(conversations / "heldout.jsonl"):
        if row["task"] and seen[row["task"]["name"]] < per_task:
            seen[row["task"]["name"]] += 1
            questions.append(Question(row["messages"][:-1], row["task"], row.get("tools")))
    return questions


def answer(
    loaded: Loaded, questions: Sequence[Question], max_new_tokens: int, progress: Callable[[int], None] | None = None
) -> list[str]:
    """The model's greedy answer to every question, without control tokens;
    "" where its tokenizer or template refuses one."""
    prompts = [encode_question(loaded, question) for question in questions]
    answers = iter(_greedy(loaded, [prompt for prompt in prompts if prompt], max_new_tokens, progress))
    return [next(answers) if prompt else "" for prompt in prompts]


def encode_question(loaded: Loaded, question: Question) -> list[int]:
    """The prompt's token ids; none where the tokenizer or its chat template refuses the question."""
    try:
        return encode_prompt(loaded.tokenizer, question.messages, question.tools)
    except RefusedError:
        return []


def continue_texts(loaded: Loaded, texts: Sequence[str], max_new_tokens: int) -> list[dict[str, str]]:
    """[{"prompt", "completion"}], greedy."""
    prompts = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    completions = _greedy(loaded, prompts, max_new_tokens, None)
    return [{"prompt": text, "completion": more} for text, more in zip(texts, completions, strict=True)]


def _greedy(
    loaded: Loaded, prompts: list[list[int]], max_new_tokens: int, progress: Callable[[int], None] | None
) -> list[str]:
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    done = generate(loaded.chunks, loaded.tokenizer, prompts, sampling, batch_size=BATCH_SIZE, progress=progress)
    return [loaded.tokenizer.decode(completion.tokens, skip_special_tokens=True) for completion in done]


def accuracies(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """`tasks`, `accuracy` (None without questions) and `answers` of results.json."""
    scores = [score(question.task, text) for question, text in zip(questions, answers, strict=True)]
    correct: dict[str, list[bool]] = {}
    shown: dict[str, list[dict[str, Any]]] = {}
    for question, text, value in zip(questions, answers, scores, strict=True):
        name = question.task["name"]
        correct.setdefault(name, []).append(is_correct(value))
        shown.setdefault(name, []).append(
            {
                "prompt": words(question.messages[-1]),
                "answer": text,
                "expected": question.task["entry"]["answer"],
                "score": value,
            }
        )
    each = -(-SHOWN_ANSWERS // max(len(shown), 1))
    everything = [value for values in correct.values() for value in values]
    return {
        "tasks": {name: proportion(values) for name, values in correct.items()},
        "accuracy": proportion(everything) if everything else None,
        "answers": [row for rows in shown.values() for row in rows[:each]],
    }


def proportion(values: Sequence[bool]) -> dict[str, float]:
    """An accuracy with its Wilson 95% interval."""
    low, high = wilson(sum(values), len(values))
    return {
        "accuracy": sum(values) / len(values),
        "low": low,
        "high": high,
        "correct": sum(values),
        "total": len(values),
    }
