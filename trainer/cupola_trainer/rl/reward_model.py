"""Score responses with a reward model: the output of its scalar head at the end of each response."""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_platform.conversation import Message, as_message
from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.config import LayoutConfig
from cupola_trainer.config.layout_rules import of_its_own, validate_layout
from cupola_trainer.data.chat import RefusedError, encode_response
from cupola_trainer.data.tokenizer_folders import load_tokenizer
from cupola_trainer.forward import outputs
from cupola_trainer.rl.inference import load_frozen, over_rows
from cupola_trainer.rl.rollouts import Rollout


class RewardModel:
    """A frozen reward model, in any layout, alone or next to a model in training."""

    def __init__(self, folder: Path, layout: LayoutConfig, day: date | None = None, *, precision: str = "auto") -> None:
        """Load a checkpoint. Call `runtime.start` with the same layout first.

        Args:
            day: date for its chat template; None for the date it was trained with.
            precision: precision of weights and activations.

        Raises:
            ConfigError: the checkpoint is a language model, or does not fit the layout.
            CorruptArtifactError: the checkpoint does not verify; names the file.
        """
        self.model = checkpoint.read_model(folder)
        if not self.model.is_scalar:
            raise ConfigError(
                f"{folder} is a language model, not a reward model. Give the checkpoint of a `reward` stage."
            )
        layout = of_its_own(self.model, layout)
        validate_layout(self.model, layout)
        self.folder, self.day = folder, day
        self.chunks = load_frozen(folder, self.model, layout, runtime.dtype(precision))
        self.unit = 2 * layout.cp * layout.tp  # sequence lengths must be divisible by this

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer.

        Raises:
            ConfigError: the checkpoint has none.
        """
        if not (self.folder / "tokenizer").is_dir():
            raise ConfigError(
                f"{self.folder} has no tokenizer, so it cannot read conversations. Import it again with one."
            )
        return load_tokenizer(self.folder / "tokenizer", self.day)

    def score(
        self,
        prompts: Sequence[Sequence[Message]],
        responses: Sequence[str | Message],
        tools: Sequence[Any] | None = None,
        *,
        batch_size: int = 16,
    ) -> list[float]:
        """The reward of each response to its prompt (a list of messages). Called on every rank with the same arguments;
        returns the same on all.

        Args:
            responses: texts, or messages if they contain tool calls.
            tools: the tools available in each conversation; None if there are none at all.

        Raises:
            ConfigError: a conversation is too long for the model, or cannot be encoded.
        """
        rows = [
            self.encode(prompt, response if isinstance(response, Mapping) else as_message(response), available)
            for prompt, response, available in zip(prompts, responses, tools or [None] * len(prompts), strict=True)
        ]
        rewards: list[float] = self.score_tokens(rows, batch_size=batch_size)
        return rewards

    def encode(self, prompt: Sequence[Message], response: Message, tools: Any) -> list[int]:
        """Token ids of a prompt and its response including its end, as in reward-model training.

        Raises:
            RefusedError: the conversation cannot be encoded.
        """
        prompt_ids, response_ids = encode_response(self.tokenizer, prompt, response, tools)
        return prompt_ids + response_ids

    def score_rows(self, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 16) -> list[float | None]:
        """`score` for the last responses of rows {"messages", "tools"}; None for rows that cannot be encoded."""
        encoded: list[list[int] | None] = []
        for row in rows:
            try:
                encoded.append(self.encode(row["messages"][:-1], row["messages"][-1], row.get("tools")))
            except RefusedError:
                encoded.append(None)
        rewards = iter(self.score_tokens([tokens for tokens in encoded if tokens], batch_size=batch_size))
        return [next(rewards) if tokens else None for tokens in encoded]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score_tokens(self, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> list[float]:
        """`score` for conversations as token ids, including the response's end. Batches rows of similar length."""
        longest = max(map(len, rows), default=0)
        if longest > self.model.max_position_embeddings:
            raise ConfigError(
                f"a conversation has {longest} tokens; the reward model's maximum is "
                f"{self.model.max_position_embeddings}. Shorten the responses (max_new_tokens)."
            )
        ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        rewards = torch.zeros(len(rows), device=runtime.device())
        rounds = -(-len(batches) // ranks)  # the same on all ranks, for expert parallelism
        for place in range(rank, rounds * ranks, ranks):
            mine = batches[place] if place < len(batches) else batches[0]
            ends = self._ends([rows[number] for number in mine])
            if place < len(batches):
                rewards[mine] = ends
        dist.all_reduce(rewards, group=parallel_state.get_data_parallel_group())
        scores: list[float] = rewards.tolist()
        return scores

    def _ends(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Values at the last token of each row [rows]."""
        lengths = torch.tensor([len(row) for row in rows])
        width = -(-int(lengths.max()) // self.unit) * self.unit
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
        positions = torch.arange(width).expand(len(rows), -1).contiguous()
        batch = {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones(tokens.shape), "position_ids": positions}
        values = outputs.values(self.chunks, batch)
        return values[torch.arange(len(rows)), (lengths - 1).to(values.device)]

    def score_rollout(self, rollout: Rollout, micro_batch_size: int) -> list[float | str]:
        """The reward of each response [rows], or the reason it has none."""
        values = over_rows(rollout, micro_batch_size, lambda batch: outputs.values(self.chunks, batch))
        scores = values[np.arange(len(rollout)), np.minimum(rollout.ends, values.shape[1] - 1)]
        return [float(score) if np.isfinite(score) else "reward_not_finite" for score in scores]
