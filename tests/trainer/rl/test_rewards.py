"""Rewards of responses, the choice of prompts, and stored rollouts."""

import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupola_platform.errors import ConfigError, CorruptArtifactError
from cupola_trainer import runtime
from cupola_trainer.config import ExecutionReward, HttpReward, LayoutConfig, PatternReward, PythonReward, TaskReward
from cupola_trainer.generation.batch import Completion
from cupola_trainer.rl.prompts import Prompt, PromptOrder, read_prompts, spread
from cupola_trainer.rl.rewards import combine, load_function, score_responses
from cupola_trainer.rl.rollouts import Rollout
from cupola_trainer.scoring.tasks import make_tasks


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # type: ignore[no-untyped-call]
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


def test_rewards_are_a_weighted_sum_and_a_failure_drops_the_response(one_rank: None) -> None:
    [task] = make_tasks("chain_sum", {"max_terms": 2, "max_digits": 1}, 1, seed=1)
    tests = ["assert double(2) == 4", "assert double(0) == 1"]
    rows = [{"task": task.reference(), "tests": tests}] * 4
    responses = [task.answer, "def double(x):\n    return 2 * x", " " * 40, "e"]
    rewards = (TaskReward(weight=2.0), ExecutionReward(), PythonReward(function="toy_rewards:moody", weight=-1.0))
    scores = combine(rewards, score_responses(rewards, rows, responses))
    assert scores.parts["task"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scores.parts["execution"].tolist() == [0.0, 0.5, 0.0, 0.0]
    assert scores.drops == {"reward_raised": 2, "reward_not_finite": 1}
    assert scores.total[0] == 2.0
    assert [math.isnan(value) for value in scores.total] == [False, True, True, True]


def test_a_reward_function_must_be_importable() -> None:
    assert load_function("math:sqrt")(4.0) == 2.0  # type: ignore[call-arg, arg-type]
    for name in ("no_such_module:f", "math:no_such", "math:pi"):
        with pytest.raises(ConfigError, match=name):
            load_function(name)


def test_prompts_are_distinct_and_drops_are_counted_by_reason(material: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    def row(*contents: str, **more: Any) -> dict[str, Any]:
        roles = ("user", "assistant") * 2
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)], **more}

    task = {"name": "chain_sum", "entry": {}}
    rows = [
        row("2 + 2?", "4", task=task), row("2 + 2?", "5", task=task), row("3 + 3?", task=task),
        row("word " * 100, "x", task=task), row("no task", "x"), row("", "x", task=task), {"messages": []},
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(material / "tokenizer")
    prompts, drops = read_prompts(tmp_path / "train.jsonl", tokenizer, 40, (TaskReward(),))
    assert [prompt.row["messages"] for prompt in prompts] == [
        [{"role": "user", "content": q}] for q in ("2 + 2?", "3 + 3?")
    ]
    assert drops == {"duplicate": 1, "too_long": 1, "no_task": 1, "empty_message": 1, "malformed": 1}


def test_held_out_prompts_cover_all_tasks() -> None:
    prompts = [Prompt({"task": {"name": "one" if i < 8 else "two"}}, [i]) for i in range(10)]
    assert [prompt.tokens for prompt in spread(prompts, 5)] == [[0], [2], [4], [6], [8]]
    assert spread(prompts, 20) == prompts
    assert spread([], 5) == []


def test_every_prompt_is_used_once_before_any_repeats() -> None:
    shuffled = PromptOrder(10, seed=1)
    first, second = ([shuffled.place(index) for index in range(start, start + 10)] for start in (0, 10))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    ranked = PromptOrder(4, seed=1, variances=np.array([0.0, 0.25, 0.1, 0.2]))
    assert [ranked.place(index) for index in range(8)] == [1, 3, 2, 0] * 2


def test_a_rollout_survives_saving_and_a_truncated_file_is_refused(tmp_path: Path) -> None:
    done = [Completion([7, 8], [-0.5, -1.0], True), Completion([9], [-2.0], False)]
    rollout = Rollout.of([[1, 2, 3], [4]], done, sequence_length=6)
    assert rollout.tokens.tolist() == [[1, 2, 3, 7, 8, 0, 0], [4, 9, 0, 0, 0, 0, 0]]
    assert rollout.mask.astype(int).tolist() == [[0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert rollout.ends.tolist() == [4, 1]
    assert rollout.lengths.tolist() == [2, 1]
    rollout.arrays["rewards"], rollout.metrics = np.array([1.0, math.nan]), {"reward": 1.0}
    rollout.save(tmp_path / "kept.npz")
    again = Rollout.load(tmp_path / "kept.npz")
    assert again.metrics == rollout.metrics
    for name in ("tokens", "mask", "finished", "sampling_logps"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rollout, name))
    np.testing.assert_array_equal(again.arrays["rewards"], rollout.arrays["rewards"])
    (tmp_path / "kept.npz").write_bytes((tmp_path / "kept.npz").read_bytes()[:200])
    with pytest.raises(CorruptArtifactError, match=r"kept\.npz cannot be read"):
        Rollout.load(tmp_path / "kept.npz")


@pytest.fixture
def service() -> Iterator[tuple[str, list[Any]]]:
    """A reward service, its URL and what it was asked: it answers a response "late" after a second, "text" with text,
    "down" with status 503 and "wrong" with status 401."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((question, self.headers.get("Authorization")))
            response = question["response"]
            if response == "late":
                time.sleep(1)
            answer = {"text": b"I would give it a 7."}.get(response, json.dumps({"reward": len(response)}).encode())
            self.send_response({"down": 503, "wrong": 401}.get(response, 200))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *unused: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/score", asked
        server.shutdown()
        thread.join()


def test_a_service_scores_responses_and_a_late_or_unreadable_score_drops_one(
    one_rank: None, service: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = service
    monkeypatch.setenv("CUPOLA_REWARD_KEY", "s3cret")
    rewards = (HttpReward(url=url, timeout_seconds=0.3, retries=1),)
    rows = [{"id": str(number)} for number in range(4)]
    scores = combine(rewards, score_responses(rewards, rows, ["good", "late", "text", "down"]))
    assert scores.total[0] == 4
    assert np.isnan(scores.total[1:]).all()
    assert scores.drops == {"reward_unanswered": 3}
    assert ({"row": {"id": "0"}, "response": "good"}, "Bearer s3cret") in asked
    assert len(asked) == 1 + 3 * 2  # each failure was tried again


def test_a_service_that_refuses_ends_the_job_without_telling_the_key(
    one_rank: None, service: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPOLA_REWARD_KEY", "s3cret")
    with pytest.raises(ConfigError, match="refuses the request, status 401") as refused:
        score_responses((HttpReward(url=service[0]),), [{}], ["wrong"])
    assert "s3cret" not in str(refused.value)


def test_a_pattern_rewards_the_form_of_a_whole_response(one_rank: None) -> None:
    rewards = (PatternReward(pattern="<think>.*</think>.+"),)
    responses = ["<think>\nhm\n</think>\n4", "4", "<think></think>"]
    scores = combine(rewards, score_responses(rewards, [{}] * 3, responses))
    assert scores.total.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="is not a regular expression"):
        PatternReward(pattern="(")
