"""Verifiable tasks from reasoning-gym: prompts whose responses a program scores. Nothing here imports torch.

reasoning-gym takes seconds to import, so it is imported only when a task is made or scored.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_platform.nearest import did_you_mean

JsonObject = dict[str, Any]

UNSAFE = frozenset(
    {
        "binary_matrix", "codeio", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication",
        "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
    }
)  # fmt: skip
"""Tasks whose scorer passes the response to `eval` (or SymPy's parse_expr, which calls it): a model's code would run
here. codeio runs packaged snippets of unknown origin."""

DRAWS_PER_TASK = 20
"""Maximum draws per task when looking for distinct questions."""


@dataclass(frozen=True, slots=True)
class Task:
    """A question with its reference answer. `entry` is plain JSON for the scorer."""

    name: str
    question: str
    answer: str
    entry: JsonObject

    def reference(self) -> JsonObject:
        """The serializable argument of `score`: {"name", "entry"}."""
        return {"name": self.name, "entry": self.entry}


def make_tasks(name: str, config: Mapping[str, Any], count: int, seed: int) -> list[Task]:
    """Up to `count` tasks with distinct questions, or fewer if the generator has no more. Deterministic in the seed.

    Every task survives JSON, and its scorer gives 1 to the reference answer and less to nonsense.

    Raises:
        ConfigError: unknown task, a setting that its generator rejects, or a task that cannot be scored safely.
    """
    dataset = _dataset(name, config, seed, size=count * DRAWS_PER_TASK)
    tasks: dict[str, Task] = {}
    for index in range(count * DRAWS_PER_TASK):
        entry = _entry(dataset, index, name, config)
        question = entry["question"].strip()
        if question not in tasks:
            tasks[question] = _checked(name, question, entry)
        if len(tasks) == count:
            break
    return list(tasks.values())


def score(task: Mapping[str, Any], response: str, failures: Counter[str] | None = None) -> float:
    """Score a model's response to a serialized task: 1 if correct, less otherwise (some scorers give partial credit).

    Args:
        task: {"name", "entry"}, from `Task.reference`.
        response: the response text, without control tokens.
        failures: counts "scorer_error" if the scorer raises; the response then scores 0.
    """
    scorer = _scorer(task["name"])
    try:
        return float(scorer(response.strip(), task["entry"]))
    except Exception:  # noqa: BLE001 - scorers may raise anything when parsing arbitrary responses
        if failures is not None:
            failures["scorer_error"] += 1
        return 0.0


def is_correct(value: float) -> bool:
    """Whether a score means a correct response.

    Exactly 1: for a nine-letter prefix, spell_backward sums 1/9 nine times and gets slightly more than 1.
    """
    return value == 1.0


def _dataset(name: str, config: Mapping[str, Any], seed: int, size: int) -> Any:
    _refuse_unsafe(name)
    generator, config_class = _registered(name)
    known = sorted(set(config_class.__dataclass_fields__) - {"seed", "size"})
    for key in config:
        if key not in known:
            raise ConfigError(f"Task {name} has no setting {key!r}.{did_you_mean(key, known)}")
    try:
        return generator(config=config_class(**config, seed=seed, size=size))
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"Task {name} rejects the settings {json.dumps(dict(config), default=str)}: {error}."
        ) from error


def _entry(dataset: Any, index: int, name: str, config: Mapping[str, Any]) -> JsonObject:
    try:
        return dataset[index]  # type: ignore[no-any-return]
    except Exception as error:  # generators validate settings only partly, and may raise anything
        settings = json.dumps(dict(config), default=str)
        raise ConfigError(f"Task {name} cannot generate with the settings {settings}: {error}. Change them.") from error


def _registered(name: str) -> tuple[Callable[..., Any], Any]:
    import reasoning_gym.factory  # takes seconds to import

    known = reasoning_gym.factory.DATASETS
    if name not in known:
        raise ConfigError(f"reasoning-gym has no task {name!r}.{did_you_mean(name, known)}")
    return known[name]  # type: ignore[no-any-return]


def _refuse_unsafe(name: str) -> None:
    if name in UNSAFE:
        raise ConfigError(f"Task {name} would evaluate the response as code. Choose another task.")


@cache
def _scorer(name: str) -> Callable[[str, JsonObject], float]:
    _refuse_unsafe(name)
    generator, config_class = _registered(name)
    return generator(config=config_class()).score_answer  # type: ignore[no-any-return]


def _checked(name: str, question: str, entry: JsonObject) -> Task:
    try:
        kept: JsonObject = json.loads(json.dumps(entry))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Task {name} cannot be written as JSON ({error}). Choose another task.") from error
    answer = kept["answer"]
    if not isinstance(answer, str):
        raise ConfigError(f"Task {name} has no reference answer. Choose another task.")
    task = Task(name, question, answer.strip(), kept)
    if not is_correct(score(task.reference(), answer)) or is_correct(score(task.reference(), "?!")):
        raise ConfigError(
            f"Task {name}'s scorer cannot distinguish its answer {answer[:40]!r} from '?!'. Choose another task."
        )
    return task
