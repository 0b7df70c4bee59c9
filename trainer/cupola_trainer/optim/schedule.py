"""The learning rate over a run's steps."""

from typing import Any

from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from cupola_platform.errors import ConfigError
from cupola_trainer.config import OptimizerConfig

STYLES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "inverse_sqrt": "inverse-square-root",
    "wsd": "WSD",
}
"""Megatron's names."""


def schedule(optimizer: Any, config: OptimizerConfig, steps: int) -> OptimizerParamScheduler:
    """Linear warm-up from 0 to the peak, then `config.schedule`. Stepped before each update: the first of w warm-up
    steps runs at peak / w.

    Raises:
        ConfigError: warm-up and decay take more steps than there are.
    """
    if problem := config.too_long(steps):  # supervised fine-tuning knows its steps only now
        raise ConfigError(f"{problem}.")
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.lr * config.min_lr_ratio,
        lr_warmup_steps=min(config.warmup_steps, steps - 1),
        lr_decay_steps=steps,
        lr_decay_style=STYLES[config.schedule],
        wsd_decay_steps=config.decay_steps,
        lr_wsd_decay_style=config.decay,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )
