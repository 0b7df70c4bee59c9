"""Task accuracy by generation, and sample texts for people to read."""

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

SHOWN_RESPONSES = 20
"""Responses shown in a report, from the first prompts of every task."""

BATCH_SIZE = 256
"""Sequences per forward pass. Responses are short, and models evaluated on CPUs are small."""


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A held-out prompt whose response can be scored."""

    messages: list[dict[str, Any]]
    """The conversation up to the response."""
    task: dict[str, Any]
    """{"name", "entry"}"""
    tools: Any = None
    """Available tools."""


def read_task_prompts(conversations: Path, per_task: int) -> list[TaskPrompt]:
    """The first `per_task` held-out prompts of every task of a `conversations` artifact."""
    seen: Counter[str] = Counter()
    prompts = []
    for row in json_lines.read(conversations / "heldout.jsonl"):
        if row["task"] and seen[row["task"]["name"]] < per_task:
            seen[row["task"]["name"]] += 1
            prompts.append(TaskPrompt(row["messages"][:-1], row["task"], row.get("tools")))
    return prompts


def respond(
    loaded: Loaded, prompts: Sequence[TaskPrompt], max_new_tokens: int, progress: Callable[[int], None] | None = None
) -> list[str]:
    """The model's greedy response to every prompt, without special tokens; "" if the prompt cannot be encoded."""
    encoded = [encode_task_prompt(loaded, prompt) for prompt in prompts]
    responses = iter(_greedy(loaded, [tokens for tokens in encoded if tokens], max_new_tokens, progress))
    return [next(responses) if tokens else "" for tokens in encoded]


def encode_task_prompt(loaded: Loaded, prompt: TaskPrompt) -> list[int]:
    """The prompt's token ids; [] if the tokenizer or its chat template refuses the prompt."""
    try:
        return encode_prompt(loaded.tokenizer, prompt.messages, prompt.tools)
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


def accuracies(prompts: Sequence[TaskPrompt], responses: Sequence[str]) -> dict[str, Any]:
    """`tasks`, `accuracy` (None without prompts) and `responses` of results.json."""
    scores = [score(prompt.task, text) for prompt, text in zip(prompts, responses, strict=True)]
    correct: dict[str, list[bool]] = {}
    shown: dict[str, list[dict[str, Any]]] = {}
    for prompt, text, value in zip(prompts, responses, scores, strict=True):
        name = prompt.task["name"]
        correct.setdefault(name, []).append(is_correct(value))
        shown.setdefault(name, []).append(
            {
                "prompt": words(prompt.messages[-1]),
                "response": text,
                "expected": prompt.task["entry"]["answer"],
                "score": value,
            }
        )
    each = -(-SHOWN_RESPONSES // max(len(shown), 1))
    everything = [value for values in correct.values() for value in values]
    return {
        "tasks": {name: proportion(values) for name, values in correct.items()},
        "accuracy": proportion(everything) if everything else None,
        "responses": [row for rows in shown.values() for row in rows[:each]],
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
