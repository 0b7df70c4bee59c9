"""Python responses, run in real sandboxed processes: from files with tests to pairs, with the real command."""

import json
from pathlib import Path
from typing import Any

import pytest

from cupola_trainer.scoring.execution import passed

TESTS = ["assert x > 0", "assert x == 1"]
STAGES = """
  conversations:
    files: [{{path: {folder}/programs.jsonl}}]
    heldout_per_task: 4
  sft:
    optimizer: {{lr: 1.0e-2}}
    batch: {{sequence_length: 64, micro_batch_size: 8, global_batch_size: 8}}
    steps: 60
  preferences:
    scorer: execution
    samples_per_prompt: 6
    max_prompts: 24
    max_new_tokens: 16
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_responses_are_paired_by_the_results_of_their_tests(cupola: Any, recipe: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Program {n}", "completion": f"x = {1 + n % 2}", "tests": TESTS if n % 3 else "\n".join(TESTS)}
        for n in range(80)
    ]
    rows += [{"prompt": "No program", "completion": "x = 1", "tests": [1]}]
    (tmp_path / "programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(recipe.read_text() + STAGES.format(folder=tmp_path))
    done = cupola("run", str(recipe), timeout=500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    ids = {row["stage"]: row["id"] for row in cupola.json("artifacts")}
    made, asked = (Path(cupola.json("show", ids[stage])["path"]) for stage in ("preferences", "conversations"))
    assert json.loads((asked / "report.json").read_text())["dropped"] == {"malformed_tests": 1}
    pairs = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]
    assert pairs
    for pair in pairs:
        assert passed(pair["chosen"], TESTS) == 1 == pair["chosen_score"]
        assert passed(pair["rejected"], TESTS) < 1
        assert pair["synthesis"]["scorer"] == "execution"
    assert any((pair["chosen"], pair["rejected"]) == ("x = 1", "x = 2") for pair in pairs)
