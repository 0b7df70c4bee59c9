"""The console's reads, on a workspace with handwritten numbers."""

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cupola_dashboards.queries import checkpoints, comparison, corpus, lineage, metrics, runs, settings
from cupola_flows.recipe.loading import load_recipe
from cupola_platform.errors import NotFoundError
from cupola_platform.workspace import Workspace


def test_stages_follow_their_run_and_the_newest_run_comes_first(in_workspace: Any) -> None:
    frame = runs.runs()
    whole = frame[frame["parent"] == ""]
    assert list(whole["recipe"]) == ["watched", "failing", "tiny"]
    assert list(frame["stage"])[-8:] == [
        "", "prepare", "pretrain", "conversations", "sft", "preferences", "dpo", "evaluate",
    ]  # fmt: skip
    assert list(whole["done"]) == [0, 0, 7]


def test_a_stage_whose_run_is_not_among_the_rows_is_listed_by_itself() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [("b", "gone", "sft", now), ("a", "", "", now + timedelta(minutes=1))]
    frame = pd.DataFrame(rows, columns=["id", "parent", "stage", "started"]).assign(status="completed")
    assert list(runs.tree(frame)["id"]) == ["a", "b"]


def test_progress_of_a_running_stage_comes_from_its_metrics(in_workspace: Any) -> None:
    frame = runs.with_progress(runs.runs()).set_index("id")
    at_work = frame.loc[in_workspace.stage_at_work]
    assert (at_work["step"], at_work["steps"], at_work["share"]) == (50, 200, 0.25)
    assert at_work["loss"] == 7.0
    assert at_work["tokens_per_second"] == 5050.0
    assert at_work["left"] == 300.0  # 150 steps of two seconds
    assert frame.loc[in_workspace.finished, "step"] == 7
    assert frame.loc[in_workspace.finished, "steps"] == 10


def test_a_failed_stage_shows_the_end_of_its_log(in_workspace: Any) -> None:
    stage = in_workspace.workspace.registry.runs(parent=in_workspace.failed)[0]
    assert runs.log_tail(stage) == "rank 0 ready\nRuntimeError: the disk is full"


def test_progress_is_read_despite_truncated_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"event":"start","time":0,"step":0,"steps":10}\n'
        '{"event":"step","time":1,"step":1,"loss":5.0}\n'
        '{"event":"step","time":4,"step":2,"loss":4.0,"tokens_per_second":9.0}\n'
        '{"event":"step","time":7,"st'
    )
    found = metrics.progress(file)
    assert found == metrics.Progress(step=2, steps=10, loss=4.0, tokens_per_second=9.0, seconds_left=24.0)


def test_time_left_is_estimated_from_the_newest_start_only(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    events = [
        {"event": "start", "time": 0, "step": 0, "steps": 10},
        {"event": "step", "time": 1, "step": 1},
        {"event": "end", "time": 1, "step": 1, "status": "preempted"},
        {"event": "start", "time": 5000, "step": 1, "steps": 10},
        {"event": "step", "time": 5002, "step": 2},
        {"event": "step", "time": 5004, "step": 3},
    ]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    found = metrics.progress(file)
    assert found is not None
    assert found.seconds_left == 14.0


def test_a_job_that_has_written_nothing_has_no_progress(tmp_path: Path) -> None:
    assert metrics.progress(tmp_path / "metrics.jsonl") is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert metrics.progress(tmp_path / "metrics.jsonl") is None
    assert metrics.curves(tmp_path / "metrics.jsonl").empty


def test_of_a_stages_several_jobs_the_newest_is_shown(tmp_path: Path) -> None:
    for number, name in enumerate(("round1/run1", "round1/run2", "pareto_front")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text("{}\n")
        os.utime(tmp_path / name / "metrics.jsonl", (number, number))
    assert metrics.metrics_file(tmp_path) == tmp_path / "pareto_front" / "metrics.jsonl"
    (tmp_path / "pareto_front" / "metrics.jsonl").unlink()
    assert metrics.metrics_file(tmp_path) == tmp_path / "round1" / "run2" / "metrics.jsonl"


def test_curves_hold_every_number_of_steps_and_evaluations(in_workspace: Any) -> None:
    frame = metrics.curves(in_workspace.live_metrics)
    assert metrics.curve_names(frame) == ["loss", "heldout_loss", "grad_norm", "lr", "tokens_per_second"]
    loss = frame[frame["name"] == "loss"]
    assert (len(loss), loss["value"].iloc[0], loss["value"].iloc[-1]) == (50, 7.98, 7.0)


def test_a_long_curve_is_thinned_and_keeps_its_last_point(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"event":"step","time":0,"step":{i},"loss":{i}.5}}\n' for i in range(1, 5001)))
    frame = metrics.curves(file)
    assert len(frame) <= metrics.MOST_POINTS + 1
    assert frame["step"].iloc[-1] == 5000


def test_checkpoints_have_the_metrics_of_their_newest_evaluation(in_workspace: Any) -> None:
    frame = checkpoints.checkpoints().set_index("stage")
    assert list(frame.index) == ["dpo", "sft", "pretrain"]
    assert frame.loc["dpo", "bits_per_byte"] == 2.008
    assert frame.loc["dpo", "interval"] == "62.5% (56 to 69)"
    assert frame.loc["sft", "aliases"] == ["champion"]
    assert pd.isna(frame.loc["pretrain", "bits_per_byte"])


def test_the_alias_history_is_newest_first_with_its_reasons(in_workspace: Any) -> None:
    moves = checkpoints.alias_moves()
    assert list(moves["stage"]) == ["sft", "pretrain"]
    assert moves["reason"][1] == "The first one."
    found = checkpoints.champion()
    assert found is not None
    assert found.row.digest == in_workspace.sft.digest


def test_the_verdict_states_the_difference_and_its_certainty(in_workspace: Any) -> None:
    found = comparison.compare(in_workspace.sft.digest, in_workspace.dpo.digest)
    verdict = comparison.verdict(found)
    assert found.missing is None
    assert verdict.level == "better"
    assert verdict.headline == "dpo is better than sft"
    assert verdict.detail == (
        "dpo answers 12.5 points more tasks correctly than sft (95% interval 3 to 22); bits per byte 0.4% worse."
    )


def test_the_verdict_of_the_swapped_pair_is_its_mirror(in_workspace: Any) -> None:
    verdict = comparison.verdict(comparison.compare(in_workspace.dpo.digest, in_workspace.sft.digest))
    assert verdict.level == "worse"
    assert verdict.detail == (
        "sft answers 12.5 points fewer tasks correctly than dpo (95% interval 3 to 22); bits per byte 0.4% better."
    )


def test_a_gain_that_costs_too_many_bits_is_mixed_and_an_interval_over_zero_is_unclear(in_workspace: Any) -> None:
    found = comparison.compare(in_workspace.sft.digest, in_workspace.dpo.digest)
    assert found.a.measured
    assert found.b.measured

    def with_b(**numbers: Any) -> comparison.Comparison:
        return replace(found, b=replace(found.b, measured={**found.b.measured, **numbers}))  # type: ignore[dict-item]

    assert comparison.verdict(with_b(bits_per_byte=2.2)).level == "mixed"
    found = with_b(bits_per_byte=2.0, accuracy=found.a.measured["accuracy"])
    verdict = comparison.verdict(found)
    assert verdict.level == "unclear"
    assert "0.0 points more tasks" in verdict.detail
    assert (
        "which may be chance (95% interval of the difference -10 to +10); bits per byte are the same." in verdict.detail
    )


def test_every_task_has_its_difference_with_newcombes_interval(in_workspace: Any) -> None:
    table = comparison.task_table(comparison.compare(in_workspace.sft.digest, in_workspace.dpo.digest)).set_index(
        "task"
    )
    assert list(table.index) == ["all tasks", "chain_sum", "letter_counting"]
    row = table.loc["chain_sum"]
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((0.25, 0.1118, 0.3753), abs=5e-4)


def test_responses_right_in_one_and_wrong_in_the_other_are_told_apart(in_workspace: Any) -> None:
    found = comparison.compare(in_workspace.sft.digest, in_workspace.dpo.digest)
    table = comparison.differing_responses(found)
    assert table.to_dict("records") == [
        {"prompt": "3 + 4 =", "expected": "7", "a": "8", "b": "7", "right": "b"},
        {"prompt": "9 - 5 =", "expected": "4", "a": "4", "b": "3", "right": "a"},
    ]
    assert comparison.shared_responses(found) == 3


def test_without_a_common_evaluation_there_is_no_verdict_and_no_number(in_workspace: Any) -> None:
    pretrain = next(row for row in in_workspace.workspace.registry.artifacts("checkpoint") if row.stage == "pretrain")
    found = comparison.compare(pretrain.digest, in_workspace.dpo.digest)
    verdict = comparison.verdict(found)
    assert verdict.level == "none"
    assert verdict.headline == "pretrain and dpo have no common evaluation"
    assert verdict.detail == (
        f"No verdict: {pretrain.id} was never evaluated. Evaluate both with: "
        f"cupola checkpoint evaluate {pretrain.id} {in_workspace.dpo.id}"
    )
    assert comparison.task_table(found).empty
    assert comparison.bits_per_byte_change(found) is None
    assert comparison.task_bars(found).empty


def test_settings_that_differ_anywhere_in_the_lineages_are_listed_with_both_values(in_workspace: Any) -> None:
    table = comparison.config_differences(comparison.compare(in_workspace.sft.digest, in_workspace.dpo.digest))
    beta = table.set_index(["stage", "setting"]).loc[("dpo", "beta")]
    assert (beta["a"], beta["b"]) == ("", "0.1")
    assert set(table["stage"]) == {"preferences", "dpo"}  # all ancestors of the first are ancestors of the second


def test_curves_of_both_checkpoints_are_overlaid(in_workspace: Any) -> None:
    frame = comparison.curves(comparison.compare(in_workspace.sft.digest, in_workspace.dpo.digest))
    assert frame[frame["name"] == "loss"].groupby("checkpoint").size().to_dict() == {"dpo": 20, "sft": 30}


def test_a_checkpoint_that_is_not_registered_is_named(in_workspace: Any) -> None:
    with pytest.raises(NotFoundError, match=r"No checkpoint ffffffffffff is registered"):
        comparison.compare("f" * 64, in_workspace.dpo.digest)


def test_the_lineage_names_each_artifact_once_down_to_the_sources(in_workspace: Any) -> None:
    graph = lineage.ancestry(in_workspace.dpo.digest)
    assert sorted(node.stage for node in graph.nodes.values()) == [
        "conversations", "dpo", "preferences", "prepare", "pretrain", "sft",
    ]  # fmt: skip
    assert (in_workspace.sft.digest, in_workspace.dpo.digest) in graph.edges
    assert len(graph.edges) == 8
    assert [(source.name, source.files, source.bytes) for _, source in graph.sources] == [("library", 1, 14_000)]
    assert set(lineage.made_from(in_workspace.dpo.digest)["stage"]) == {"evaluate"}


def test_the_funnel_counts_what_each_step_dropped_and_why(in_workspace: Any) -> None:
    told = corpus.report(in_workspace.tokens.digest)
    assert list(corpus.funnel(told)["dropped"]) == [300, 100]
    assert list(corpus.drops(told)["reason"]) == ["too short", "like another", "mostly symbols"]
    assert corpus.drops(told)["examples"][0] == ["a.txt: 12 words: One line."]
    assert corpus.sources(told)["tokens"].sum() == 1_330_000
    assert list(corpus.examples(in_workspace.tokens.digest, "library", "heldout")["path"]) == ["csv.py"]


def test_sources_lengths_clusters_mixture_and_compression_are_read_from_the_corpuss_report(in_workspace: Any) -> None:
    told = corpus.report(in_workspace.tokens.digest)
    assert corpus.of_sources(told).values.tolist() == [["library", 1000, 8_000_000, 600, 5_000_000]]
    assert corpus.edits(told).values.tolist() == [["near duplicates: email", 9, 12]]
    assert corpus.survival(told)["kept"].tolist() == [0.7, 600 / 700]
    assert corpus.lengths(told).values.tolist() == [["512", 200], ["1K", 0], ["2K", 400]]
    sizes, largest = corpus.clusters(told)["near duplicates"]
    assert sizes.values.tolist() == [["2 to 3", 50], ["4 to 7", 10]]
    assert largest.values.tolist() == [["b.txt", 7]]
    assert corpus.mixture(told).values.tolist() == [["library", "tokens", 1.0], ["library", "samples", 1.0]]
    assert corpus.compression(told).values.tolist()[:2] == [["en", "this corpus", 3.84], ["en", "qwen", 4.2]]


def test_every_setting_is_listed_with_its_description_and_changes_become_overrides() -> None:
    recipe = load_recipe("tiny")
    before = settings.recipe_settings(recipe)
    rows = before.set_index("setting")
    assert rows.loc["pretrain.optimizer.lr", "meaning"] == "Peak learning rate."
    assert "pretrain.steps" not in rows.index
    assert settings.overrides(before, before) == []
    after = before.copy()
    after.loc[after["setting"] == "sft.optimizer.lr", "value"] = "0.5"
    assert settings.overrides(before, after) == ["stages.sft.optimizer.lr=0.5"]


def test_the_table_of_settings_shows_the_recipes_values() -> None:
    recipe = load_recipe("tiny")
    shown = settings.recipe_settings(recipe)
    told = [f"stages.{row.setting}={row.value}" for row in shown.itertuples() if row.value != "null"]
    assert load_recipe("tiny", told) == recipe


def test_a_thousand_runs_are_read_in_the_time_of_forty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_many = Workspace.open(tmp_path / "many")
    for _ in range(1_050):
        with_many.registry.start_run("tiny", config={"stages": {"prepare": {}}})
    monkeypatch.setenv("CUPOLA_HOME", str(tmp_path / "many"))
    runs.runs()
    began = time.perf_counter()
    newest = runs.runs()
    assert time.perf_counter() - began < 1.0
    assert len(newest) == 400
    assert len(runs.runs(runs.EVERYTHING)) == 1_050
