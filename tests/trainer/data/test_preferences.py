"""Preference pairs from sampled responses."""

import json
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.data.instructions import TaskSource, make_conversations
from cupola_trainer.data.preferences import make_preferences, make_prompts


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Ten training prompts out of a hundred conversations."""
    tasks = [TaskSource(name="gcd", count=100, config={"max_value": 60})]
    make_conversations(
        tasks=tasks, corpus=None, corpus_conversations=0, heldout_per_task=10, seed=1, to=tmp_path / "conversations"
    )
    assert make_prompts(tmp_path / "conversations", count=10, seed=5, to=tmp_path / "prompts.jsonl") == 10
    return tmp_path / "prompts.jsonl"


def sample(prompts: Path, responses: list[list[str]], finished: bool = True) -> Path:
    """Write the output of a SampleJob: each prompt's responses, "=" for the right one."""
    path = prompts.with_name("samples.jsonl")
    with path.open("w") as file:
        for prompt, given in zip(rows(prompts), responses, strict=True):
            for number, text in enumerate(given):
                response = prompt["task"]["entry"]["answer"] if text == "=" else text
                row = {"id": prompt["id"], "sample": number, "response": response, "finished": finished}
                file.write(json.dumps(row) + "\n")
    return path


def test_prompts_are_training_prompts_without_their_responses(prompts: Path) -> None:
    train = {row["id"]: row for row in rows(prompts.with_name("conversations") / "train.jsonl")}
    for prompt in rows(prompts):
        assert prompt["messages"] == train[prompt["id"]]["messages"][:1]
        assert prompt["task"] == train[prompt["id"]]["task"]


def test_each_pair_has_a_right_and_a_wrong_response_to_one_prompt(prompts: Path, tmp_path: Path) -> None:
    responses = [["=", "=", "9999", "no idea", ""]] * 7 + [["=", "="], ["9999", "8888"], ["9999", "9999"]]
    report = make_preferences(
        prompts, sample(prompts, responses), heldout_fraction=0.3, pairs_per_prompt=2, seed=0, to=tmp_path / "out"
    )
    assert report == {
        "prompts": 10,
        "responses": 41,
        "correct": 16,
        "accuracy": pytest.approx(16 / 41),
        "pairs": {"train": 10, "heldout": 4},
        "sources": {"gcd": 14},
        "dropped": {"duplicate": 9, "empty": 7, "all_right": 1, "all_wrong": 2},
    }
    assert len(rows(tmp_path / "out" / "samples.jsonl")) == 41
    train, heldout = rows(tmp_path / "out" / "train.jsonl"), rows(tmp_path / "out" / "heldout.jsonl")
    assert not {row["messages"][0]["content"] for row in train} & {row["messages"][0]["content"] for row in heldout}
    assert len({row["id"] for row in train + heldout}) == 14
    for row in train + heldout:
        assert row["chosen"] == row["task"]["entry"]["answer"]
        assert row["rejected"] in {"9999", "no idea"}
        assert row["chosen_score"] == 1.0 > row["rejected_score"]


def test_pairs_by_reward_have_the_widest_differences(prompts: Path, tmp_path: Path) -> None:
    samples = sample(prompts, [["a", "b", "c"]] * 9 + [["a", "b", "c"]])
    rewards = [0.5, -2.0, 1.5] * 9 + [0.1, 0.2, 0.3]
    report = make_preferences(
        prompts, samples, heldout_fraction=0.2, pairs_per_prompt=2, seed=0, to=tmp_path / "out",
        scores=rewards, min_gap=0.5, made_by={"model": "abc", "scorer": "reward_model"},
    )  # fmt: skip
    assert report["dropped"] == {"alike": 1}
    assert report["mean_score"] == pytest.approx(sum(rewards) / 30)
    pairs = rows(tmp_path / "out" / "train.jsonl") + rows(tmp_path / "out" / "heldout.jsonl")
    assert [(row["chosen"], row["rejected"], row["chosen_score"]) for row in pairs] == [
        ("c", "b", 1.5),
        ("a", "b", 0.5),
    ] * 9
    assert pairs[0]["synthesis"] == {"of": pairs[0]["id"].split("/")[0], "model": "abc", "scorer": "reward_model"}


def test_truncated_responses_are_not_used(prompts: Path, tmp_path: Path) -> None:
    samples = sample(prompts, [["=", "9999"]] * 10, finished=False)
    with pytest.raises(ConfigError, match="0 of 20 sampled responses are right, and only 0 prompts have both"):
        make_preferences(prompts, samples, heldout_fraction=0.1, pairs_per_prompt=1, seed=0, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_of_two_prompts_is_held_out(prompts: Path, tmp_path: Path) -> None:
    samples = sample(prompts, [["=", "9999"]] * 2 + [["="]] * 8)
    report = make_preferences(prompts, samples, heldout_fraction=0.1, pairs_per_prompt=4, seed=0, to=tmp_path / "out")
    assert report["pairs"] == {"train": 1, "heldout": 1}


def test_conversations_without_tasks_cannot_be_sampled_for_preferences(tmp_path: Path) -> None:
    row: dict[str, Any] = {"id": "a", "source": "corpus", "messages": [], "task": None}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match="has a task to score responses by"):
        make_prompts(tmp_path, count=5, seed=0, to=tmp_path / "prompts.jsonl")
