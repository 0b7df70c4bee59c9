"""Merging checkpoints and adapters by commands and by recipe stages, with the parents in the lineage."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cupola_flows.recipe.loading import parse_recipe
from cupola_platform.artifacts import read
from cupola_platform.errors import ConfigError

MODELS = Path(__file__).parents[2] / "trainer" / "material" / "three_models.py"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    subprocess.run([sys.executable, MODELS, folder], check=True)
    return folder


@pytest.mark.slow
def test_merged_checkpoints_are_published_with_their_parents_or_written_to_a_folder(
    cupola: Any, saved: Path, tmp_path: Path
) -> None:
    one, two, base = (read(saved / name).digest for name in ("one", "two", "base"))
    pair = ("checkpoint", "merge", str(saved / "one"), str(saved / "two"))
    done = cupola(*pair, "--method", "ties", "--base", str(saved / "base"), "--alias", "both")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Use it in a recipe as artifact:both.\n")
    shown = cupola.json("show", "both")
    assert shown["kind"] == "checkpoint"
    assert shown["parents"] == [one, two, base]
    done = cupola(*pair, "--weights", "1,3", "--to", str(tmp_path / "mean"))
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "mean").manifest.parents == (one, two)


@pytest.mark.slow
def test_merged_reward_models_are_a_reward_model(cupola: Any, saved: Path) -> None:
    done = cupola("checkpoint", "merge", str(saved / "judge"), str(saved / "other_judge"), "--alias", "warm")
    assert done.returncode == 0, done.stderr
    assert cupola.json("show", "warm")["kind"] == "reward_model"
    done = cupola("checkpoint", "merge", "warm", str(saved / "one"), "--alias", "no")
    assert done.returncode == 2
    assert "has head=" in done.stderr


@pytest.mark.slow
def test_an_impossible_merge_is_refused_in_one_line(cupola: Any, saved: Path) -> None:
    done = cupola("checkpoint", "merge", str(saved / "one"), str(saved / "wide"), "--alias", "no")
    assert done.returncode == 2
    assert done.stderr.startswith("cupola: error: wide has ffn_hidden_size=64 and one has 48: only checkpoints of one")
    assert done.stderr.count("\n") == 1
    done = cupola("checkpoint", "merge", str(saved / "one"), str(saved / "two"), "--method", "tie")
    assert (done.returncode, done.stderr) == (2, "cupola: error: method: 'tie' is unknown. Did you mean 'ties'?\n")


def test_a_recipe_whose_merge_lacks_its_base_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stages\.merge: method=dare needs a base"):
        parse_recipe("{name: x, stages: {merge: {checkpoints: ['artifact:a', 'artifact:b'], method: dare}}}")


@pytest.mark.slow
def test_a_recipe_merges_with_the_base_in_the_lineage(cupola: Any, saved: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(
        "name: merged\nstages:\n  merge:\n    method: dare\n"
        f"    checkpoints: ['artifact:{saved / 'one'}', 'artifact:{saved / 'two'}']\n"
        f"    base: 'artifact:{saved / 'base'}'\n"
    )
    done = cupola("run", str(recipe))
    assert done.returncode == 0, done.stderr
    [row] = [row for row in cupola.json("artifacts") if row["stage"] == "merge"]
    parents = [read(saved / name).digest for name in ("one", "two", "base")]
    assert cupola.json("show", row["id"])["parents"] == parents


@pytest.mark.slow
def test_a_stage_with_lora_publishes_the_adapter_and_the_merged_checkpoint(
    cupola: Any, recipe: Path, tmp_path: Path
) -> None:
    life = yaml.safe_load(recipe.read_text())
    further = {**life["stages"]["pretrain"], "kind": "pretrain", "parent": "pretrain", "lora": {"rank": 2}, "steps": 3}
    del further["model"]
    life["stages"]["adapted"] = further
    (tmp_path / "lora.yaml").write_text(json.dumps(life))
    done = cupola("run", str(tmp_path / "lora.yaml"))
    assert done.returncode == 0, done.stderr
    [adapter] = cupola.json("artifacts", "--kind", "adapter")
    folded = next(row for row in cupola.json("artifacts", "--kind", "checkpoint") if row["stage"] == "adapted")
    assert cupola.json("show", folded["id"])["parents"][-1] == cupola.json("show", adapter["id"])["digest"]
    assert cupola("checkpoint", "verify", folded["id"]).returncode == 0
    done = cupola("checkpoint", "export", adapter["id"], "--to", str(tmp_path / "no"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is of kind adapter, not checkpoint. Export it with --adapter" in done.stderr
    assert cupola("checkpoint", "export", adapter["id"], "--adapter", "--to", str(tmp_path / "peft")).returncode == 0
    done = cupola("checkpoint", "merge-adapter", adapter["id"], "--to", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    # files of two ranks and of one
    tensors = cupola.json("checkpoint", "diff", folded["id"], str(tmp_path / "again"))["tensors"]
    assert len(tensors) == 2 + 2 * 12
    assert {tensor["changed"] for tensor in tensors} == {0.0}
