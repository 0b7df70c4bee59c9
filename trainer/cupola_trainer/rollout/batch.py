"""One batch of sequences, from prompts to completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer.rollout.cache import attached_cache
from cupola_trainer.rollout.sampling import Sampling, choose, token_logprobs, uniforms


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
        model: Any,
        prompts: Sequence[list[int]],
        streams: Sequence[int],
        sampling: Sampling,
        seed: int,
        vocabulary: int,
        stops: Sequence[int],
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.sampling, self.vocabulary = model, sampling, vocabulary
        self.count = len(prompts)
        rows = list(prompts) or [[0]]
        self.width = max(map(len, rows))
        self.capacity = self.width + sampling.max_new_tokens
        self.stops = torch.tensor(stops, device=device)
        self.prompts = torch.tensor([[0] * (self.width - len(row)) + row for row in rows], device=device)
        self.padding = torch.tensor([self.width - len(row) for row in rows], device=device)
        self.limits = (model.max_sequence_length - self.width + self.padding).clamp(max=sampling.max_new_tokens)
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
        with attached_cache(self.model, self.capacity) as caches:
            distinct, first, copies = self._distinct()
            logits = self._forward(distinct, first, start=0)[copies]
            for cache in caches:
                cache.keep(copies)
            for step in range(self.sampling.max_new_tokens):
                new = self._choose(logits, self.noise[rows, step])
                self.tokens[rows, step] = new
                self.logprobs[rows, step] = token_logprobs(logits, new)
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
                logits = self._forward(new[:, None], rows, start=self.width + step)
        return [self._completion(row) for row in range(self.count)]

    def _distinct(self) -> tuple[Tensor, Tensor, Tensor]:
        """The prompts without repetitions, a row that has each, and which of them each row has."""
        rows = zip(self.padding.tolist(), map(tuple, self.prompts.tolist()), strict=True)
        seen: dict[object, int] = {}
        copies = [seen.setdefault(row, len(seen)) for row in rows]
        first = torch.tensor([copies.index(number) for number in range(len(seen))], device=self.prompts.device)
        return self.prompts[first], first, torch.tensor(copies, device=self.prompts.device)

    def _forward(self, tokens: Tensor, rows: Tensor, start: int) -> Tensor:
        """Logits of the last column, whole vocabulary, in fp32: [b, s] tokens at columns start.. -> [b, v]."""
        padding = self.padding[rows][:, None]
        columns = torch.arange(start, start + tokens.size(1), device=tokens.device)
        positions = (columns - padding).clamp(min=0)
        seen = torch.arange(start + tokens.size(1), device=tokens.device)
        # Padding sees itself, so that its rows stay finite: NaN would not stay in its row in a router.
        mask = (seen <= columns[:, None]) & (seen >= padding[:, :, None]) | (seen == columns[:, None])
        hidden = self.model.decoder(
            hidden_states=self.model.embedding(input_ids=tokens, position_ids=positions),
            attention_mask=mask[:, None],
            rotary_pos_emb=self.model.rotary_pos_emb.at(positions).transpose(0, 1)[:, :, None],  # [s, b, 1, head_dim]
        )
        weight = None
        if self.model.share_embeddings_and_output_weights:
            weight = self.model.shared_embedding_or_output_weight()
        logits, _ = self.model.output_layer(hidden[-1:], weight=weight, runtime_gather_output=True)
        return logits[0].float()

    def _choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token a row, the same on every tensor-parallel rank; rows of the embedding without a token never come."""
        new = choose(logits[:, : self.vocabulary], uniform, self.sampling)
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            source = parallel_state.get_tensor_model_parallel_src_rank()
            dist.broadcast(new, source, group=parallel_state.get_tensor_model_parallel_group())
        return new

    def _anyone(self, active: Tensor) -> bool:
        """Whether a sequence is unfinished here, or on a rank that needs this one's experts."""
        unfinished = active.any()
        if self.model.config.num_moe_experts and self.model.config.expert_model_parallel_size > 1:
            votes = unfinished.int()
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=parallel_state.get_expert_model_parallel_group())
            unfinished = votes.bool()
        return bool(unfinished)

    def _completion(self, row: int) -> Completion:
        length = int(self.lengths[row])
        return Completion(
            self.tokens[row, :length].tolist(), self.logprobs[row, :length].tolist(), bool(self.finished[row])
        )
