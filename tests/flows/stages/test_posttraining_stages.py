"""Reward models, distillation and data from files with the real command; shared results are computed once."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STAGES = """
  conversations:
    files: [{{path: {folder}/chats.jsonl}}]
  sft:
    optimizer: {{lr: 3.0e-3}}
    batch: {{sequence_length: 96, micro_batch_size: 4, global_batch_size: 4}}
    steps: 6
  pairs:
    files: [{{path: {folder}/pairs.jsonl, tag: yes_no}}]
  reward:
    parent: sft
    layout: {{tp: 2}}
    balance_tags: true
    optimizer: {{lr: 3.0e-3}}
    batch: {{sequence_length: 96, micro_batch_size: 4, global_batch_size: 4}}
    steps: 6
  reward_tuned:
    kind: reward
    reward: reward
    batch: {{sequence_length: 96, micro_batch_size: 4, global_batch_size: 4}}
    steps: 2
  dpo:
    optimizer: {{lr: 1.0e-4}}
    batch: {{sequence_length: 96, micro_batch_size: 4, global_batch_size: 4}}
    steps: 3
  distillation:
    teacher: sft
    model: {{hidden_size: 16, num_layers: 1, num_attention_heads: 2, num_query_groups: 2, ffn_hidden_size: 32,
            max_position_embeddings: 128}}
    conversations: conversations
    layout: {{tp: 2}}
    batch: {{sequence_length: 96, micro_batch_size: 4, global_batch_size: 4}}
    steps: 4
  distillation_stored:
    kind: distillation
    teacher: sft
    parent: distillation
    tokens: prepare
    stored_top_k: 8
    batch: {{sequence_length: 64, micro_batch_size: 4, global_batch_size: 4}}
    steps: 3
"""


def test_post_training_stages_run_one_after_the_other(cupola: Any, recipe: Path, tmp_path: Path) -> None:
    chats = [{"prompt": f"Is {n} even?", "completion": "yes" if n % 2 == 0 else "no"} for n in range(60)]
    pairs = [{"prompt": f"Is {n} even?", "chosen": "yes", "rejected": "no"} for n in range(0, 60, 2)]
    for name, rows in (("chats", [*chats, {"prompt": "Is it?"}]), ("pairs", [*pairs, pairs[0] | {"rejected": "yes"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(recipe.read_text() + STAGES.format(folder=tmp_path))
    done = cupola("run", str(recipe), timeout=700)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    kinds = {row["stage"]: row["kind"] for row in cupola.json("artifacts")}
    assert kinds["reward"] == kinds["reward_tuned"] == "reward_model"
    assert kinds["dpo-reference"] == "reference"
    assert kinds["distillation_stored-teacher"] == "teacher"
    ids = {row["stage"]: row["id"] for row in cupola.json("artifacts")}
    reports = {
        name: json.loads((Path(cupola.json("show", ids[name])["path"]) / "report.json").read_text())
        for name in ("conversations", "pairs")
    }
    assert reports["conversations"]["dropped"] == {"no_assistant_turn": 1}
    assert reports["pairs"]["dropped"] == {"equal_responses": 1}
    tuned = cupola.json("show", ids["reward_tuned"])["metrics"]
    first = cupola.json("show", ids["reward"])["metrics"]
    assert tuned["initial_heldout_loss"] == pytest.approx(first["final_heldout_loss"], rel=1e-3)
    assert 0 <= tuned["final_heldout_ece"] <= 0.5

    exported = tmp_path / "exported"
    assert cupola("checkpoint", "export", ids["reward"], "--to", str(exported)).returncode == 0
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["Qwen2ForSequenceClassification"]
    refused = cupola("checkpoint", "generate", ids["reward"], "--prompt", "x")
    assert refused.returncode == 2
    assert "of kind reward_model, not checkpoint" in refused.stderr

    rows = cupola.json("checkpoint", "score", ids["reward"], "--file", str(tmp_path / "chats.jsonl"))
    assert len(rows) == 60
    assert [row["reward"] for row in rows] == sorted((row["reward"] for row in rows), reverse=True)

    again = cupola("run", str(recipe), "--set", "stages.dpo.beta=0.5", "--only", "dpo", timeout=300)
    assert again.returncode == 0, again.stderr
    assert [row["stage"] for row in cupola.json("artifacts")].count("dpo") == 2
    assert [row["stage"] for row in cupola.json("artifacts")].count("dpo-reference") == 1
