"""What stages of rows say of those that they dropped."""

from collections.abc import Mapping
from typing import Any

from cupola_flows.execution.context import StageContext
from cupola_platform.rows import drops


def say_dropped(ctx: StageContext, report: Mapping[str, Any]) -> dict[str, float]:
    """Say it in a line, where anything was; and as the stage's metrics, which the run's table and the tracking show.

    Args:
        report: {"dropped": {reason: count}} and, where it is known, "first_dropped" {reason: file and row}.
    """
    dropped: dict[str, int] = report["dropped"]
    if dropped:
        ctx.display.say(f"{ctx.name}: dropped {drops.in_words(dropped, report.get('first_dropped', {}))}")
    return drops.metrics(dropped)
