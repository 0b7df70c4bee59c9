"""Decode by replaying a recorded step, which on a GPU saves the launch of each kernel.

A recording keeps addresses. Weights are updated in place, and a recording lives no longer than its rows: it is dropped
with the batch, and made again when finished rows are removed.
"""

from collections.abc import Callable, Sequence

import torch
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer.generation.decoding import DecodingLayer
from cupola_trainer.generation.stages import Stages
from cupola_trainer.runtime.graphs import Capture, graph_capture

PAYS = 8
"""Steps that a recording takes the time of: fewer than these are not recorded for."""


class Recordings:
    """Recorded steps of a batch. `capture` is None where steps cannot be recorded."""

    def __init__(self, stages: Stages, layers: Sequence[DecodingLayer] | None, capacity: int) -> None:
        """`capacity` is the number of columns of the caches."""
        self.stages, self.layers, self.capacity = stages, layers or (), capacity
        self.capture = capture_for(stages, layers)
        self.recorded: RecordedStep | None = None

    def logits(self, tokens: Tensor, positions: Tensor, padding: Tensor, column: int, left: int) -> Tensor | None:
        """Logits [b, v] of one more token per row [b, 1]; None if this step is not worth recording, or cannot be.

        Args:
            positions: [b, 1].
            padding: columns before each row's first token, [b, 1].
            column: of the tokens, the same for all rows.
            left: steps that may follow, this one included.
        """
        rows = len(tokens)
        if self.recorded is not None and len(self.recorded.tokens) != rows:
            self.recorded = None
        if self.capture is None or (self.recorded is None and left < PAYS):
            return None
        if self.recorded is None:
            self.recorded = RecordedStep(self.stages, self.layers, rows, self.capacity)
        return self.recorded.step(tokens, positions, padding, column, self.capture)


class RecordedStep:
    """One step for a number of rows: what it reads and writes stays where it is."""

    def __init__(self, stages: Stages, layers: Sequence[DecodingLayer], rows: int, capacity: int) -> None:
        self.stages, self.layers = stages, layers
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=stages.device)
        self.angles = stages.angles(self.tokens)
        self.mask = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=stages.device)
        self.column = torch.zeros(1, dtype=torch.long, device=stages.device)
        self.columns = torch.arange(capacity, device=stages.device)
        self.replay: Callable[[], Tensor] | None = None

    def step(self, tokens: Tensor, positions: Tensor, padding: Tensor, column: int, capture: Capture) -> Tensor:
        self.tokens.copy_(tokens)
        self.angles.copy_(self.stages.angles(positions))  # outside, since frequencies come from the host
        self.column.fill_(column)
        self.mask[:, 0, 0] = (self.columns <= column) & (self.columns >= padding)
        if self.replay is None:
            for layer in self.layers:
                layer.cache.clear_rest()
            self.replay = capture(self._work)
        output = self.replay()
        for layer in self.layers:
            layer.cache.length = column + 1
        return output

    def _work(self) -> Tensor:
        logits = self.stages.decode(self.tokens, self.angles, self.mask, self.layers, self.column)
        assert logits is not None
        return logits


def capture_for(stages: Stages, layers: Sequence[DecodingLayer] | None) -> Capture | None:
    """How to record a step of these layers; None if something in it waits for the host or for another rank: experts,
    whose sizes are known only once they are routed to, and collectives. Attention that looks at distances or positions
    reads a part of the columns, which grows."""
    alone = stages.stages == 1 and parallel_state.get_tensor_model_parallel_world_size() == 1
    if not layers or not alone or stages.config.num_moe_experts:
        return None
    plain = all(
        layer.attend.softcap is None and layer.attend.window is None and not layer.attend.needs_positions
        for layer in layers
    )
    return graph_capture() if plain else None
