"""Preference and distillation losses: values and gradients against TRL's trainers and torch's KL."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOTrainer

from cupola_platform.errors import ConfigError
from cupola_trainer.objectives.losses.distillation import distillation_loss, topk_distillation_loss
from cupola_trainer.objectives.losses.preference import dpo_loss, kto_loss, reference_free_loss, reward_loss

PAIRS, VOCABULARY = 16, 40


def draw(seed: int, *shape: int, spread: float = 1.0) -> Tensor:
    values = spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_()


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Values and gradients are equal within 1e-6."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    actual, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[:PAIRS], values[PAIRS:]


def trl_dpo(logps: Tensor, reference: Tensor, loss_type: str, beta: float) -> Tensor:
    """TRL's DPO loss of one-token responses, with log-probabilities [2 pairs] in place of a model's."""
    trainer: Any = object.__new__(DPOTrainer)
    zeros = torch.zeros(2 * PAIRS, 1)
    outputs = SimpleNamespace(log_probs=logps[:, None], entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    trainer.model, trainer.accelerator = SimpleNamespace(training=True), Accelerator(cpu=True)
    trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer.ld_alpha, trainer.precompute_ref_logps, trainer.f_divergence_type = None, True, "reverse_kl"
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer.beta, trainer._tp_size, trainer._total_train_tokens = beta, 1, 0
    trainer._metrics = {"train": defaultdict(list)}
    chosen, rejected = reference.chunk(2)
    ids = torch.zeros(2 * PAIRS, 2, dtype=torch.long)
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.tensor([[0, 1]] * 2 * PAIRS),
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(lambda **kwargs: outputs, inputs, False)
    return loss


@pytest.mark.parametrize(
    ("loss_type", "beta"), [("sigmoid", 0.1), ("sigmoid", 0.7), ("ipo", 0.2), ("apo_zero", 0.1), ("apo_down", 0.3)]
)
def test_dpo_equals_trls(loss_type: str, beta: float) -> None:
    logps, reference = draw(0, 2 * PAIRS, spread=5), draw(1, 2 * PAIRS, spread=5).detach()
    losses, chosen, rejected = dpo_loss(*logps.chunk(2), *reference.chunk(2), beta=beta, loss_type=loss_type)
    same(losses.mean(), trl_dpo(logps, reference, loss_type, beta), logps)
    torch.testing.assert_close(torch.cat([chosen, rejected]), beta * (logps - reference).detach())


def trl_kto(logps: Tensor, reference: Tensor, others: Tensor, **settings: float) -> Tensor:
    """TRL's KTO loss of one-token responses [2 pairs], with log(policy/ref) of responses to other prompts."""
    trainer: Any = object.__new__(KTOTrainer)
    trainer.model, trainer.accelerator = SimpleNamespace(training=True), Accelerator(cpu=True)
    trainer.aux_loss_enabled, trainer.calculate_KL, trainer.precompute_ref_logps = False, True, True
    trainer.loss_type, trainer._tp_size, trainer._total_train_tokens = "kto", 1, 0
    trainer._metrics = {"train": defaultdict(list)}
    for name, value in settings.items():
        setattr(trainer, name, value)
    ids, completion = torch.zeros(2 * PAIRS, 2, dtype=torch.long), torch.tensor([[0, 1]] * 2 * PAIRS)
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion, "ref_logps": reference,
        "label": torch.arange(2 * PAIRS) < PAIRS, "KL_input_ids": ids, "KL_attention_mask": torch.ones_like(ids),
        "KL_completion_mask": completion, "ref_KL_logps": torch.zeros(2 * PAIRS),
    }  # fmt: skip
    zeros = torch.zeros(2 * PAIRS, 1)
    answers = iter([others, logps])  # TRL asks for those of the KL first
    loss: Tensor = trainer._compute_loss(
        lambda **kwargs: SimpleNamespace(log_probs=next(answers)[:, None], entropy=zeros, mean_logits=zeros),
        inputs,
        False,
    )
    return loss


@pytest.mark.parametrize("shift", [3.0, -3.0], ids=["kl above 0", "kl below 0"])
@pytest.mark.parametrize(("desirable", "undesirable"), [(1.0, 1.0), (0.7, 1.3)])
def test_kto_equals_trls(shift: float, desirable: float, undesirable: float) -> None:
    logps, reference = draw(0, 2 * PAIRS, spread=5), draw(1, 2 * PAIRS, spread=5).detach()
    others = draw(2, 2 * PAIRS) + shift
    settings = {"beta": 0.3, "desirable_weight": desirable, "undesirable_weight": undesirable}
    better, worse = (logps - reference).chunk(2)
    losses, chosen, rejected, z = kto_loss(better, worse, others, **settings)
    same(losses.mean(), trl_kto(logps, reference, others, **settings), logps)
    torch.testing.assert_close(torch.cat([chosen, rejected]), 0.3 * (logps - reference).detach())
    assert z.item() == pytest.approx(max(others.mean().item(), 0))
    assert not z.requires_grad


@pytest.mark.parametrize(("loss_type", "theirs"), [("cpo", "sigmoid"), ("simpo", "simpo")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cpo_and_simpo_equal_trls(loss_type: str, theirs: str, smoothing: float) -> None:
    logps, lengths = draw(0, 2 * PAIRS, spread=5), torch.arange(1.0, 2 * PAIRS + 1, dtype=torch.float64)
    trainer: Any = object.__new__(CPOTrainer)
    trainer.alpha, trainer.loss_type, trainer.beta, trainer.simpo_gamma = 0.0, theirs, 0.3, 0.5
    trainer.label_smoothing, trainer.accelerator = smoothing, Accelerator(cpu=True)
    better, worse = logps.chunk(2)
    losses, chosen, rejected = reference_free_loss(
        better, worse, halves(lengths), loss_type=loss_type, beta=0.3, label_smoothing=smoothing, target_margin=0.5
    )
    given = logps if loss_type == "cpo" else logps / lengths  # TRL averages before
    expected, *rewards = trainer.cpo_loss(*given.chunk(2))
    same(losses.mean(), expected.mean(), logps)
    torch.testing.assert_close([chosen, rejected], rewards)


def test_orpo_equals_trls() -> None:
    logps = draw(0, 2 * PAIRS, spread=5).detach().abs().neg().requires_grad_()
    lengths = torch.arange(1.0, 2 * PAIRS + 1, dtype=torch.float64)
    trainer: Any = object.__new__(ORPOTrainer)
    trainer.beta, trainer.accelerator = 0.2, Accelerator(cpu=True)
    better, worse = logps.chunk(2)
    losses, *_ = reference_free_loss(better, worse, halves(lengths), loss_type="orpo", beta=0.2)
    expected = -trainer.odds_ratio_loss(*(logps / lengths).chunk(2))[0]  # in fp32
    torch.testing.assert_close(losses, expected.double(), rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(each.sum(), logps, retain_graph=True)[0] for each in (losses, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_odds_of_a_certain_response_stay_finite() -> None:
    logps = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
    losses, *_ = reference_free_loss(logps, logps.flip(0), (torch.ones(3), torch.ones(3)), loss_type="orpo")
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("center", [0.0, 0.01])
def test_the_ranking_loss_equals_trls(margins: bool, center: float) -> None:
    rewards, margin = draw(2, 2 * PAIRS, spread=3), draw(3, PAIRS).detach().abs()
    trainer: Any = object.__new__(RewardTrainer)
    trainer.model, trainer.accelerator = SimpleNamespace(training=False), Accelerator(cpu=True)
    trainer.args = SimpleNamespace(center_rewards_coefficient=center or None)
    trainer._metrics, trainer._total_train_tokens = {"eval": defaultdict(list)}, 0
    inputs: dict[str, Any] = {"margin": margin} if margins else {}
    theirs = trainer.compute_loss(lambda **kwargs: SimpleNamespace(logits=rewards[:, None]), inputs)
    chosen, rejected = rewards.chunk(2)
    ours = reward_loss(chosen, rejected, margin if margins else None, center=center)
    assert ours.shape == (PAIRS,)
    same(ours.mean(), theirs, rewards)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("divergence", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)])
def test_every_divergence_equals_trls(divergence: str, beta: float, temperature: float) -> None:
    student, teacher = draw(4, 3, 5, VOCABULARY, spread=2), draw(5, 3, 5, VOCABULARY, spread=2).detach()
    ours = distillation_loss(student, teacher, divergence=divergence, temperature=temperature, beta=beta)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="none")
    assert ours.shape == (3, 5)
    same(ours.sum(), theirs.sum(), student)


def test_forward_kl_equals_torchs() -> None:
    student, teacher = draw(6, 7, VOCABULARY, spread=4), draw(7, 7, VOCABULARY, spread=4).detach()
    theirs = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
    ours = distillation_loss(student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    same(ours.sum(), theirs.sum(), student)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_tokens_outside_the_top_k_count_as_one_outcome(divergence: str) -> None:
    student, teacher = draw(8, 6, VOCABULARY, spread=2), draw(9, 6, VOCABULARY, spread=2).detach()
    logprobs, tokens = (teacher / 1.5).log_softmax(-1).topk(4)
    ours = topk_distillation_loss(student, logprobs, tokens, divergence=divergence, temperature=1.5, beta=0.4)

    def outcomes(logits: Tensor) -> Tensor:
        probabilities = (logits / 1.5).softmax(-1)
        taken = probabilities.gather(-1, tokens)
        return torch.cat([taken, 1 - taken.sum(-1, keepdim=True)], dim=-1).log()

    theirs = distillation_loss(outcomes(student), outcomes(teacher), divergence=divergence, beta=0.4)
    same(ours.sum(), theirs.sum(), student)


def test_the_full_vocabulary_as_top_k_gives_the_full_divergence() -> None:
    student, teacher = draw(10, 6, VOCABULARY), draw(11, 6, VOCABULARY).detach()
    logprobs, tokens = teacher.log_softmax(-1).topk(VOCABULARY)
    ours = topk_distillation_loss(student, logprobs, tokens)
    torch.testing.assert_close(ours, distillation_loss(student, teacher), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("divergence", "beta"), [("wasserstein", 0.5), ("jsd", 1.0)])
def test_an_unknown_divergence_is_refused(divergence: str, beta: float) -> None:
    with pytest.raises(ConfigError, match=f"no divergence '{divergence}' with beta={beta}"):
        distillation_loss(draw(0, 2, 4), draw(1, 2, 4), divergence=divergence, beta=beta)
