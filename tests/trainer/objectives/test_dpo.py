"""DPO: the formula, its gradient, and learning from pairs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import DpoData, LayoutConfig
from cupola_trainer.objectives.dpo import DpoObjective
from cupola_trainer.objectives.losses.preference import dpo_loss

CHOSEN, REJECTED = torch.tensor([-5.0, -12.0, -3.5]), torch.tensor([-7.0, -11.0, -3.5])
REFERENCE = torch.tensor([-6.0, -10.0, -3.0]), torch.tensor([-6.5, -12.5, -4.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_of_an_untrained_pair_is_ln_2() -> None:
    losses, chosen, rejected = dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED)
    assert losses.tolist() == pytest.approx([math.log(2)] * 3)
    assert chosen.tolist() == rejected.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.0), (0.3, 0.2)])
def test_the_loss_of_every_pair_equals_the_papers(beta: float, smoothing: float) -> None:
    losses, chosen, rejected = dpo_loss(CHOSEN, REJECTED, *REFERENCE, beta=beta, label_smoothing=smoothing)
    for pair in range(3):
        policy_ratio = math.exp(CHOSEN[pair] - REJECTED[pair])  # from probabilities rather than logs
        reference_ratio = math.exp(REFERENCE[0][pair] - REFERENCE[1][pair])
        preferred = (policy_ratio / reference_ratio) ** beta / (1 + (policy_ratio / reference_ratio) ** beta)
        expected = -(1 - smoothing) * math.log(preferred) - smoothing * math.log(1 - preferred)
        assert losses[pair].item() == pytest.approx(expected, rel=1e-5)
        assert (chosen - rejected)[pair].item() == pytest.approx(math.log(preferred / (1 - preferred)), rel=1e-4)


def test_the_gradient_weights_a_pair_by_how_wrong_it_is() -> None:
    """Rafailov et al. 2023, section 4: the weight is beta sigmoid(rejected reward - chosen reward)."""
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    losses, chosen_rewards, rejected_rewards = dpo_loss(chosen, rejected, *REFERENCE, beta=0.4)
    losses.sum().backward()
    weights = [0.4 * sigmoid(r - c) for c, r in zip(chosen_rewards.tolist(), rejected_rewards.tolist(), strict=True)]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-weight for weight in weights])
    assert rejected.grad.tolist() == pytest.approx(weights)
    assert not chosen_rewards.requires_grad


def test_ipo_pulls_the_margin_to_one_over_two_beta() -> None:
    losses, _, _ = dpo_loss(CHOSEN, REJECTED, *REFERENCE, beta=0.2, loss_type="ipo")
    assert losses.tolist() == pytest.approx([(1.5 - 2.5) ** 2, (-3.5 - 2.5) ** 2, (-1.0 - 2.5) ** 2])
    at_rest, _, _ = dpo_loss(CHOSEN + 2.5, CHOSEN, CHOSEN, CHOSEN, beta=0.2, loss_type="ipo")
    assert at_rest.tolist() == pytest.approx([0, 0, 0], abs=1e-9)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="no loss_type 'hinge'"):
        dpo_loss(CHOSEN, REJECTED, *REFERENCE, loss_type="hinge")


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    """Six pairs in which the better response says yes, two held out and one malformed."""

    def row(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Is {number} a number?"}]
        return {"messages": messages, "chosen": f"yes, {number} is", "rejected": "no"}

    bad = [{**row(9), "rejected": ""}, {**row(9), "chosen": "yes " * 100}, {"chosen": "a", "rejected": "b"}]
    for name, rows in (("train", [*map(row, range(6)), *bad]), ("heldout", [row(6), row(7)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path


def model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=1024, num_key_value_heads=1, initializer_range=0.1, **shape))


def token_losses(policy: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = policy(batch["tokens"], position_ids=batch["position_ids"]).logits
    return F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")


def objective(preferences: Path, tokenizer: Any, kept: Path | None = None, **changes: Any) -> DpoObjective:
    data = DpoData(preferences=preferences, **changes)
    return DpoObjective(data, tokenizer=tokenizer, sequence_length=48, pairs_per_pass=3, seed=0, kept=kept)


def test_responses_are_scored_without_their_prompts(preferences: Path, chat_tokenizer: Any) -> None:
    dpo = objective(preferences, chat_tokenizer)
    assert dpo.drops == {"empty_message": 1, "too_long": 1, "no_prompt": 1}
    batch = dpo.collate([pair for pair in (dpo.heldout(0), dpo.heldout(1)) if pair])
    assert batch["tokens"].shape == (4, 48)
    responses = [
        chat_tokenizer.decode(labels[mask > 0])
        for labels, mask in zip(batch["labels"], batch["loss_mask"], strict=True)
    ]
    assert responses == ["yes, 6 is<|im_end|>", "no<|im_end|>", "yes, 7 is<|im_end|>", "no<|im_end|>"]


def test_the_reference_is_the_initial_model(preferences: Path, chat_tokenizer: Any) -> None:
    runtime.start(LayoutConfig(), seed=0)
    kept = preferences / "reference.npz"
    dpo, policy = objective(preferences, chat_tokenizer, kept), model()
    with torch.no_grad():
        dpo.prepare(lambda batch: token_losses(policy, batch))
    pair = dpo.heldout(1)
    assert pair
    tokens = torch.tensor(np.concatenate([pair["prompt"], pair["chosen"]]))
    with torch.no_grad():
        logprobs = policy(tokens[None]).logits[0].log_softmax(-1)
    start = len(pair["prompt"])
    alone = sum(logprobs[place - 1, tokens[place]].item() for place in range(start, len(tokens)))
    assert pair["reference"][0] == pytest.approx(alone, rel=1e-5)
    resumed = objective(preferences, chat_tokenizer, kept)
    resumed.prepare(lambda batch: pytest.fail("the reference should have been read from the file"))
    assert resumed.sample(11)["reference"].tolist() == dpo.sample(11)["reference"].tolist()
    runtime.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss_type": "ipo"},
        {"sft_weight": 0.5},
        {"loss_type": "apo_zero"},
        {"loss_type": "apo_down"},
        {"loss_type": "kto", "desirable_weight": 1.2},
        {"loss_type": "cpo", "sft_weight": 0.1},
        {"loss_type": "simpo", "beta": 2.0, "target_margin": 1.0},
        {"loss_type": "orpo", "sft_weight": 1.0},
    ],
    ids=str,
)
def test_training_flips_the_ranking_of_held_out_pairs(
    preferences: Path, chat_tokenizer: Any, changes: dict[str, Any]
) -> None:
    dpo, policy = objective(preferences, chat_tokenizer, **changes), model()
    with torch.no_grad():
        dpo.prepare(lambda batch: token_losses(policy, batch))
    heldout = dpo.collate([pair for pair in (dpo.heldout(0), dpo.heldout(1)) if pair])
    total, count, sums = dpo.loss(token_losses(policy, heldout), heldout)
    assert count.item() == 2
    before = sums["margin"].item()
    if dpo.data.needs_reference:
        assert before == pytest.approx(0, abs=1e-5)
    if not changes:
        assert total.item() == pytest.approx(2 * math.log(2), rel=1e-5)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for step in range(8):
        batch = dpo.collate([dpo.sample(3 * step + place) for place in range(3)])
        total, count, _ = dpo.loss(token_losses(policy, batch), batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    with torch.no_grad():
        _, _, sums = dpo.loss(token_losses(policy, heldout), heldout)
    assert sums["margin"].item() > before + 0.1
    assert not dpo.data.needs_reference or sums["accuracy"].item() == 2
    assert sums["margin"].item() == pytest.approx((sums["chosen_reward"] - sums["rejected_reward"]).item(), rel=1e-5)


def test_ktos_kl_is_of_responses_to_other_prompts(preferences: Path, chat_tokenizer: Any) -> None:
    dpo, policy = objective(preferences, chat_tokenizer, loss_type="kto"), model()
    with torch.no_grad():
        dpo.prepare(lambda batch: token_losses(policy, batch))
        for parameter in policy.parameters():
            parameter.add_(0.02)  # any other weights
    pairs = [dpo.sample(index) for index in range(6)]
    batch = dpo.collate(pairs)
    assert batch["tokens"].shape == (18, 48)
    texts = [chat_tokenizer.decode(row) for row in batch["tokens"]]
    for place, pair in enumerate(pairs):
        own, other = (pair[name].tolist() for name in ("chosen", "mismatched"))
        assert other != own
        assert texts[3 * place + 2].startswith(chat_tokenizer.decode(pair["prompt"]))
        assert chat_tokenizer.decode(other).removesuffix("<|im_end|>") in texts[3 * place + 2]
    with torch.no_grad():
        output = token_losses(policy, batch)
    _, count, sums = dpo.loss(output, batch)
    assert count.item() == 6
    logps = -(output * batch["loss_mask"]).sum(dim=1).view(6, 3)[:, 2]
    ratios = logps - torch.tensor(np.array([pair["reference"][2] for pair in pairs]))
    assert sums["kl"].item() / 6 == pytest.approx(max(ratios.mean().item(), 0), rel=1e-5)


def test_kto_needs_two_prompts(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"messages": [{"role": "user", "content": "Yes or no?"}], "chosen": "yes", "rejected": "no"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "chosen": "sure"}) + "\n")
    (tmp_path / "heldout.jsonl").write_text("")
    with pytest.raises(ConfigError, match="All pairs have the same prompt"):
        objective(tmp_path, chat_tokenizer, loss_type="kto")
    with pytest.raises(ValueError, match="only kto has them"):
        DpoData(preferences=tmp_path, desirable_weight=2.0)


def test_no_usable_pair_is_refused(preferences: Path, chat_tokenizer: Any) -> None:
    data = DpoData(preferences=preferences)
    said = r"has no usable pair that fits sequence_length=8; dropped: .*too_long \d+ \(first train.jsonl, line 1\)"
    with pytest.raises(ConfigError, match=said):
        DpoObjective(data, tokenizer=chat_tokenizer, sequence_length=8, pairs_per_pass=3, seed=0)
