"""Divergences of a student's next-token distribution from a teacher's, as pure functions."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from cupola_platform.errors import ConfigError
from cupola_trainer.objectives.collectives import shared, summed


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Divergence at each position [...] over the full vocabulary, from logits [..., v] of both; in fp32 or better.

    With S and T the student's and the teacher's distributions at the given temperature:
    "forward_kl": KL(T || S) (Hinton et al. 2015, without the factor temperature^2; Gemma 2's -sum P_T log P_S minus T's
    entropy). "reverse_kl": KL(S || T) (Gu et al. 2023).
    "jsd": beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S (Agarwal et al. 2023, equation 1).

    Args:
        group: the ranks that the vocabulary is split over, each with logits [..., v / ranks]; None for a single rank.
    """
    student = _log_softmax(student_logits / temperature, group)
    teacher = _log_softmax(teacher_logits / temperature, group)
    return summed(_divergences(student, teacher, divergence, beta).sum(dim=-1), group)


def topk_distillation_loss(
    student_logits: Tensor,
    teacher_logprobs: Tensor,
    teacher_tokens: Tensor,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`distillation_loss` over k + 1 outcomes: the teacher's k most likely tokens, and any other token.

    Args:
        student_logits: [..., v].
        teacher_logprobs: [..., k], normalized over the full vocabulary, with the temperature already applied.
        teacher_tokens: [..., k], token ids.
    """
    tempered = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32)) / temperature
    student = token_logprobs(tempered, teacher_tokens, group)
    teacher = teacher_logprobs.to(student.dtype)
    return _divergences(_with_the_rest(student), _with_the_rest(teacher), divergence, beta).sum(dim=-1)


def _divergences(student: Tensor, teacher: Tensor, divergence: str, beta: float) -> Tensor:
    """Each outcome's contribution, from log-probabilities."""
    if divergence == "forward_kl":
        return teacher.exp() * (teacher - student)
    if divergence == "reverse_kl":
        return student.exp() * (student - teacher)
    if divergence != "jsd" or not 0 < beta < 1:
        raise ConfigError(
            f"Distillation has no divergence {divergence!r} with beta={beta}. Use forward_kl, reverse_kl, or jsd "
            "with a beta between 0 and 1."
        )
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * teacher.exp() * (teacher - mixture) + (1 - beta) * student.exp() * (student - mixture)


def _log_softmax(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This rank's part of the log-softmax over the full vocabulary."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if group is None or group.size() == 1:
        return logits.log_softmax(dim=-1)
    centred = logits - _largest(logits, group)
    return centred - shared(centred.exp().sum(dim=-1, keepdim=True), group).log()


def token_logprobs(logits: Tensor, tokens: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Log-probabilities of tokens [..., k], the same on every rank."""
    if group is None or group.size() == 1:
        return logits.log_softmax(dim=-1).gather(-1, tokens)
    centred = logits - _largest(logits, group)
    local = tokens - group.rank() * logits.size(-1)
    mine = (local >= 0) & (local < logits.size(-1))
    picked = centred.gather(-1, local.clamp(0, logits.size(-1) - 1)) * mine
    return summed(picked, group) - summed(centred.exp().sum(dim=-1, keepdim=True), group).log()


@torch.no_grad()  # type: ignore[untyped-decorator]
def vocabulary_topk(logits: Tensor, k: int, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and token ids [..., k] of the most likely tokens, the same on every rank, from logits
    [..., v / ranks]."""
    logprobs = _log_softmax(logits, group)
    best, tokens = logprobs.topk(min(k, logits.size(-1)))
    if group is None or group.size() == 1:
        return best, tokens
    parts = [torch.empty_like(best) for _ in range(group.size())]
    names = [torch.empty_like(tokens) for _ in range(group.size())]
    dist.all_gather(parts, best, group=group)
    dist.all_gather(names, tokens + group.rank() * logits.size(-1), group=group)
    best, places = torch.cat(parts, dim=-1).topk(k)
    return best, torch.cat(names, dim=-1).gather(-1, places)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _largest(logits: Tensor, group: dist.ProcessGroup) -> Tensor:
    largest = logits.amax(dim=-1, keepdim=True)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return largest


def _with_the_rest(logprobs: Tensor) -> Tensor:
    """[..., k] -> [..., k + 1], with the log-probability of all other outcomes last."""
    taken = logprobs.exp().sum(dim=-1, keepdim=True)
    rest = (1 - taken).clamp(min=torch.finfo(logprobs.dtype).eps)  # rounding may make it negative
    return torch.cat([logprobs, rest.log()], dim=-1)
