"""Conversations in, rewards out: what a reward model says at the end of each answer."""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_platform import json_lines
from cupola_platform.conversation import Message, as_message, words
from cupola_platform.errors import ConfigError
from cupola_platform.rows.drops import Drops
from cupola_trainer import checkpoint, models, passes, runtime
from cupola_trainer.config import ParallelConfig, ScoreJob
from cupola_trainer.data.chat import RefusedError, encode_answer
from cupola_trainer.data.files import RowFiles, read_conversations, usable
from cupola_trainer.data.tokenizer_folders import load_tokenizer
from cupola_trainer.layout import of_its_own, validate_layout
from cupola_trainer.reporting import Report
from cupola_trainer.sizes import parameter_count


class RewardModel:
    """A reward model's checkpoint, in any layout; it may stand beside a model that is being trained."""

    def __init__(self, folder: Path, parallel: ParallelConfig, day: date | None = None) -> None:
        """`runtime.start` comes first, in the same layout.

        Args:
            day: what its chat template takes for today; none for the date that it was trained with.

        Raises:
            ConfigError: the checkpoint is a language model, has no tokenizer, or does not fit the layout.
            CorruptArtifactError: the checkpoint does not verify; names the file.
        """
        self.model = checkpoint.read_model(folder)
        if not self.model.is_scalar:
            raise ConfigError(f"{folder} is a language model: it gives no rewards. Name what a stage `reward` gave.")
        if not (folder / "tokenizer").is_dir():
            raise ConfigError(f"{folder} has no tokenizer: conversations cannot be read. Import it again with one.")
        layout = of_its_own(self.model, parallel)
        validate_layout(self.model, layout)
        self.chunks = models.build(self.model, layout, seed=None)
        checkpoint.load_weights(folder, self.chunks)
        for chunk in self.chunks:
            chunk.eval()
        self.tokenizer: Any = load_tokenizer(folder / "tokenizer", day)
        self.unit = 2 * parallel.cp * parallel.tp  # sequences are cut into so many parts

    def score(
        self,
        prompts: Sequence[Sequence[Message]],
        answers: Sequence[str | Message],
        tools: Sequence[Any] | None = None,
        *,
        batch_size: int = 16,
    ) -> list[float]:
        """The reward of each answer to its prompt, messages; the same on every rank, which calls it with the same texts.

        Args:
            answers: texts, or messages where tools are called.
            tools: what could be called in each conversation; none for nothing in any.

        Raises:
            ConfigError: a conversation is longer than the model's longest sequence, or cannot be encoded.
        """
        rows = [
            self.encode(prompt, answer if isinstance(answer, Mapping) else as_message(answer), at_hand)
            for prompt, answer, at_hand in zip(prompts, answers, tools or [None] * len(prompts), strict=True)
        ]
        rewards: list[float] = self.score_tokens(rows, batch_size=batch_size)
        return rewards

    def encode(self, prompt: Sequence[Message], answer: Message, tools: Any) -> list[int]:
        """Token ids of a prompt and its answer, the end included, as reward models are trained on them.

        Raises:
            RefusedError: the conversation cannot be encoded.
        """
        asked, answered = encode_answer(self.tokenizer, prompt, answer, tools)
        return asked + answered

    def score_rows(self, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 16) -> list[float | None]:
        """As `score`, of the last answers of rows {"messages", "tools"}; none for one that cannot be encoded."""
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
        """As `score`, of conversations as token ids, the answer's end included. Rows of like length are scored together."""
        longest = max(map(len, rows), default=0)
        if longest > self.model.max_position_embeddings:
            raise ConfigError(
                f"a conversation has {longest} tokens; the reward model reads {self.model.max_position_embeddings}. "
                "Shorten the answers (max_new_tokens)."
            )
        ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        rewards = torch.zeros(len(rows), device=runtime.device())
        rounds = -(-len(batches) // ranks)  # every rank as many: its experts may serve another's
        for place in range(rank, rounds * ranks, ranks):
            mine = batches[place] if place < len(batches) else batches[0]
            ends = self._ends([rows[number] for number in mine])
            if place < len(batches):
                rewards[mine] = ends
        dist.all_reduce(rewards, group=parallel_state.get_data_parallel_group())
        found: list[float] = rewards.tolist()
        return found

    def _ends(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The values [rows] at the rows' last tokens."""
        lengths = torch.tensor([len(row) for row in rows])
        width = -(-int(lengths.max()) // self.unit) * self.unit
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
        positions = torch.arange(width).expand(len(rows), -1).contiguous()
        batch = {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones(tokens.shape), "position_ids": positions}
        values = passes.values(self.chunks, batch)
        return values[torch.arange(len(rows)), (lengths - 1).to(values.device)]


def run(job: ScoreJob) -> None:
    """Write `output/rewards.json`: the reward of each conversation's last answer.

    Raises:
        ConfigError: the checkpoint gives no rewards, or a conversation is longer than it reads.
    """
    rows = list(json_lines.read(job.conversations))
    runtime.start(job.parallel, job.seed)
    judge = RewardModel(job.initial, job.parallel, job.template_date)
    with Report(job.output, kind="score", steps=1, parameters=parameter_count(judge.model)) as report:
        rewards = judge.score_rows(rows, batch_size=job.batch_size)
        runtime.on_first_rank(lambda: (job.output / "rewards.json").write_text(json.dumps(rewards)))
        report.step(1)
        known = [reward for reward in rewards if reward is not None]
        report.complete(".", {"conversations": len(rows), "mean_reward": sum(known) / max(len(known), 1)})


def score_file(folder: Path, file: Path, day: date | None = None) -> list[dict[str, Any]]:
    """{"id", "reward", "answer"} of each conversation of a file, best first, in one process.

    Args:
        day: what the chat template takes for today; none for the date that the reward model was trained with.

    Raises:
        SourceError: the file cannot be read, or holds no usable conversation; says why.
    """
    rows = usable(read_conversations, RowFiles(path=str(file)), Drops())
    runtime.start(ParallelConfig(), seed=0)
    try:
        rewards = RewardModel(folder, ParallelConfig(), day).score_rows(rows)
    finally:
        runtime.stop()
    found = [
        {"id": row["id"], "reward": reward, "answer": words(row["messages"][-1])}
        for row, reward in zip(rows, rewards, strict=True)
        if reward is not None
    ]
    if not found:
        raise ConfigError(
            f"{file}: the reward model's tokenizer or chat template refuses all of its {len(rows)} conversations."
        )
    return sorted(found, key=lambda row: -row["reward"])
