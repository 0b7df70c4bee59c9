"""Verifiable tasks: generated, serialized as JSON, and scored in another process."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.scoring.tasks import is_correct, make_tasks, score

ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def test_tasks_are_deterministic_and_questions_distinct() -> None:
    tasks = make_tasks("chain_sum", ONE_DIGIT, 150, seed=1)
    assert tasks[0].question == "State the final answer to the following arithmetic problem: 4 - 1 ="
    assert tasks[0].answer == "3"
    assert tasks == make_tasks("chain_sum", ONE_DIGIT, 150, seed=1)
    assert len({task.question for task in tasks}) == 150
    assert tasks != make_tasks("chain_sum", ONE_DIGIT, 150, seed=1_000_000)


def test_a_generator_with_few_questions_yields_all_of_them() -> None:
    assert len(make_tasks("chain_sum", ONE_DIGIT, 500, seed=0)) == 200  # two digits and a sign


def test_a_task_is_scored_from_its_json_in_another_process() -> None:
    [task] = make_tasks("gcd", {"min_value": 2, "max_value": 50}, 1, seed=3)
    given = json.dumps([[task.reference(), answer] for answer in (task.answer, f" {task.answer}\n", "977")])
    program = (
        "import json, sys; from cupola_trainer.scoring.tasks import score;"
        "print([score(task, answer) for task, answer in json.load(sys.stdin)])"
    )
    run = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[1.0, 1.0, 0.0]"


def test_partial_credit_is_not_a_correct_answer() -> None:
    spelling = {"name": "spell_backward", "entry": {"answer": "abcdefghi"}}
    assert is_correct(score(spelling, "abcdefghi"))
    assert 0.8 < score(spelling, "abcdefgh") < 1
    more_than_one = score(spelling, "abcdefghijk")  # nine ninths, summed in floating point
    assert more_than_one == pytest.approx(1.0)
    assert not is_correct(more_than_one)


def test_a_scorer_that_raises_scores_zero_and_is_counted() -> None:
    [task] = make_tasks("prime_factorization", {}, 1, seed=0)
    failures: Counter[str] = Counter()
    assert score(task.reference(), "I do not know", failures) == 0.0
    assert score(task.reference(), task.answer, failures) == 1.0
    assert failures == {"scorer_error": 1}


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chain_sums", {}, "reasoning-gym has no task 'chain_sums'. Did you mean 'chain_sum'?"),
        ("chain_sum", {"max_digit": 1}, "Task chain_sum has no setting 'max_digit'. Did you mean 'max_digits'?"),
        ("chain_sum", {"seed": 1}, "Task chain_sum has no setting 'seed'."),
        (
            "chain_sum",
            {"min_terms": 0},
            'Task chain_sum rejects the settings {"min_terms": 0}: min_terms must be positive.',
        ),
        ("rush_hour", {}, "Task rush_hour has no reference answer."),
        ("game_of_life_halting", {}, "scorer cannot distinguish its answer"),
        ("n_queens", {}, "Task n_queens would evaluate the response as code."),
    ],
)
def test_an_unusable_task_is_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_tasks(name, config, 3, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_response_is_ever_run_as_code() -> None:
    with pytest.raises(ConfigError):
        score({"name": "spiral_matrix", "entry": {"answer": "1 2"}}, "[__import__('os').getpid()]")


def test_importing_tasks_loads_neither_torch_nor_reasoning_gym() -> None:
    program = (
        "import sys, cupola_trainer.data.instructions, cupola_trainer.data.preferences;"
        "print(sorted({'torch', 'reasoning_gym', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
