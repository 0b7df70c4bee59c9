"""Data stages report the rows that they drop on the terminal, in the table and in report.json; a stage that keeps
nothing fails."""

import json
from pathlib import Path
from typing import Any

from cupola_flows.recipe.loading import load_recipe
from cupola_flows.reports.results import summarize

STAGES = """
name: rows
stages:
  conversations:
    files: [{{path: "{folder}/chats.*"}}]
    heldout_per_task: 4
  pairs:
    files: [{{path: "{folder}/pairs.jsonl"}}]
"""


def written(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_stage_reports_what_it_dropped_and_one_that_kept_nothing_fails(cupola: Any, tmp_path: Path) -> None:
    chats = [{"prompt": f"Is {n}?", "completion": "It is."} for n in range(60)]
    pairs = [{"prompt": f"Is {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(6)]
    written(tmp_path / "chats.jsonl", [*chats, {"prompt": "Half \ud83d", "completion": "x"}])
    (tmp_path / "chats.json.gz").write_bytes(b"\x1f\x8b\x08\0 and no more")
    written(tmp_path / "pairs.jsonl", [*pairs, {**pairs[0], "rejected": "Yes."}, {"prompt": "Is it?", "chosen": "x"}])
    recipe = tmp_path / "rows.yaml"
    recipe.write_text(STAGES.format(folder=tmp_path))

    done = cupola("run", str(recipe), "--no-prefect")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    said = " ".join(done.stdout.replace("│", " ").split())
    assert f"conversations: dropped cut_short 1 (first {tmp_path}/chats.json.gz: " in said
    assert f"lone_surrogate 1 (first {tmp_path}/chats.jsonl, line 61: half of a surrogate pair" in said
    assert (
        f"pairs: dropped equal_responses 1 (first {tmp_path}/pairs.jsonl, line 7: both responses are the same), malformed 1"
        in said
    )
    assert "train_conversations 57," in said
    assert "dropped 2: cut_short 1, lone_surrogate 1" in said
    assert "dropped 2: equal_responses 1, malformed 1" in said
    [made] = [row for row in cupola.json("artifacts") if row["stage"] == "conversations"]
    shown = cupola.json("show", made["id"])
    report = json.loads((Path(shown["path"]) / "report.json").read_text())
    assert report["dropped"] == {"cut_short": 1, "lone_surrogate": 1}
    assert set(report["first_dropped"]) == {"cut_short", "lone_surrogate"}
    assert shown["metrics"]["dropped_lone_surrogate"] == 1

    written(tmp_path / "chats.jsonl", [{"messages": [{"role": "narrator", "content": "Once."}]}] * 60)
    failed = cupola("run", str(recipe), "--no-prefect")
    assert failed.returncode == 2
    told = " ".join((failed.stdout + failed.stderr).split())
    assert f"unknown_role 60 (first {tmp_path}/chats.jsonl, line 1: turns of narrator)" in told
    assert "Traceback" not in told


def test_the_summary_of_a_preparation_names_the_steps_that_dropped_documents() -> None:
    tiny = load_recipe("tiny").stages
    metrics = {
        "documents_read": 9.0,
        "bytes_read": 2e6,
        "documents_kept": 6.0,
        "bytes_kept": 1e6,
        "train_tokens": 500.0,
    }
    dropped = {"dropped": 3.0, "dropped_read": 1.0, "dropped_exact_deduplication": 2.0}
    assert summarize(tiny["prepare"], metrics | dropped) == (
        "6 of 9 documents, 1.0 of 2.0 MB, 500 tokens, dropped 3: exact_deduplication 2, read 1"
    )
    assert summarize(tiny["sft"], {"final_heldout_loss": 2.0, "dropped_too_long": 4.0}) == (
        "held-out loss 2.000, dropped 4: too_long 4"
    )
