"""An alias moves to the best checkpoint only if the evaluation allows it, with a reason for every comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.execution.context import StageContext
from cupola_flows.recipe.loading import load_recipe, parse_recipe
from cupola_flows.recipe.schema import Recipe
from cupola_flows.stages.base import Taken
from cupola_flows.stages.evaluation import promote as promotion
from cupola_flows.stages.evaluation.decision import Decision, decide
from cupola_flows.stages.evaluation.promote import PromoteStage
from cupola_flows.terminal.display import Display
from cupola_platform.artifacts import Artifact
from cupola_platform.workspace import Workspace


def measured(accuracy: float, low: float, high: float, bits: float = 2.0, digest: str = "") -> dict[str, Any]:
    interval = {"accuracy": accuracy, "low": low, "high": high, "correct": 0, "total": 100}
    return {"digest": digest or f"{accuracy}/{bits}", "bits_per_byte": bits, "accuracy": interval}


def decided(
    candidates: dict[str, Any],
    *,
    siblings: dict[str, Any] | None = None,
    baseline: dict[str, Any] | None = None,
    incumbent: dict[str, Any] | None = None,
) -> Decision:
    return decide(candidates, siblings=siblings or {}, baseline=baseline, incumbent=incumbent, tolerance=0.05)


BASELINE = measured(0.1, 0.05, 0.2)


def test_the_first_candidate_clearly_above_its_baseline_is_promoted() -> None:
    decision = decided({"sft": measured(0.6, 0.5, 0.7)}, baseline=BASELINE)
    assert decision == Decision(
        "sft",
        True,
        (
            "Accuracy 60.0% [50.0%, 70.0%] is clearly above the baseline's 10.0% [5.0%, 20.0%].",
            "2.000 bits per byte is within 5% of the baseline's 2.000.",
            "There is no incumbent to beat.",
        ),
    )


def test_a_first_promotion_compares_bits_per_byte_with_the_baseline() -> None:
    decision = decided({"dpo": measured(0.69, 0.62, 0.75, bits=3.588)}, baseline=measured(0.0, 0.0, 0.018, bits=2.292))
    assert not decision.promoted
    assert decision.reasons[1] == "3.588 bits per byte is more than 5% above the baseline's 2.292."
    assert decided({"sft": measured(0.6, 0.5, 0.7, bits=2.1)}, baseline=BASELINE).promoted
    assert not decided({"sft": measured(0.6, 0.5, 0.7, bits=2.101)}, baseline=BASELINE).promoted


def test_overlapping_intervals_are_no_improvement() -> None:
    decision = decided({"sft": measured(0.3, 0.2, 0.4)}, baseline=measured(0.15, 0.1, 0.2))
    assert not decision.promoted
    assert "is not clearly above the baseline's" in decision.reasons[0]


def test_the_best_of_several_candidates_is_promoted_in_any_order() -> None:
    sft, dpo = measured(0.55, 0.48, 0.62), measured(0.52, 0.45, 0.59)
    for candidates in ({"sft": sft, "dpo": dpo}, {"dpo": dpo, "sft": sft}):
        decision = decided(candidates, baseline=BASELINE)
        assert (decision.best, decision.promoted) == ("sft", True)
        assert decision.reasons[0] == f"sft is the best of {', '.join(candidates)}."
        assert "dpo is not: accuracy 52.0% [45.0%, 59.0%], 2.000 bits per byte." in decision.reasons
    equal = {"sft": measured(0.55, 0.48, 0.62, bits=2.05), "dpo": measured(0.55, 0.48, 0.62, bits=2.04)}
    assert decided(equal, baseline=BASELINE).best == "dpo"


def test_a_candidate_that_forgot_plain_text_loses_to_one_that_did_not() -> None:
    decision = decided({"sft": measured(0.7, 0.6, 0.8, bits=3.6), "mixed": measured(0.6, 0.5, 0.7)}, baseline=BASELINE)
    assert (decision.best, decision.promoted) == ("mixed", True)
    assert "sft is not: 3.600 bits per byte is more than 5% above the baseline's 2.000." in decision.reasons


def test_a_candidate_behind_a_sibling_in_the_same_evaluation_is_not_promoted() -> None:
    dpo = {"dpo": measured(0.52, 0.45, 0.59)}
    decision = decided(dpo, siblings={"sft": measured(0.525, 0.46, 0.6)}, baseline=BASELINE)
    assert not decision.promoted
    assert decision.reasons[2] == (
        "sft, measured in the same evaluation, is ahead of dpo: 52.5% [46.0%, 60.0%]. Add it to `checkpoints`."
    )
    assert decided(dpo, siblings={"sft": measured(0.52, 0.45, 0.59)}, baseline=BASELINE).promoted
    assert decided(dpo, siblings={"sft": measured(0.9, 0.8, 1.0, bits=3.0)}, baseline=BASELINE).promoted


def test_a_candidate_whose_interval_reaches_the_incumbent_is_promoted() -> None:
    assert decided({"dpo": measured(0.55, 0.45, 0.65, bits=2.05)}, incumbent=measured(0.6, 0.5, 0.7)).promoted


def test_worse_accuracy_or_worse_text_keeps_the_incumbent() -> None:
    incumbent = measured(0.8, 0.7, 0.9)
    worse = decided({"dpo": measured(0.5, 0.4, 0.6)}, incumbent=incumbent)
    assert not worse.promoted
    assert worse.reasons[0] == "Accuracy 50.0% [40.0%, 60.0%] is worse than the incumbent's 80.0% [70.0%, 90.0%]."
    forgetful = decided({"dpo": measured(0.8, 0.7, 0.9, bits=2.2)}, incumbent=incumbent)
    assert not forgetful.promoted
    assert forgetful.reasons[1] == "2.200 bits per byte is more than 5% above the incumbent's 2.000."


def test_without_measured_tasks_nothing_is_promoted_over_a_baseline() -> None:
    bare = {"digest": "a", "bits_per_byte": 2.0}
    assert not decided({"sft": bare}, baseline={**bare, "digest": "b"}).promoted


RECIPE = """
name: ours
stages:
  promote:
    checkpoints: ["artifact:{dpo}"]
    baseline: artifact:{base}
    evaluation: artifact:{evaluation}
"""


class World:
    """A workspace with a baseline, SFT and DPO checkpoints from it, and their evaluations."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.open(root)
        self.tokens = self._publish("tokens", "tokens")
        self.base = self._publish("base", "checkpoint", self.tokens)
        self.sft = self._publish("sft", "checkpoint", self.base)
        self.dpo = self._publish("dpo", "checkpoint", self.sft)

    def _publish(self, name: str, kind: str, *parents: Artifact, text: str = "") -> Artifact:
        folder = self.workspace.folder(f"made/{name}")
        (folder / "results.json").write_text(text or name)
        return self.workspace.publish(folder, kind=kind, parents=parents, stage=name, config={"max_tasks": 7})

    def evaluation(self, entries: dict[str, dict[str, Any]]) -> Artifact:
        found = [getattr(self, name) for name in entries]
        results = {
            "checkpoints": {n: {**e, "digest": a.digest} for a, (n, e) in zip(found, entries.items(), strict=True)}
        }
        return self._publish("evaluate", "evaluation", *found, self.tokens, text=json.dumps(results))

    def promote(self, evaluation: Artifact) -> dict[str, Any]:
        text = RECIPE.format(dpo=self.dpo.id, base=self.base.id, evaluation=evaluation.id)
        recipe: Recipe = parse_recipe(text)
        stage = recipe.stages["promote"]
        assert isinstance(stage, PromoteStage)
        ctx = StageContext(
            workspace=self.workspace,
            recipe=recipe.name,
            name="promote",
            gives=stage.gives,
            config=stage.model_dump(mode="json"),
            seed=0,
            fingerprint="f" * 64,
            run_id=self.workspace.registry.start_run("ours", "promote"),
            folder=self.workspace.work_folder("f" * 64),
            display=Display({"promote": "promote"}),
        )
        (candidate,) = recipe.references("promote", "checkpoints")
        taken = {
            "checkpoints": {candidate: self.dpo},
            "evaluation": {"evaluation": evaluation},
            "baseline": {"baseline": self.base},
        }
        made = stage.run(ctx, Taken(taken))
        decision: dict[str, Any] = json.loads((made.path / "decision.json").read_text())
        return decision


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "home")


def test_the_alias_does_not_move_to_a_checkpoint_with_a_better_sibling(world: World) -> None:
    sft, dpo = measured(0.55, 0.48, 0.62), measured(0.52, 0.45, 0.59)
    decision = world.promote(world.evaluation({"base": BASELINE, "sft": sft, "dpo": dpo}))
    assert not decision["promoted"]
    assert f"sft, measured in the same evaluation, is ahead of artifact:{world.dpo.id}: 55.0%" in " ".join(
        decision["reasons"]
    )
    assert world.workspace.registry.alias("champion") is None


def test_a_checkpoint_that_the_evaluation_lacks_is_measured_now(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []

    def job(ctx: StageContext, job: Any) -> None:  # stands in for the trainer's process, which has its own tests
        asked.append([path.name for path in job.checkpoints.values()])
        assert job.max_tasks == 7
        job.output.mkdir(parents=True)
        entry = {**measured(0.5, 0.4, 0.6), "digest": world.base.digest}
        (job.output / "results.json").write_text(json.dumps({"checkpoints": {world.base.id: entry}}))

    monkeypatch.setattr(promotion, "run_job", job)
    decision = world.promote(world.evaluation({"dpo": measured(0.55, 0.48, 0.62)}))
    assert asked == [[world.base.digest]]
    assert not decision["promoted"]
    assert decision["reasons"][0] == (
        "Accuracy 55.0% [48.0%, 62.0%] is not clearly above the baseline's 50.0% [40.0%, 60.0%]."
    )


def test_candidates_default_to_all_checkpoints_of_the_evaluation_but_the_baseline() -> None:
    assert load_recipe("smoke").inputs("promote") == {
        "checkpoints": ("pretrain", "sft", "dpo"),
        "baseline": ("pretrain_moe",),
        "evaluation": ("evaluate",),
    }
    assert load_recipe("tiny").inputs("promote")["checkpoints"] == ("sft", "dpo")
