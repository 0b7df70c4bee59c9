"""Reward models: where scores are read, balanced tags, calibration, training to rank, and scoring."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, OptimizerConfig, RewardData, TrainJob
from cupola_trainer.data.chat import encode_response
from cupola_trainer.forward import outputs
from cupola_trainer.objectives.reward import RewardObjective
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.rl.reward_model import RewardModel
from cupola_trainer.training import loop

ONE = LayoutConfig()
MODEL = ModelConfig(
    vocab_size=1024, hidden_size=32, num_layers=2, num_attention_heads=2, num_query_groups=1, ffn_hidden_size=64,
    max_position_embeddings=64, rope_theta=10_000.0,
)  # fmt: skip


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    """Pairs in which the response "yes" is better; a quarter of them have another tag."""

    def row(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Is {number} a number?"}]
        tag = {"tag": "rare"} if number % 4 == 0 else {}
        scores = {"chosen_score": 1.0, "rejected_score": 0.25}
        return {
            "messages": messages, "chosen": f"yes, {number} is", "rejected": f"no, {number} is not", "source": "many",
        } | tag | scores  # fmt: skip

    bad = [
        {**row(1), "rejected": "yes, 1 is"},
        {**row(1), "rejected_score": 2.0},
        {**row(1), "chosen": "yes " * 100},
    ]
    for name, rows in (("train", [*map(row, range(24)), *bad]), ("heldout", [row(30), row(31), row(32), row(33)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def one_process() -> Iterator[None]:
    runtime.start(ONE, seed=0)
    yield
    runtime.stop()


def objective(preferences: Path, tokenizer: Any, **changes: Any) -> RewardObjective:
    data = RewardData(preferences=preferences, **changes)
    return RewardObjective(data, tokenizer=tokenizer, sequence_length=48, seed=0)


def test_the_score_is_read_at_the_end_of_the_response(preferences: Path, chat_tokenizer: Any) -> None:
    reward = objective(preferences, chat_tokenizer, margin=2.0)
    assert reward.drops == {"equal_responses": 1, "wrong_order": 1, "too_long": 1}
    pair = reward.heldout(1)
    assert pair
    batch = reward.collate([pair])
    assert batch["loss_mask"].sum(dim=1).tolist() == [1, 1]
    for tokens, at in zip(batch["tokens"], batch["loss_mask"].argmax(dim=1), strict=True):
        assert chat_tokenizer.decode(tokens[at]) == "<|im_end|>"
    assert batch["margin"].tolist() == [1.5]
    assert reward.count(batch).item() == 1


def test_balanced_tags_appear_equally_often(preferences: Path, chat_tokenizer: Any) -> None:
    def tags(balance: bool) -> Counter[bool]:
        reward = objective(preferences, chat_tokenizer, balance_tags=balance)
        read = [chat_tokenizer.decode(reward.sample(index)["chosen"]) for index in range(48)]
        return Counter(int(text.split()[1]) % 4 == 0 for text in read)

    assert tags(balance=False) == {True: 12, False: 36}
    assert tags(balance=True) == {True: 24, False: 24}


def test_calibration_error_is_the_gap_between_confidence_and_accuracy(preferences: Path, chat_tokenizer: Any) -> None:
    """Four pairs are ranked with 73% and one with 95% confidence; three of the four are right."""
    reward = objective(preferences, chat_tokenizer)
    ends = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0], [3.0, 0.0]]).flatten()
    batch = reward.collate([reward.sample(index) for index in range(5)])
    _, count, sums = reward.loss(ends[:, None] * batch["loss_mask"], batch)
    metrics = reward.report({"loss": 0.5} | {name: float(value / count) for name, value in sums.items()})
    assert metrics["accuracy"] == pytest.approx(0.8)
    assert metrics["accuracy_70"] == pytest.approx(0.75)
    assert metrics["share_90"] == pytest.approx(0.2)
    one, three = torch.sigmoid(torch.tensor(1.0)).item(), torch.sigmoid(torch.tensor(3.0)).item()
    assert metrics["ece"] == pytest.approx(0.8 * abs(one - 0.75) + 0.2 * (1 - three), rel=1e-5)
    assert not [name for name in metrics if name.startswith("bin")]


def test_a_reward_model_learns_to_rank_and_scores(
    preferences: Path, chat_tokenizer: Any, chat_tokenizer_folder: Path, tmp_path: Path
) -> None:
    runtime.start(ONE, seed=0)
    start = tmp_path / "start"
    checkpoint.save(
        start, models.build(MODEL, ONE, seed=3), model=MODEL, layout=ONE, step=0, consumed_samples=0, seed=3,
        objective="sft", tokenizer=chat_tokenizer_folder,
    )  # fmt: skip
    runtime.stop()
    job = TrainJob(
        output=tmp_path / "first",
        parent=start,
        steps=12,
        batch=BatchConfig(sequence_length=48, micro_batch_size=4, global_batch_size=8),
        optimizer=OptimizerConfig(lr=5e-3),
        data=RewardData(preferences=preferences, margin=0.1),
    )
    assert loop.train(job, lambda: False)
    runtime.stop()
    metrics = json.loads((job.output / "result.json").read_text())["metrics"]
    assert (metrics["dropped_equal_responses"], metrics["dropped_wrong_order"]) == (1, 1)
    [first, *_, last] = [line for line in read_metrics(job.output / "metrics.jsonl") if line["event"] == "evaluate"]
    assert last["heldout_loss"] < first["heldout_loss"] - 0.3
    assert last["heldout_accuracy"] == 1.0
    assert 0 <= last["heldout_ece"] < 0.5
    trained = job.output / "checkpoints" / "step_00000012"
    assert checkpoint.read_model(trained) == replace(MODEL, head="scalar")

    again = job.but(output=tmp_path / "second", parent=trained, steps=1)  # pretraining, then fine-tuning
    assert loop.train(again, lambda: False)
    runtime.stop()
    [begun, *_] = [line for line in read_metrics(again.output / "metrics.jsonl") if line["event"] == "evaluate"]
    assert begun["heldout_loss"] == pytest.approx(last["heldout_loss"], rel=1e-6)

    runtime.start(ONE, seed=0)
    judge = RewardModel(trained, ONE)
    prompt = [{"role": "user", "content": "Is 31 a number?"}]
    responses = ["yes, 31 is", "no, 31 is not", "yes"]
    rewards = judge.score([prompt] * 3, responses, batch_size=2)
    assert rewards[0] > rewards[1]
    prompt_ids, response_ids = encode_response(chat_tokenizer, prompt, {"role": "assistant", "content": responses[1]})
    ids = prompt_ids + response_ids
    tokens = torch.tensor([ids])
    batch = {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones(tokens.shape)}
    alone = outputs.values(judge.chunks, batch | {"position_ids": torch.arange(len(ids))[None]})[0, -1]
    assert rewards[1] == pytest.approx(alone.item(), rel=1e-4)
    with pytest.raises(ConfigError, match=r"a conversation has .* tokens; the reward model's maximum is 64"):
        judge.score([prompt], ["yes " * 80])
    with pytest.raises(ConfigError, match="is a language model, not a reward model"):
        RewardModel(start, ONE)
    runtime.stop()
