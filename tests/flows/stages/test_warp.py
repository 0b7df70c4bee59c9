"""WARP as a recipe's stage: refused settings, its page, and two rounds of two runs with the real command."""

import json
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.recipe.loading import parse_recipe, shipped
from cupola_flows.stages.rl.warp_page import Point, page
from cupola_platform.errors import ConfigError

GRPO = shipped()["grpo"].read_text()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("runs: 1", "stages.warp.runs"),
        (
            "interpolation_shares: [0.5, 1.0]",
            "interpolation_shares=[0.5, 1.0]: shares must be between 0 (the start) and 1 (the merged model)",
        ),
        ("lora: {rank: 4, alpha: 8}", "lora: WARP merges full checkpoints"),
        ("kl_coef: 0", "ema_rate=0.01 with kl_coef=0: without a KL term"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_line(settings: str, says: str) -> None:
    text = GRPO.replace("  grpo:\n", f"  warp:\n    {settings}\n", 1).replace("[pretrain, sft, grpo]", "[sft, warp]")
    text = "\n".join(line for line in text.splitlines() if not (line.strip().startswith("kl_coef: 0.0")))
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_page_shows_every_checkpoint_and_a_line_per_round() -> None:
    points = {
        "beginning": Point(0, "beginning", 0.0, "beginning"),
        "round 1, run 1": Point(1, "run", 1.0, "beginning"),
        "round 1, run 2": Point(1, "run", 1.0, "beginning"),
        "round 1, merged": Point(1, "merged", 1.0, "beginning"),
        "round 1, eta 0.3": Point(1, "between", 0.3, "beginning"),
        "round 2, merged": Point(2, "merged", 1.0, "round 1, eta 0.3"),
    }
    measured = {key: {"reward": i / 10, "kl": i / 2, "length": 4.0} for i, key in enumerate(points)}
    drawn = page("warp <1>", points, measured)
    assert [drawn.count(f"<title>round {number}</title>") for number in (1, 2)] == [1, 1]
    assert all(drawn.count(f"<title>{key}</title>") == 1 for key in points)
    assert "warp &lt;1&gt;: reward over KL" in drawn
    assert all(f"<td>{key}</td>" in drawn for key in points)


RECIPE = """
name: warped
seed: 3
stages:
  conversations:
    tasks: [{name: chain_sum, count: 60, config: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}]
    heldout_per_task: 8
  warp:
    parent: "artifact:POLICY"
    runs: 2
    rounds: 2
    interpolation_shares: [0.6]
    rollout: {prompts: 4, samples_per_prompt: 4, max_new_tokens: 6, heldout_prompts: 8}
    optimizer: {lr: 1.0e-2}
    batch: {sequence_length: 64, micro_batch_size: 8, global_batch_size: 16}
    steps: 2
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_rounds_of_two_runs_give_a_checkpoint_and_its_pareto_front(cupola: Any, tmp_path: Path) -> None:
    done = cupola("run", "smoke", "--only", "prepare,pretrain")
    assert done.returncode == 0, done.stderr
    policy = next(row["id"] for row in cupola.json("artifacts", "--kind", "checkpoint"))
    (tmp_path / "warped.yaml").write_text(RECIPE.replace("POLICY", policy))
    done = cupola("run", str(tmp_path / "warped.yaml"))
    assert done.returncode == 0, done.stderr
    made = next(row["id"] for row in cupola.json("artifacts", "--kind", "checkpoint") if row["stage"] == "warp")
    folder = Path(cupola.json("show", made)["path"])
    found = json.loads((folder / "pareto_front.json").read_text())
    assert set(found) == {
        "beginning", *(f"round {n}, {what}" for n in (1, 2) for what in ("run 1", "run 2", "merged", "eta 0.3")),
        "round 2, eta 0.6",
    }  # fmt: skip
    assert found["beginning"]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["round 1, run 1"] != found["round 1, run 2"]
    assert found["round 1, eta 0.3"]["kl"] < found["round 1, merged"]["kl"]
    assert (folder / "pareto_front.html").read_text().count("<title>round 2</title>") == 1
    again = cupola("run", str(tmp_path / "warped.yaml"))
    assert again.returncode == 0
    assert "reused" in again.stdout
