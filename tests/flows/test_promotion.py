"""An alias moves only when the numbers allow, and every comparison is told."""

from typing import Any

from cupola_flows.promote import decide


def measured(accuracy: float, low: float, high: float, bits: float = 2.0) -> dict[str, Any]:
    interval = {"accuracy": accuracy, "low": low, "high": high, "correct": 0, "total": 100}
    return {"bits_per_byte": bits, "accuracy": interval}


def test_the_first_candidate_clearly_above_its_baseline_is_promoted() -> None:
    decision = decide(measured(0.6, 0.5, 0.7), incumbent=None, baseline=measured(0.1, 0.05, 0.2), tolerance=0.05)
    assert decision.promoted
    assert decision.reasons == (
        "Accuracy 60.0% [50.0%, 70.0%] is clearly above the baseline's 10.0% [5.0%, 20.0%].",
        "There is no incumbent to beat.",
    )


def test_intervals_that_touch_are_no_improvement() -> None:
    decision = decide(measured(0.3, 0.2, 0.4), incumbent=None, baseline=measured(0.15, 0.1, 0.2), tolerance=0.05)
    assert not decision.promoted
    assert "is not clearly above the baseline's" in decision.reasons[0]


def test_a_candidate_within_the_incumbents_reach_is_promoted() -> None:
    decision = decide(
        measured(0.55, 0.45, 0.65, bits=2.05), incumbent=measured(0.6, 0.5, 0.7), baseline=None, tolerance=0.05
    )
    assert decision.promoted


def test_worse_accuracy_or_worse_text_keeps_the_incumbent() -> None:
    incumbent = measured(0.8, 0.7, 0.9)
    worse = decide(measured(0.5, 0.4, 0.6), incumbent=incumbent, baseline=None, tolerance=0.05)
    assert not worse.promoted
    assert worse.reasons[0] == "Accuracy 50.0% [40.0%, 60.0%] is worse than the incumbent's 80.0% [70.0%, 90.0%]."
    forgetful = decide(measured(0.8, 0.7, 0.9, bits=2.2), incumbent=incumbent, baseline=None, tolerance=0.05)
    assert not forgetful.promoted
    assert forgetful.reasons[1] == "2.200 bits per byte are beyond 5% of the incumbent's 2.000."


def test_without_measured_tasks_nothing_is_promoted_over_a_baseline() -> None:
    bare = {"bits_per_byte": 2.0}
    assert not decide(bare, incumbent=None, baseline=bare, tolerance=0.05).promoted
