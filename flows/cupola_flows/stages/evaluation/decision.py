"""Chooses the best of several candidates, and decides with reasons whether an alias moves to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Measured = Mapping[str, Any]
"""One checkpoint's entry in `results.json`."""


@dataclass(frozen=True)
class Decision:
    """The best candidate, whether the alias moves to it, and the comparisons that decided it, one sentence each."""

    best: str
    promoted: bool
    reasons: tuple[str, ...]


def decide(
    candidates: Mapping[str, Measured],
    *,
    siblings: Mapping[str, Measured],
    baseline: Measured | None,
    incumbent: Measured | None,
    tolerance: float,
) -> Decision:
    """Promote the best candidate unless a comparison rules it out.

    A candidate is sound if its accuracy is clearly above the baseline's (their intervals do not overlap) and its bits
    per byte are at most `tolerance` worse than the baseline's, relative. The best is the sound candidate with the
    highest accuracy; among equals, the one with fewer bits per byte. Its interval must reach the incumbent's accuracy,
    and its bits per byte must be within `tolerance` of the incumbent's. No sound sibling, a checkpoint that was
    measured in the same evaluation but is not a candidate, may have a higher accuracy at all.
    """
    checks = {name: _against_baseline(baseline, measured, tolerance) for name, measured in candidates.items()}
    sound = [name for name, of in checks.items() if all(passed for passed, _ in of)]
    best = max(sound or candidates, key=lambda name: _rank(candidates[name]))
    findings = list(checks[best])
    findings += [(True, _passed_over(name, checks[name], candidates[name])) for name in candidates if name != best]
    if len(candidates) > 1:
        findings.insert(
            0, (True, f"{best} is the best of {', '.join(candidates)}{'' if sound else ', but none of them is sound'}.")
        )
    for name, measured in siblings.items():
        if all(passed for passed, _ in _against_baseline(baseline, measured, tolerance)):
            findings += _behind(name, measured, best, candidates[best])
    if incumbent is None:
        findings.append((True, "There is no incumbent to beat."))
    elif incumbent["digest"] == candidates[best]["digest"]:
        findings.append((True, f"{best} is the incumbent."))
    else:
        findings += _no_worse(candidates[best], incumbent, tolerance)
    return Decision(best, all(passed for passed, _ in findings), tuple(reason for _, reason in findings))


Check = tuple[bool, str]


def _against_baseline(baseline: Measured | None, candidate: Measured, tolerance: float) -> list[Check]:
    if baseline is None:
        return []
    return [_clearly_better(candidate, baseline), _within(candidate, baseline, tolerance, "baseline")]


def _clearly_better(candidate: Measured, baseline: Measured) -> Check:
    ours, theirs = candidate.get("accuracy"), baseline.get("accuracy")
    if not ours or not theirs:
        return False, "No task accuracy was measured to compare the candidate with its baseline."
    passed = ours["low"] > theirs["high"]
    verdict = "clearly above" if passed else "not clearly above"
    return passed, f"Accuracy {_accuracy(ours)} is {verdict} the baseline's {_accuracy(theirs)}."


def _within(candidate: Measured, other: Measured, tolerance: float, whose: str) -> Check:
    own, bits = candidate["bits_per_byte"], other["bits_per_byte"]
    passed = own <= bits * (1 + tolerance)
    verdict = f"within {tolerance:.0%} of" if passed else f"more than {tolerance:.0%} above"
    return passed, f"{own:.3f} bits per byte is {verdict} the {whose}'s {bits:.3f}."


def _no_worse(candidate: Measured, incumbent: Measured, tolerance: float) -> list[Check]:
    checks = []
    ours, theirs = candidate.get("accuracy"), incumbent.get("accuracy")
    if ours and theirs:
        passed = ours["high"] >= theirs["accuracy"]
        verdict = "no worse than" if passed else "worse than"
        checks.append((passed, f"Accuracy {_accuracy(ours)} is {verdict} the incumbent's {_accuracy(theirs)}."))
    return [*checks, _within(candidate, incumbent, tolerance, "incumbent")]


def _rank(measured: Measured) -> tuple[float, float]:
    accuracy = measured.get("accuracy")
    return (accuracy["accuracy"] if accuracy else 0.0), -measured["bits_per_byte"]


def _passed_over(name: str, checks: Sequence[Check], measured: Measured) -> str:
    """Why another candidate is not the best."""
    failed = next((reason for passed, reason in checks if not passed), None)
    accuracy = measured.get("accuracy")
    bits = f"{measured['bits_per_byte']:.3f} bits per byte."
    return f"{name} is not: {failed or (f'accuracy {_accuracy(accuracy)}, {bits}' if accuracy else bits)}"


def _behind(name: str, sibling: Measured, best: str, candidate: Measured) -> list[Check]:
    if _rank(sibling)[0] <= _rank(candidate)[0]:
        return []
    theirs = _accuracy(sibling["accuracy"])
    return [
        (
            False,
            f"{name}, measured in the same evaluation, is ahead of {best}: {theirs}. Add it to `checkpoints`.",
        )
    ]


def _accuracy(value: Measured) -> str:
    return f"{value['accuracy']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
