"""Conversations and pairs made with checkpoints: one writes, a reward model scores."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.orchestration.running import run_plain
from cupola_flows.runs.opening import open_session
from cupola_flows.terminal.display import PlainDisplay
from cupola_platform.artifacts import Artifact
from cupola_platform.workspace import Workspace

MODELS = """
import sys
from pathlib import Path
from cupola_platform.corpus.core.qwen_tokenizer import save_tokenizer
from cupola_platform.corpus.tokenizer.vocabulary import train_tokenizer
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import ModelConfig, LayoutConfig

folder, one = Path(sys.argv[1]), LayoutConfig()
save_tokenizer(train_tokenizer(["0 + 1? 2 + 3? 4 5 6 7 8 9 " * 9], 320).to_str(), folder / "tokenizer")
runtime.start(one, seed=3)
shape = dict(vocab_size=320, hidden_size=32, num_layers=2, num_attention_heads=4, num_query_groups=2,
             ffn_hidden_size=64, max_position_embeddings=1024)
for name, head in (("writer", "language"), ("judge", "scalar")):
    model = ModelConfig(**shape, **({"head": "scalar"} if head == "scalar" else {}))
    chunks = models.build(model, one, seed=5)
    checkpoint.save(folder / name, chunks, model=model, layout=one, step=0, consumed_samples=0, seed=0,
                    objective="reward" if head == "scalar" else "sft", tokenizer=folder / "tokenizer")
runtime.stop()
"""

OURS = """
name: ours
seed: 1
stages:
  synthesize:
    conversations: artifact:{given}
    writer: artifact:{writer}
    scorer: reward_model
    reward_model: artifact:{judge}
    min_score: -1000
    keep: best
    samples_per_prompt: 2
    temperature: 1.0
    max_new_tokens: 200
    heldout_fraction: 0.2
  preferences:
    parent: artifact:{writer}
    conversations: artifact:{given}
    scorer: reward_model
    reward_model: artifact:{judge}
    max_prompts: 6
    max_new_tokens: 200
"""


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    lines = [*(artifact.path / "train.jsonl").open(), *(artifact.path / "heldout.jsonl").open()]
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_checkpoint_writes_and_a_reward_model_scores(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", MODELS, str(tmp_path / "models")], check=True, timeout=500)
    workspace = Workspace.open(tmp_path)
    folder = tmp_path / "given"
    folder.mkdir()
    rows = [
        {"id": f"sum-{n}", "source": "sums", "task": None,
         "messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(10)
    ]  # fmt: skip
    for split in ("train", "heldout"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = workspace.publish(folder, kind="conversations")
    kinds = {"writer": "checkpoint", "judge": "reward_model"}
    made = {name: workspace.publish(tmp_path / "models" / name, kind=kind) for name, kind in kinds.items()}
    path = tmp_path / "ours.yaml"
    path.write_text(OURS.format(given=given.id, **{name: artifact.id for name, artifact in made.items()}))
    session = open_session(str(path), [], [], tmp_path, PlainDisplay)
    run_plain(session)
    artifact = session.outcomes["synthesize"].artifact
    assert set(artifact.manifest.parents) == {given.digest, made["writer"].digest, made["judge"].digest}
    report = json.loads((artifact.path / "report.json").read_text())
    assert report["asked"] == 20
    assert report["kept"] + sum(report["dropped"].values()) == 20
    for row in rows_of(artifact):
        assert row["synthesis"]["model"] == made["writer"].id
        assert row["synthesis"]["scorer"] == "reward_model"
        assert row["synthesis"]["score"] != 0.0
    pairs = session.outcomes["preferences"].artifact
    assert set(pairs.manifest.parents) == {given.digest, made["writer"].digest, made["judge"].digest}
    for pair in rows_of(pairs):
        assert pair["chosen_score"] > pair["rejected_score"]
        assert pair["synthesis"] == {
            "of": pair["id"].split("/")[0],
            "model": made["writer"].id,
            "scorer": "reward_model",
        }
