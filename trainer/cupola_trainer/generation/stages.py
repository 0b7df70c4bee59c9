"""Run a training model for generation: one pipeline stage after another, with whole sequences on every rank.

The training layout is unchanged. Pipeline stages pass hidden states on; sequence parallelism is off, because a single
new token cannot be split; context-parallel ranks, which hold the same weights, process different prompts, like
data-parallel ones.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from torch import Tensor

from cupola_trainer.checkpoint.saving import gather
from cupola_trainer.generation.decoding import DecodingLayer, turns_of
from cupola_trainer.models.attention.texts import Texts
from cupola_trainer.models.precision import without_fp8


class Stages:
    """This rank's chunks of a model."""

    def __init__(self, chunks: Sequence[torch.nn.Module]) -> None:
        self.chunks: list[Any] = unwrap_model(list(chunks))
        self.config = self.chunks[0].config
        self.max_sequence_length: int = self.chunks[0].max_sequence_length
        self.group = parallel_state.get_pipeline_model_parallel_group()
        self.stage, self.stages = self.group.rank(), self.group.size()
        self.last = self.stage == self.stages - 1
        self.device = next(self.chunks[-1].parameters()).device
        self.dtype = self.config.params_dtype

    def layers(self) -> Iterator[Any]:
        """This rank's decoder layers."""
        for chunk in self.chunks:
            yield from chunk.decoder.layers

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        layers: Sequence[DecodingLayer] | None = None,
        texts: Texts | None = None,
    ) -> Tensor | None:
        """Logits of the last column over the full vocabulary, in fp32: [b, s] -> [b, v]; None before the last stage.

        Args:
            positions: [b, s].
            mask: [b, 1, s, columns so far], true where a query may attend; None for causal.
            layers: this rank's decoding layers, for a single token; None to use Megatron's layers.
            texts: the texts in each row, if these are the first columns; None for one.
        """
        rope = self.angles(positions)
        through = self._single_token(layers, mask, rope) if layers else self._megatron(mask, rope, texts)
        return self._through(tokens, positions, through)

    def angles(self, positions: Tensor) -> Tensor:
        """RoPE's angles of positions [b, s]: [s, b, 1, head_dim]."""
        angles: Tensor = self.chunks[0].rotary_pos_emb.at(positions).transpose(0, 1)[:, :, None]
        return angles

    def decode(
        self, tokens: Tensor, angles: Tensor, mask: Tensor, layers: Sequence[DecodingLayer], column: Tensor
    ) -> Tensor | None:
        """Logits of one token per row [b, 1] at a column that the device knows [1], without asking the host anything.

        Args:
            mask: [b, 1, 1, capacity], true where a row may attend.
        """
        return self._through(tokens, tokens, self._single_token(layers, mask, angles, column))

    def _through(
        self, tokens: Tensor, positions: Tensor, through: Callable[[Any, Tensor | None], Tensor]
    ) -> Tensor | None:
        """Embed, run each chunk's layers, and make logits on the last stage."""
        hidden = None
        for number, chunk in enumerate(self.chunks):
            if chunk.pre_process:
                hidden = chunk.embedding(input_ids=tokens, position_ids=positions)
            elif self.stages > 1:
                hidden = self._receive(tokens.shape)
            hidden = through(chunk.decoder, hidden)
            if not (self.last and number == len(self.chunks) - 1):
                dist.send(hidden.contiguous(), group=self.group, group_dst=(self.stage + 1) % self.stages)
        return self._logits(hidden) if self.last else None

    def _megatron(
        self, mask: Tensor | None, rope: Tensor, texts: Texts | None
    ) -> Callable[[Any, Tensor | None], Tensor]:
        """A function that runs a chunk's layers with Megatron."""

        def through(decoder: Any, hidden: Tensor | None) -> Tensor:
            if not decoder.pre_process:
                decoder.set_input_tensor(hidden)
            output: Tensor = decoder(
                hidden_states=hidden, attention_mask=mask, rotary_pos_emb=rope, packed_seq_params=texts
            )
            return output

        return through

    def _single_token(
        self, layers: Sequence[DecodingLayer], mask: Tensor | None, rope: Tensor, column: Tensor | None = None
    ) -> Callable[[Any, Tensor | None], Tensor]:
        """A function that runs a chunk's layers on one token per row."""
        turns, following = turns_of(rope, layers, self.dtype), iter(layers)

        def through(decoder: Any, hidden: Tensor | None) -> Tensor:
            assert hidden is not None
            state = hidden[0]  # [1, b, h] -> [b, h]
            for _ in decoder.layers:
                layer = next(following)
                state = layer(state, turns[layer.local], mask, column)
            norm = decoder.final_layernorm
            return (state if norm is None else norm(state))[None]

        return through

    def _receive(self, shape: Sequence[int]) -> Tensor:
        rows, length = shape
        hidden = torch.empty(length, rows, self.config.hidden_size, dtype=self.dtype, device=self.device)
        dist.recv(hidden, group=self.group, group_src=(self.stage - 1) % self.stages)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        chunk = self.chunks[-1]
        weight = chunk.shared_embedding_or_output_weight() if chunk.share_embeddings_and_output_weights else None
        logits, _ = chunk.output_layer(hidden[-1:], weight=weight, runtime_gather_output=True)
        whole: Tensor = logits[0].float()
        return whole

    def agree(self, values: Tensor) -> Tensor:
        """Broadcast from the last stage's first tensor-parallel rank to every rank that works on the same sequences."""
        if parallel_state.get_tensor_model_parallel_world_size() > 1 and self.last:
            source = parallel_state.get_tensor_model_parallel_src_rank()
            dist.broadcast(values, source, group=parallel_state.get_tensor_model_parallel_group())
        if self.stages > 1:
            dist.broadcast(values, group=self.group, group_src=self.stages - 1)
        return values


@contextmanager
def generating(chunks: Sequence[torch.nn.Module]) -> Iterator[Stages]:
    """Put the chunks in evaluation mode, without sequence parallelism and FP8, within the block."""
    for chunk in chunks:
        gather(chunk)  # decoding reads weights without calling their modules
    stages = Stages(chunks)
    training = [chunk.training for chunk in stages.chunks]
    sharded = [(owner, name) for chunk in stages.chunks for owner, name in _sequence_parallel(chunk)]
    for chunk in stages.chunks:
        chunk.eval()
    for owner, name in sharded:
        setattr(owner, name, False)
    try:
        with without_fp8(chunks):
            yield stages
    finally:
        for owner, name in sharded:
            setattr(owner, name, True)
        for chunk, was in zip(stages.chunks, training, strict=True):
            chunk.train(was)


def _sequence_parallel(chunk: torch.nn.Module) -> list[tuple[Any, str]]:
    """Where Megatron stores that sequences are sharded: in each configuration, and again in the modules."""
    owners = {
        id(owner): owner for module in chunk.modules() for owner in (module, getattr(module, "config", None)) if owner
    }
    names = ("sequence_parallel", "reduce_scatter_embeddings")
    return [(owner, name) for owner in owners.values() for name in names if getattr(owner, name, False)]
