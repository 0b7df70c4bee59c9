"""Mixture search and scaling laws from series of small runs."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from cupola_flows.experiments.layout_comparison import prepared_tokens
from cupola_flows.recipe.loading import load_recipe
from cupola_flows.runs.session import Session
from cupola_flows.terminal.display import make_display
from cupola_platform.artifacts import Artifact
from cupola_platform.workspace import Workspace

CORPUS = """
name: mixed
seed: 3
stages:
  prepare:
    corpus:
      sources:
        mail: {{type: files, path: {texts}/email-*.py}}
        data: {{type: files, path: {texts}/json-*.py}}
      tokenizer: {{vocab_size: 320, train_bytes: 100000}}
      quality: null
      heldout_fraction: 0.2
      executor: {{workers: 1}}
  pretrain:
    model: {{hidden_size: 32, num_layers: 2, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 64,
            max_position_embeddings: 128}}
    batch: {{sequence_length: 64, micro_batch_size: 4, global_batch_size: 4}}
    steps: 20
    mixture: {{temperature: 2, max_epochs: {{data: 1}}}}
"""


@pytest.fixture
def mixed(tmp_path: Path, texts: Path) -> Path:
    path = tmp_path / "mixed.yaml"
    path.write_text(CORPUS.format(texts=texts))
    return path


def test_a_series_needs_prepared_tokens_and_options_that_fit(cupola, mixed: Path) -> None:  # type: ignore[no-untyped-def]
    done = cupola("mix", str(mixed))
    assert done.returncode == 2
    assert "are not prepared yet. Run cupola run mixed --only prepare first." in done.stderr


@pytest.mark.parametrize("judged", [False, True])
def test_a_recipes_prepared_tokens_are_found(mixed: Path, tmp_path: Path, judged: bool) -> None:
    workspace = Workspace.open(tmp_path / "home")

    def published(name: str, mark: str) -> Artifact:
        folder = workspace.folder(f"made/{name}")
        (folder / "content.txt").write_text(name)
        return workspace.publish(folder, kind=name, stage=name, recipe="mixed", fingerprint=mark)

    judge = published("checkpoint", "a" * 64)
    if judged:
        text = mixed.read_text().replace("      quality: null", "      perplexity: {}\n      quality: null")
        mixed.write_text(text.replace("  prepare:\n", f"  prepare:\n    judge: artifact:{judge.id}\n"))
    recipe = load_recipe(str(mixed), [])
    assert prepared_tokens(workspace, recipe, "pretrain") is None
    session = Session(workspace=workspace, recipe=recipe, names=["prepare"], display=make_display({}, Console()))
    tokens = published("tokens", session.fingerprint("prepare", session.inputs("prepare")))
    found = prepared_tokens(workspace, recipe, "pretrain")
    assert found is not None
    assert found.digest == tokens.digest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_small_runs_propose_weights_and_are_reused(cupola, mixed: Path) -> None:  # type: ignore[no-untyped-def]
    assert cupola("run", str(mixed), "--no-prefect").returncode == 0
    asked = ("mix", str(mixed), "--runs", "4", "--steps", "4", "--heldout-tokens", "2000")
    found = cupola.json(*asked, timeout=600)
    assert sum(found["weights"].values()) == pytest.approx(1)
    assert all(found["low"][name] <= found["high"][name] for name in ("mail", "data"))
    assert len(found["runs"]) == 4
    assert found["runs"][0]["weights"] == found["baseline"]
    assert cupola.json(*asked)["artifact"] == found["artifact"]
    assert cupola.json("show", found["artifact"])["kind"] == "mixture"
    assert "prepare" in cupola("lineage", found["artifact"]).stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)  # twenty trainings, each in its own processes
def test_small_runs_determine_power_laws(cupola, mixed: Path) -> None:  # type: ignore[no-untyped-def]
    assert cupola("run", str(mixed), "--only", "prepare", "--no-prefect").returncode == 0
    sizes = ("--size", "num_layers=1", "--size", "num_layers=2")
    grid = ("--tokens", "1024,2048", "--lr", "1e-3,4e-3,1.6e-2", "--batch", "2,4,8")
    laws = cupola.json("fit-laws", str(mixed), *sizes, *grid, "--at", "1e6,1e5", timeout=1400)
    assert len(laws["runs"]) == 2 * 2 * 5
    assert {"coefficient", "n_exponent", "d_exponent", "intervals", "samples"} == set(laws["lr"])
    (best,) = laws["at"]
    assert best["lr"]["best"] == pytest.approx(
        laws["lr"]["coefficient"] * 1e6 ** laws["lr"]["n_exponent"] * 1e5 ** laws["lr"]["d_exponent"]
    )
    page = Path(cupola.json("show", laws["artifact"])["path"]) / "laws.html"
    assert page.read_text().count("<svg") == 4
    done = cupola("fit-laws", str(mixed), "--size", "num_layers=1", "--tokens", "1024,2048")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "1 different model sizes cannot determine a power law" in done.stderr
    done = cupola("fit-laws", str(mixed), *sizes, *grid, "--at", "1e6")
    assert "--at 1e6: give two numbers, parameters and tokens, such as 1e7,5e7." in done.stderr
    assert json.loads((page.parent / "laws.json").read_text())["lr"] == laws["lr"]
