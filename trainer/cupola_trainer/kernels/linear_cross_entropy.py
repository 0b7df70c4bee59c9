"""Cross-entropy of a vocabulary-parallel linear layer, computing each logit once and never holding all of them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

FAR = 80.0
"""Above this loss, the fp32 probability has lost bits or is 0, so the loss is recomputed from the logits."""


@dataclass
class Guess:
    """Whether the token losses' gradient has so far been a scalar times the weights given in forward."""

    holds: bool = True


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weights: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    softcap: float | None = None,
    guess: Guess | None = None,
    rows: int = 256,
) -> Tensor:
    """-log softmax(hidden @ weight.T)[labels], in fp32 or better; 0, without any work, where a token's weight is 0.

    Logits are computed and consumed `rows` tokens at a time. Forward also computes the gradients, assuming that the
    losses' gradient is a scalar times `token_weights`; backward multiplies by that scalar. If the assumption fails (a
    loss over pairs), backward recomputes the logits, and `guess` disables the assumption from then on.

    Args:
        hidden: [..., h], the same on each rank of the group.
        weight: [vocabulary / ranks, h], this rank's part.
        labels: [...], over the whole vocabulary.
        token_weights: [...], the same on each rank of the group; None for ones.
        group: the ranks that share the vocabulary; the gradient of `hidden` is this rank's part of a sum over them.
        softcap: logits become softcap * tanh(logits / softcap).
        guess: kept by the caller between calls.

    Returns:
        losses [...].
    """
    guess = guess or Guess()
    needed = (hidden.requires_grad, weight.requires_grad) if torch.is_grad_enabled() else (False, False)
    head = _Head(group if group and group.size() > 1 else None, softcap, rows)
    if token_weights is None:
        token_weights = torch.ones_like(labels, dtype=hidden.dtype)
    flat = (hidden.reshape(-1, hidden.size(-1)), labels.reshape(-1), token_weights.reshape(-1))
    kept = _nonzero(flat[2])
    h, targets, weights = flat if kept is None else (part.index_select(0, kept) for part in flat)
    losses: Tensor = _LinearCrossEntropy.apply(h, weight, targets, weights, head, guess, needed)
    if kept is not None:
        losses = losses.new_zeros(labels.numel()).index_copy(0, kept, losses * (weights != 0))
    return losses.view(labels.shape)


def _nonzero(weights: Tensor) -> Tensor | None:
    """Indices of the nonzero weights, at least one; None if all are nonzero."""
    kept = weights.nonzero().squeeze(1)
    if len(kept) == len(weights):
        return None
    return kept if len(kept) else weights.new_zeros(1, dtype=torch.long)


Needed = tuple[bool, bool]
"""Whether hidden and weight need gradients."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        token_weights: Tensor,
        head: "_Head",
        guess: Guess,
        needed: Needed,
    ) -> Tensor:
        losses, *gradients = head.run(hidden, weight, labels, token_weights, needed if guess.holds else (False, False))
        ctx.head, ctx.guess, ctx.needed = head, guess, needed
        ctx.gradients = gradients if guess.holds else None  # not saved tensors, since backward returns them
        ctx.save_for_backward(hidden, weight, labels, token_weights)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        hidden, weight, labels, token_weights = ctx.saved_tensors
        guessed, ctx.gradients = ctx.gradients, None
        scale = _ratio(gradient, token_weights) if guessed else None
        if scale is None:
            ctx.guess.holds = ctx.guess.holds and guessed is None
            _, *guessed = ctx.head.run(hidden, weight, labels, gradient, ctx.needed)
        elif scale != 1:
            guessed = [part if part is None else part.mul_(scale) for part in guessed]
        return *guessed, None, None, None, None, None


def _ratio(gradient: Tensor, token_weights: Tensor) -> float | None:
    """The scalar with gradient == scalar * token_weights, bit for bit; None if there is none."""
    at = token_weights.abs().argmax()
    reference = float(token_weights[at])
    scale = float(gradient[at]) / reference if reference else 1.0
    return scale if torch.equal(token_weights.to(gradient.dtype) * scale, gradient) else None


@dataclass(frozen=True)
class _Head:
    """Configuration of the output layer."""

    group: dist.ProcessGroup | None
    softcap: float | None
    rows: int

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def run(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor, needed: Needed
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Losses [n], and the gradients of sum(token_weights * losses) for hidden [n, h] and weight [v, h]."""
        first = self.group.rank() * weight.size(0) if self.group else 0
        exact = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(labels.shape, dtype=exact, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if needed[0] else None
        # accumulated over many chunks, in fp32 or better
        of_weight = torch.empty(weight.shape, dtype=exact, device=weight.device) if needed[1] else None
        weighted = hidden * token_weights.to(hidden.dtype)[:, None] if needed[1] else hidden
        logits = hidden.new_empty(min(self.rows, len(labels)), len(weight))
        for start in range(0, len(labels), self.rows):
            chunk = slice(start, start + self.rows)
            local = labels[chunk, None] - first  # [rows, 1]
            mine = (local >= 0) & (local < len(weight)) if self.group else None
            local = local if mine is None else local.clamp(0, len(weight) - 1)
            z = torch.mm(hidden[chunk], weight.t(), out=logits[: len(local)])
            slope = self._cap(z)
            z = z if z.dtype is exact else z.to(exact)
            losses[chunk] = self._losses_(z, local, mine, hidden[chunk], weight)
            if not any(needed):
                continue
            z.scatter_add_(1, local, -torch.ones_like(local, dtype=exact) if mine is None else -mine.to(exact))
            delta = z if slope is None else z.mul_(slope)
            delta = delta.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(delta, weight, out=of_hidden[chunk])
            if of_weight is not None:
                _accumulate(of_weight, delta.t(), weighted[chunk], first=start == 0)
        if of_hidden is not None:
            of_hidden.mul_(token_weights.to(hidden.dtype)[:, None])
        return losses, of_hidden, None if of_weight is None else of_weight.to(weight.dtype)

    def _cap(self, logits: Tensor) -> Tensor | None:
        """Soft-cap in place. Returns the derivative, or None without a cap."""
        if self.softcap is None:
            return None
        tanh = logits.div_(self.softcap).tanh_()
        slope = 1 - tanh.square()
        tanh.mul_(self.softcap)
        return slope

    def _losses_(self, z: Tensor, local: Tensor, mine: Tensor | None, hidden: Tensor, weight: Tensor) -> Tensor:
        """Losses of a chunk [rows]; replaces its logits with probabilities."""
        if self.group is None or mine is None:
            probability = torch.softmax(z, dim=1, out=z).gather(1, local)
            losses = -probability.log_()
            return self._exact_where_far(losses.squeeze(1), local.squeeze(1), hidden, weight)
        largest = z.amax(dim=1, keepdim=True)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        of_label = (z.gather(1, local) - largest) * mine
        total = z.sub_(largest).exp_().sum(dim=1, keepdim=True)
        both = torch.cat([total, of_label])
        dist.all_reduce(both, group=self.group)
        total, of_label = both.chunk(2)
        z.div_(total)
        return (total.log() - of_label).squeeze(1)

    def _exact_where_far(self, losses: Tensor, labels: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        far = (losses > FAR).nonzero().squeeze(1)
        if len(far):
            z = hidden[far] @ weight.t()
            self._cap(z)
            losses[far] = F.cross_entropy(z.to(losses.dtype), labels[far], reduction="none")
        return losses


def _accumulate(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """total = left @ right, or total += left @ right."""
    if total.dtype is not left.dtype:
        product = left @ right
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(left, right, out=total)
    else:
        total.addmm_(left, right)
