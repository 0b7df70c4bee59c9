"""Generate completions for one batch of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer.generation.cache import attached_cache
from cupola_trainer.generation.decoding import DecodingLayer, decoding_layers
from cupola_trainer.generation.graphs import Recordings
from cupola_trainer.generation.sampling import Sampling, choose, token_logprobs, uniforms
from cupola_trainer.generation.stages import Stages
from cupola_trainer.models.attention.texts import Texts


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's continuation of a prompt."""

    tokens: list[int]
    """New tokens, including the stop token if there is one."""

    logprobs: list[float]
    """Log-probability of each token under the model itself: temperature 1, no top-k or top-p."""

    finished: bool
    """Whether it ended with a stop token; False if it was truncated."""


class Batch:
    """A batch of prompts, padded on the left; positions count from each prompt's first token.

    Repeated prompts are prefilled once. Finished rows are removed once they make up half of the batch. A rank without
    prompts takes part with one row of padding, because other ranks may need its experts.
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
        """Generate until all rows have finished."""
        rows = torch.arange(len(self.prompts), device=self.prompts.device)  # those still in the batch
        active = torch.full_like(rows, self.count > 0, dtype=torch.bool)
        with attached_cache(self.stages.layers(), self.capacity) as caches:
            distinct, first, copies = self._distinct()
            logits = self._forward(distinct, first, start=0)
            logits = None if logits is None else logits[copies]
            for cache in caches:
                cache.keep(copies)
            layers = decoding_layers(list(self.stages.layers()), caches)
            recordings = Recordings(self.stages, layers, self.capacity)
            for step in range(self.sampling.max_new_tokens):
                new, logprobs = self._choose(logits, self.noise[rows, step])
                self.tokens[rows, step], self.logprobs[rows, step] = new, logprobs
                stopped = torch.isin(new, self.stops)
                ended = active & (stopped | (self.limits[rows] == step + 1))
                self.lengths[rows[ended]] = step + 1
                self.finished[rows[ended & stopped]] = True
                active &= ~ended
                if not self._any_unfinished(active):
                    break
                if 2 * int(active.sum()) <= len(rows) > 1:
                    kept = active.nonzero()[:, 0] if active.any() else torch.zeros_like(rows[:1])
                    rows, active, new = rows[kept], active[kept], new[kept]
                    for cache in caches:
                        cache.keep(kept)
                column, left = self.width + step, self.sampling.max_new_tokens - step - 1
                padding = self.padding[rows][:, None]
                logits = recordings.logits(new[:, None], column - padding, padding, column, left)
                if logits is None:
                    logits = self._forward(new[:, None], rows, column, layers)
        return [self._completion(row) for row in range(self.count)]

    def _distinct(self) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct prompts, the first row of each, and each row's index among them."""
        rows = zip(self.padding.tolist(), map(tuple, self.prompts.tolist()), strict=True)
        seen: dict[object, int] = {}
        copies = [seen.setdefault(row, len(seen)) for row in rows]
        first = torch.tensor([copies.index(number) for number in range(len(seen))], device=self.prompts.device)
        return self.prompts[first], first, torch.tensor(copies, device=self.prompts.device)

    def _forward(
        self, tokens: Tensor, rows: Tensor, start: int, layers: Sequence[DecodingLayer] | None = None
    ) -> Tensor | None:
        """Logits of the last column [b, v] for tokens [b, s] at columns from `start`; None before the last pipeline
        stage."""
        padding = self.padding[rows][:, None]
        columns = torch.arange(start, start + tokens.size(1), device=tokens.device)
        positions = (columns - padding).clamp(min=0)
        if not self.padded:
            return self.stages.forward(tokens, positions, layers=layers)
        if start == 0:  # padding is a text of its own, which stays finite: a router would spread NaN to other rows
            paddings = self.padding[rows].tolist()
            lengths = tuple(tuple(n for n in (each, tokens.size(1) - each) if n) for each in paddings)
            return self.stages.forward(tokens, positions, texts=Texts(lengths))
        seen = torch.arange(start + tokens.size(1), device=tokens.device)
        mask = (seen <= columns[:, None]) & (seen >= padding[:, :, None])
        return self.stages.forward(tokens, positions, mask[:, None], layers)

    def _choose(self, logits: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One token per row and its log-probability, the same on every rank that works on these rows. Padding rows of
        the embedding are never sampled."""
        both = torch.empty(2, len(uniform), dtype=torch.float64, device=uniform.device)  # holds any token exactly
        if logits is not None:
            both[0] = new = choose(logits[:, : self.vocabulary], uniform, self.sampling)
            both[1] = token_logprobs(logits, new)
        tokens, logprobs = self.stages.agree(both)
        return tokens.long(), logprobs.float()

    def _any_unfinished(self, active: Tensor) -> bool:
        """Whether a row is unfinished here or on a rank that needs this one's experts."""
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
