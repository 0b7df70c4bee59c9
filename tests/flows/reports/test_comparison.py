"""Checkpoints are compared by a common evaluation only, and by everything in their lineages."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cupola_flows.cli import app
from cupola_flows.cli.checkpoints.evaluate import _as_before
from cupola_flows.reports.comparison import compare_checkpoints, set_apart
from cupola_flows.reports.evaluations import common, evaluations
from cupola_platform.artifacts import Artifact
from cupola_platform.workspace import Workspace

SETTINGS = {"max_heldout_tokens": 4096, "window": 128, "max_tasks": 50, "max_new_tokens": 16}


class Lives:
    """Artifacts published by name, with parents and settings."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.open(root)
        self.count = 0

    def make(self, stage: str, kind: str, *parents: Artifact, sources: str = "", **config: Any) -> Artifact:
        self.count += 1
        folder = self.workspace.folder(f"made/{self.count}")
        (folder / "model.json").write_text("{}")
        (folder / "content").write_text(str(self.count))
        if sources:
            (folder / "sources.jsonl").write_text(sources)
        return self.workspace.publish(folder, kind=kind, parents=parents, stage=stage, config=config)

    def evaluate(self, *checkpoints: Artifact, bits: float, on: tuple[Artifact, ...], **settings: Any) -> Artifact:
        self.count += 1
        folder = self.workspace.folder(f"made/{self.count}")
        entries = {c.manifest.stage: {"digest": c.digest, "bits_per_byte": bits, "tasks": {}} for c in checkpoints}
        (folder / "results.json").write_text(json.dumps({"checkpoints": entries}))
        return self.workspace.publish(
            folder, kind="evaluation", parents=[*checkpoints, *on], stage="evaluate", config=SETTINGS | settings
        )


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    return Lives(tmp_path / "home")


@pytest.fixture
def pair(lives: Lives) -> tuple[Artifact, Artifact, Artifact]:
    """A corpus, and two checkpoints trained on it."""
    tokens = lives.make("prepare", "tokens", vocab_size=4096)
    return tokens, lives.make("a", "checkpoint", tokens), lives.make("b", "checkpoint", tokens)


def test_two_evaluations_with_the_same_text_and_tasks_are_comparable(
    lives: Lives, pair: tuple[Artifact, Artifact, Artifact]
) -> None:
    tokens, a, b = pair
    lives.evaluate(a, bits=2.5, on=(tokens,))
    lives.evaluate(b, bits=2.25, on=(tokens,), sample_prompts=["another prompt"], layout={"tp": 2})
    found = compare_checkpoints(lives.workspace, a, b)
    assert found["same_evaluation"]
    assert found["missing"] is None
    assert [each["evaluation"]["bits_per_byte"] for each in found["checkpoints"]] == [2.5, 2.25]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"window": 64}, "the context of a held-out loss"),
        ({"max_tasks": 10}, "the number of tasks"),
        ({"max_heldout_tokens": 512, "max_new_tokens": 8}, "the amount of text and the length of a response"),
    ],
)
def test_evaluations_with_different_settings_are_not_comparable_and_the_next_command_is_named(
    lives: Lives, pair: tuple[Artifact, Artifact, Artifact], settings: dict[str, Any], told: str
) -> None:
    tokens, a, b = pair
    one = lives.evaluate(a, bits=2.5, on=(tokens,))
    other = lives.evaluate(b, bits=2.25, on=(tokens,), **settings)
    found = compare_checkpoints(lives.workspace, a, b)
    assert not found["same_evaluation"]
    assert [each["evaluation"] for each in found["checkpoints"]] == [None, None]
    assert found["missing"] == (
        f"No verdict: evaluations {one.id} and {other.id}, which measured them, differ in {told}. "
        f"Evaluate both with: cupola checkpoint evaluate {a.id} {b.id}"
    )


def test_evaluations_on_different_text_and_tasks_are_not_comparable(
    lives: Lives, pair: tuple[Artifact, Artifact, Artifact]
) -> None:
    tokens, a, b = pair
    tasks = lives.make("conversations", "conversations", tokens)
    lives.evaluate(a, bits=2.5, on=(tokens, tasks))
    lives.evaluate(b, bits=2.25, on=(lives.make("prepare", "tokens", vocab_size=512),))
    missing = compare_checkpoints(lives.workspace, a, b)["missing"]
    assert "differ in the held-out text and the tasks" in missing


def test_a_checkpoint_that_was_never_evaluated_is_named(
    lives: Lives, pair: tuple[Artifact, Artifact, Artifact]
) -> None:
    tokens, a, b = pair
    assert "No verdict: neither was ever evaluated. Evaluate" in compare_checkpoints(lives.workspace, a, b)["missing"]
    lives.evaluate(a, bits=2.5, on=(tokens,))
    assert f"No verdict: {b.id} was never evaluated." in compare_checkpoints(lives.workspace, a, b)["missing"]


def test_the_newest_common_evaluation_counts_even_if_newer_ones_measured_only_one(
    lives: Lives, pair: tuple[Artifact, Artifact, Artifact]
) -> None:
    tokens, a, b = pair
    lives.evaluate(a, b, bits=3.0, on=(tokens,))
    lives.evaluate(a, b, bits=2.5, on=(tokens,))
    lives.evaluate(b, bits=1.0, on=(tokens,), window=64)
    both = common(evaluations(lives.workspace), [a.digest, b.digest])
    assert both is not None
    assert [measured["bits_per_byte"] for measured in both] == [2.5, 2.5]


def test_without_a_common_evaluation_the_command_prints_no_numbers(
    lives: Lives, pair: tuple[Artifact, Artifact, Artifact]
) -> None:
    tokens, a, b = pair
    lives.evaluate(a, bits=2.5, on=(tokens,))
    lives.evaluate(b, bits=2.25, on=(tokens,), window=64)
    shown = CliRunner().invoke(app, ["compare", a.id, b.id, "--workspace", str(lives.workspace.root)])
    assert shown.exit_code == 0
    assert "2.25" not in shown.stdout
    assert f"cupola checkpoint evaluate {a.id} {b.id}" in shown.stdout


def test_set_apart_compares_every_ancestor_and_the_seed(lives: Lives) -> None:
    def life(seed: int, vocab: int, lr: float, sources: str = "one") -> Artifact:
        tokens = lives.make("prepare", "tokens", sources=sources, tokenizer={"vocab_size": vocab}, seed=seed)
        base = lives.make("pretrain", "checkpoint", tokens, optimizer={"lr": lr}, seed=seed)
        return lives.make("sft", "checkpoint", base, steps=10, seed=seed)

    def apart(a: Artifact, b: Artifact) -> list[tuple[str, str, str, str]]:
        return [(row.stage, row.setting, row.a, row.b) for row in set_apart(lives.workspace, a, b)]

    first = life(7, 4096, 0.5)
    assert apart(first, life(7, 4096, 0.5)) == []
    assert apart(first, life(7, 512, 0.25)) == [
        ("prepare", "tokenizer.vocab_size", "4096", "512"),
        ("pretrain", "optimizer.lr", "0.5", "0.25"),
    ]
    assert apart(first, life(8, 4096, 0.5)) == [(stage, "seed", "7", "8") for stage in ("prepare", "pretrain", "sft")]
    [other_text] = apart(first, life(7, 4096, 0.5, sources="two"))
    assert other_text[:2] == ("prepare", "source files")


def test_a_stage_in_only_one_lineage_is_listed_with_all_its_settings(lives: Lives) -> None:
    base = lives.make("pretrain", "checkpoint", steps=5)
    tuned = lives.make("sft", "checkpoint", base, steps=3)
    rows = {(row.stage, row.setting): (row.a, row.b) for row in set_apart(lives.workspace, base, tuned)}
    assert rows["sft", "steps"] == ("", "3")
    assert not any(stage == "pretrain" for stage, _ in rows)


def test_checkpoints_are_evaluated_like_the_newest_evaluation_of_one_of_them(
    lives: Lives, pair: tuple[Artifact, Artifact, Artifact]
) -> None:
    tokens, a, b = pair
    stage = _as_before(lives.workspace, [a, b])  # none was evaluated: uses the data in their lineage
    assert (stage.tokens, stage.conversations) == (f"artifact:{tokens.digest}", None)
    other = lives.make("prepare", "tokens", vocab_size=512)
    lives.evaluate(b, bits=2.25, on=(other,), window=64)
    stage = _as_before(lives.workspace, [a, b])
    assert (stage.tokens, stage.window, stage.max_tasks) == (f"artifact:{other.digest}", 64, 50)
