"""Losses and gradients of GRPO and PPO against TRL's, or against their definitions where TRL has none."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOTrainer

from cupola_platform.errors import ConfigError
from cupola_trainer.objectives.losses.actor_critic import (
    AdaptiveKl,
    FixedKl,
    clipped_value_loss,
    generalized_advantages,
    token_rewards,
    whiten,
)
from cupola_trainer.objectives.losses.policy_gradient import (
    clipped_ratio_loss,
    clipped_weight_loss,
    group_advantages,
    kl_estimate,
    length_penalty,
    token_weights,
)

ROWS, TOKENS, LONGEST = 12, 9, 9


def draw(seed: int = 0) -> dict[str, Tensor]:
    """Random log-probabilities [rows, tokens] of policy, old policy and reference, advantages and response masks."""
    random = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(ROWS, TOKENS, generator=random, dtype=torch.float64)
    lengths = torch.randint(1, TOKENS + 1, (ROWS, 1), generator=random)
    return {
        "logps": logps.requires_grad_(),
        "old": (logps + 0.3 * torch.randn(logps.shape, generator=random)).detach(),
        "ref": (logps + 0.5 * torch.randn(logps.shape, generator=random)).detach(),
        "advantages": torch.randn(ROWS, generator=random, dtype=torch.float64),
        "mask": (torch.arange(TOKENS) < lengths).double(),
    }


def trl_loss(
    data: dict[str, Tensor], loss_type: str, beta: float, low: float, high: float, level: str = "token"
) -> Tensor:
    """The loss of TRL's trainer, given our log-probabilities in place of a model's."""
    trainer: Any = object.__new__(GRPOTrainer)
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (data["logps"], torch.zeros(ROWS, TOKENS), None)
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 1.0, None
    trainer.importance_sampling_level, trainer.loss_type, trainer.beta = level, loss_type, beta
    trainer.epsilon_low, trainer.epsilon_high, trainer.max_completion_length = low, high, LONGEST
    trainer.args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    trainer.use_vllm = trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = False
    trainer.current_gradient_accumulation_steps = 1
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = Accelerator(cpu=True)
    trainer._metrics = {"train": defaultdict(list)}
    empty = torch.zeros(ROWS, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": torch.zeros(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": data["mask"],
        "advantages": data["advantages"],
        "old_per_token_logps": data["old"],
        "ref_per_token_logps": data["ref"],
        "num_items_in_batch": data["mask"].sum(),
    }
    loss: Tensor = trainer._compute_loss(None, inputs)
    return loss


@pytest.mark.parametrize(
    ("normalization", "theirs"), [("response", "grpo"), ("token", "dapo"), ("constant", "dr_grpo")]
)
@pytest.mark.parametrize(("beta", "high"), [(0.0, 0.2), (0.04, 0.28)])
def test_the_loss_and_its_gradient_equal_trls(normalization: Any, theirs: str, beta: float, high: float) -> None:
    data = draw()
    losses, clipped = clipped_ratio_loss(data["logps"] - data["old"], data["advantages"][:, None], low=0.2, high=high)
    losses = losses + beta * kl_estimate(data["logps"], data["ref"])
    loss = (losses * token_weights(data["mask"], normalization, LONGEST)).sum() / ROWS
    expected = trl_loss(data, theirs, beta, 0.2, high)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    ours, reference = (torch.autograd.grad(value, data["logps"], retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
    assert 0.05 < clipped.double().mean() < 0.5


def assert_same(loss: Tensor, expected: Tensor, logps: Tensor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    ours, reference = (torch.autograd.grad(value, logps, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)


def test_one_ratio_for_each_response_equals_trls_gspo() -> None:
    data = draw()
    shares = data["mask"] / data["mask"].sum(dim=1, keepdim=True)
    log_ratio = ((data["logps"] - data["old"]) * shares).sum(dim=1, keepdim=True).expand_as(shares)
    losses, clipped = clipped_ratio_loss(log_ratio, data["advantages"][:, None], low=0.05, high=0.05)
    assert_same((losses * shares).sum() / ROWS, trl_loss(data, "grpo", 0.0, 0.05, 0.05, "sequence"), data["logps"])
    assert clipped.any()


def test_clipped_weights_equal_trls_cispo() -> None:
    data = draw()
    log_ratio = data["logps"] - data["old"]
    losses, clipped = clipped_weight_loss(data["logps"], log_ratio, data["advantages"][:, None], high=0.2)
    loss = (losses * token_weights(data["mask"], "token", LONGEST)).sum() / ROWS
    assert_same(loss, trl_loss(data, "cispo", 0.0, 0.2, 1.2), data["logps"])
    assert clipped.any()


def test_a_reward_is_compared_with_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 5.0], [2.0, 2.0, 3.0, 2.0]])
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / 3
    torch.testing.assert_close(group_advantages(rewards, baseline="leave_one_out", scale="none"), rewards - others)


def test_advantages_are_divided_by_the_rollouts_standard_deviation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 5.0], [2.0, 2.0, 3.0, 2.0]])
    expected = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std() + 1e-4)  # TRL's scale_rewards="batch"
    torch.testing.assert_close(group_advantages(rewards, scale="rollout"), expected)


def test_the_length_penalty_falls_over_the_buffer() -> None:
    lengths = torch.tensor([0.0, 6.0, 7.0, 8.0, 10.0])
    assert length_penalty(lengths, 10, 4).tolist() == [0.0, 0.0, -0.25, -0.5, -1.0]
    assert length_penalty(lengths, 10, 0).abs().sum() == 0


def test_advantages_are_divided_by_the_groups_standard_deviation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0], [3.0, 1.0, 2.0, 6.0]])
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)  # as in TRL
    torch.testing.assert_close(group_advantages(rewards), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(group_advantages(rewards, scale="none")[2], torch.tensor([0.0, -2.0, -1.0, 3.0]))


def test_responses_without_a_reward_are_ignored_and_a_lone_one_has_no_advantage() -> None:
    rewards = torch.tensor([[1.0, float("nan"), 0.0], [float("nan"), 5.0, float("nan")]])
    advantages = group_advantages(rewards, ~rewards.isnan())
    torch.testing.assert_close(advantages[0, [0, 2]], group_advantages(torch.tensor([[1.0, 0.0]]))[0])
    assert advantages[0, 1] == 0
    assert advantages[1].tolist() == [0, 0, 0]


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="samples_per_prompt=1"):
        group_advantages(torch.ones(4, 1))


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    random = torch.Generator().manual_seed(1)
    policy, reference = (torch.randn(50, generator=random, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum")
    for kind in ("k1", "k3"):
        expectation = (policy.exp() * kl_estimate(policy, reference, kind)).sum()  # type: ignore[arg-type]
        torch.testing.assert_close(expectation, exact, rtol=1e-12, atol=1e-12)
    assert (kl_estimate(policy, reference, "k3") >= 0).all()
    torch.testing.assert_close(kl_estimate(policy, reference, "k2"), (policy - reference).square() / 2)
    assert (kl_estimate(policy, reference, "k1") < 0).any()


def test_generalized_advantages_are_discounted_sums_of_residuals() -> None:
    data = draw(3)
    mask, gamma, decay = data["mask"], 0.97, 0.9
    rewards, values = data["old"], data["ref"]
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, gae_lambda=decay)
    for row in range(ROWS):
        length = int(mask[row].sum())
        following = [*values[row, 1:length].tolist(), 0.0]
        residuals = [float(rewards[row, t]) + gamma * following[t] - float(values[row, t]) for t in range(length)]
        for t in range(length):
            expected = sum((gamma * decay) ** (later - t) * residuals[later] for later in range(t, length))
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-12)
            assert float(returns[row, t]) == pytest.approx(expected + float(values[row, t]), abs=1e-12)
        assert advantages[row, length:].abs().sum() == 0


def test_with_lambda_one_the_return_is_the_sum_of_later_rewards() -> None:
    data = draw(4)
    _, returns = generalized_advantages(data["old"], data["ref"], data["mask"], gamma=1.0, gae_lambda=1.0)
    kept = data["old"] * data["mask"]
    torch.testing.assert_close(returns, kept.flip(1).cumsum(1).flip(1) * data["mask"], rtol=1e-9, atol=1e-9)


def test_the_score_is_given_at_the_last_token_and_the_penalty_at_each() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    rewards = token_rewards(torch.tensor([5.0, -1.0, 9.0]), torch.full((3, 3), 2.0), mask, 0.25)
    assert rewards.tolist() == [[-0.5, 4.5, 0.0], [-1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_whitening_gives_mean_zero_and_variance_one_over_the_mask() -> None:
    data = draw(5)
    kept = whiten(data["old"], data["mask"])[data["mask"].bool()]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-12)
    assert float(kept.var()) == pytest.approx(1, abs=1e-6)


def test_the_value_loss_is_clipped_only_outside_the_clip_range() -> None:
    values = torch.tensor([0.10, 0.50, -0.50, 0.50], requires_grad=True)
    returns = torch.tensor([1.0, 1.0, 1.0, -1.0])
    losses, held = clipped_value_loss(values, torch.zeros(4), returns, clip=0.15)
    assert losses.tolist() == pytest.approx([0.405, 0.36125, 1.125, 1.125])  # 0.9^2 / 2, 0.85^2 / 2, 1.5^2 / 2 twice
    assert held.tolist() == [False, True, False, False]
    losses.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-0.9, 0.0, -1.5, 1.5])


def test_the_adaptive_kl_weight_follows_the_paper_and_the_fixed_one_is_constant() -> None:
    adaptive, fixed = AdaptiveKl(0.1, target=6.0, horizon=1000.0), FixedKl(0.04)
    for kl in (12.0, 6.3, 0.0):
        for controller in (adaptive, fixed):
            controller.update(kl, 100)
    steps = [np.clip(kl / 6.0 - 1, -0.2, 0.2) for kl in (12.0, 6.3, 0.0)]
    assert adaptive.value == pytest.approx(0.1 * np.prod([1 + step * 100 / 1000 for step in steps]))
    assert fixed.value == 0.04
