"""Run a ScoreJob: score the last response of each conversation with a reward model."""

import json
from datetime import date
from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.conversation import words
from cupola_platform.errors import ConfigError
from cupola_platform.rows.drops import Drops
from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig, ScoreJob
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.data.files import RowFiles, read_conversations, usable
from cupola_trainer.reporting.progress import Report
from cupola_trainer.rl.reward_model import RewardModel


def run(job: ScoreJob) -> None:
    """Write `output/rewards.json`: the reward of each conversation's last response.

    Raises:
        ConfigError: the checkpoint is not a reward model, or a conversation is too long for it.
    """
    rows = list(json_lines.read(job.conversations))
    runtime.start(job.layout, job.seed)
    model = RewardModel(job.parent, job.layout, job.template_date)
    with Report(job.output, kind="score", steps=1, parameters=parameter_count(model.model)) as report:
        rewards = model.score_rows(rows, batch_size=job.batch_size)
        runtime.on_first_rank(lambda: (job.output / "rewards.json").write_text(json.dumps(rewards)))
        report.step(1)
        known = [reward for reward in rewards if reward is not None]
        report.complete(".", {"conversations": len(rows), "mean_reward": sum(known) / max(len(known), 1)})


def score_file(folder: Path, file: Path, day: date | None = None) -> list[dict[str, Any]]:
    """{"id", "reward", "response"} of each conversation in a file, best first, in one process.

    Args:
        day: today's date in the chat template; None for the date that the reward model was trained with.

    Raises:
        SourceError: the file cannot be read or holds no usable conversation; gives the reason.
    """
    rows = usable(read_conversations, RowFiles(path=str(file)), Drops())
    runtime.start(LayoutConfig(), seed=0)
    try:
        rewards = RewardModel(folder, LayoutConfig(), day).score_rows(rows)
    finally:
        runtime.stop()
    scored = [
        {"id": row["id"], "reward": reward, "response": words(row["messages"][-1])}
        for row, reward in zip(rows, rewards, strict=True)
        if reward is not None
    ]
    if not scored:
        raise ConfigError(
            f"{file}: the reward model's tokenizer or chat template refuses all {len(rows)} conversations. "
            "Check their roles and content."
        )
    return sorted(scored, key=lambda row: -row["reward"])
