"""Reporting of the rows that a data stage dropped."""

from collections.abc import Mapping
from typing import Any

from cupola_flows.execution.context import StageContext
from cupola_platform.rows import drops


def say_dropped(ctx: StageContext, report: Mapping[str, Any]) -> dict[str, float]:
    """Print what a stage dropped, if anything, and return it as metrics for the run's table and for tracking.

    Args:
        report: {"dropped": {reason: count}} and, if known, "first_dropped" {reason: file and row}.
    """
    dropped: dict[str, int] = report["dropped"]
    if dropped:
        ctx.display.say(f"{ctx.name}: dropped {drops.in_words(dropped, report.get('first_dropped', {}))}")
    return drops.metrics(dropped)
