"""One batch of sequences, from prompts to completions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer.generation.cache import attached_cache
from cupola_trainer.generation.decoding import DecodingLayer, decoding_layers
from cupola_trainer.generation.sampling import Sampling, choose, token_logprobs, uniforms
from cupola_trainer.generation.stages import Stages


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said after a prompt."""

    tokens: list[int]
    """New tokens, with the stop token if one came."""

    logprobs: list[float]
    """Of each token under the model itself: temperature 1, nothing cut off."""

    finished: bool
    """Whether a stop token came before the limit."""


class Batch:
    """Prompts side by side, padded on the left, each counting its own positions from its own first token.

    A prompt that comes several times is read once.
    Rows that have ended leave the batch once they are half of it. A rank without prompts of its own takes part with one
    row of padding, since its experts may serve others'.
    """

    def __init__(
        self,
        stages: Stages,
        prompts: Sequence[list[int]],
        streams: Sequence[int],
        sampling: Sampling,
        seed: int,
        vocabulary: int,
        stops: Sequence[int],
    ) -> None:
        device = stages.device
        self.stages, self.sampling, self.vocabulary = stages, sampling, vocabulary
        self.count = len(prompts)
        rows = list(prompts) or [[0]]
        self.width = max(map(len, rows))
        self.capacity = self.width + sampling.max_new_tokens
        self.stops = torch.tensor(stops, dtype=torch.long, device=device)
        self.prompts = torch.tensor([[0] * (self.width - len(row)) + row for row in rows], device=device)
        self.padding = torch.tensor([self.width - len(row) for row in rows], device=device)
        self.limits = (stages.max_sequence_length - self.width + self.padding).clamp(max=sampling.max_new_tokens)
        self.padded = bool(self.padding.any())
        self.noise = uniforms(seed, list(streams) or [0], sampling.max_new_tokens).to(device)

        shape = (len(rows), sampling.max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(shape, device=device)
        self.lengths = torch.zeros(len(rows), dtype=torch.long, device=device)
        self.finished = torch.zeros(len(rows), dtype=torch.bool, device=device)

    def complete(self) -> list[Completion]:
        """Run to the end."""
        rows = torch.arange(len(self.prompts), device=self.prompts.device)  # of those still in the batch
        active = torch.full_like(rows, self.count > 0, dtype=torch.bool)
        with attached_cache(self.stages.layers(), self.capacity) as caches:
            distinct, first, copies = self._distinct()
            logits = self._forward(distinct, first, start=0)
            logits = None if logits is None else logits[copies]
            for cache in caches:
                cache.keep(copies)
            layers = decoding_layers(list(self.stages.layers()), caches)
            for step in range(self.sampling.max_new_tokens):
                new, logprobs = self._choose(logits, self.noise[rows, step])
                self.tokens[rows, step], self.logprobs[rows, step] = new, logprobs
                stopped = torch.isin(new, self.stops)
                ended = active & (stopped | (self.limits[rows] == step + 1))
                self.lengths[rows[ended]] = step + 1
                self.finished[rows[ended & stopped]] = True
                active &= ~ended
                if not self._anyone(active):
                    break
                if 2 * int(active.sum()) <= len(rows) > 1:
                    kept = active.nonzero()[:, 0] if active.any() else torch.zeros_like(rows[:1])
                    rows, active, new = rows[kept], active[kept], new[kept]
                    for cache in caches:
                        cache.keep(kept)
                logits = self._forward(new[:, None], rows, self.width + step, layers)
        return [self._completion(row) for row in range(self.count)]

    def _distinct(self) -> tuple[Tensor, Tensor, Tensor]:
        """The prompts without repetitions, a row that has each, and which of them each row has."""
        rows = zip(self.padding.tolist(), map(tuple, self.prompts.tolist()), strict=True)
        seen: dict[object, int] = {}
        copies = [seen.setdefault(row, len(seen)) for row in rows]
        first = torch.tensor([copies.index(number) for number in range(len(seen))], device=self.prompts.device)
        return self.prompts[first], first, torch.tensor(copies, device=self.prompts.device)

    def _forward(
        self, tokens: Tensor, rows: Tensor, start: int, layers: Sequence[DecodingLayer] | None = None
    ) -> Tensor | None:
        """Logits of the last column [b, v]: [b, s] tokens at columns start..; none before the last pipeline stage."""
        padding = self.padding[rows][:, None]
        columns = torch.arange(start, start + tokens.size(1), device=tokens.device)
        positions = (columns - padding).clamp(min=0)
        if not self.padded:
            return self.stages.forward(tokens, positions, None, layers)
        seen = torch.arange(start + tokens.size(1), device=tokens.device)
        # Padding sees itself, so that its rows stay finite: NaN would not stay in its row in a router.
        mask = (seen <= columns[:, None]) & (seen >= padding[:, :, None]) | (seen == columns[:, None])
        return self.stages.forward(tokens, positions, mask[:, None], layers)

    def _choose(self, logits: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One token a row and its log-probability, the same on every rank that works on these rows; rows of the
        embedding without a token never come."""
        both = torch.empty(2, len(uniform), dtype=torch.float64, device=uniform.device)  # holds any token exactly
        if logits is not None:
            both[0] = new = choose(logits[:, : self.vocabulary], uniform, self.sampling)
            both[1] = token_logprobs(logits, new)
        tokens, logprobs = self.stages.agree(both)
        return tokens.long(), logprobs.float()

    def _anyone(self, active: Tensor) -> bool:
        """Whether a sequence is unfinished here, or on a rank that needs this one's experts."""
        unfinished = active.any()
        config = self.stages.config
        if config.num_moe_experts and config.expert_model_parallel_size > 1:
            votes = unfinished.int()
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=parallel_state.get_expert_model_parallel_group())
            unfinished = votes.bool()
        return bool(unfinished)

    def _completion(self, row: int) -> Completion:
        length = int(self.lengths[row])
        return Completion(
            self.tokens[row, :length].tolist(), self.logprobs[row, :length].tolist(), bool(self.finished[row])
        )
