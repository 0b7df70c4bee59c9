"""Dropped rows: counts by reason, and where each reason came up first."""

from collections import Counter
from collections.abc import Mapping

from cupola_platform.rows.record import Record


class Drops(Counter[str]):
    """Counts by reason, and the first place of each reason."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}

    def drop(self, reason: str, where: str, detail: str = "") -> None:
        """Count one dropped row.

        Args:
            where: file and row.
            detail: what is wrong, in words.
        """
        self[reason] += 1
        self.first.setdefault(reason, f"{where}: {detail}" if detail else where)

    def record(self, record: Record, file: str) -> None:
        """Count a record that is not a row."""
        self.drop(record.reason, record.where(file), record.detail)

    def add(self, other: "Drops") -> None:
        """Add counts from later rows."""
        self.update(other)
        self.first = {**other.first, **self.first}

    def in_words(self) -> str:
        """As text, the most common first: "not_utf8 3 (first a.jsonl, line 7: not UTF-8), empty_message 1"."""
        return in_words(self, self.first)

    def report(self) -> dict[str, dict[str, object]]:
        """For report.json: {"dropped": {reason: count}}, and "first_dropped" {reason: place} if any row was dropped."""
        return {"dropped": dict(self), **({"first_dropped": dict(self.first)} if self.first else {})}


def in_words(drops: Mapping[str, int], first: Mapping[str, str]) -> str:
    """Counts by reason as text, with the first place if known; see `Drops.in_words`."""
    order = sorted(drops.items(), key=lambda item: -item[1])
    places = {reason: f" (first {first[reason]})" if reason in first else "" for reason in drops}
    return ", ".join(f"{reason} {count:,}{places[reason]}" for reason, count in order) or "nothing"


def metrics(drops: Mapping[str, int]) -> dict[str, float]:
    """Counts by reason as metrics for tables and tracking: "dropped", and "dropped_REASON" for each."""
    named = {f"dropped_{reason.replace(' ', '_')}": float(count) for reason, count in drops.items()}
    return {"dropped": float(sum(drops.values())), **named}
