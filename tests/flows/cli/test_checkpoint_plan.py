"""`cupola checkpoint plan`: the files of a recipe's checkpoints, without starting a rank."""

import json
from typing import Any


def test_the_plan_of_a_recipe_is_short_and_lists_what_a_rank_writes(cupola: Any) -> None:
    done = cupola("checkpoint", "plan", "tiny", "--layout", "tp=2,dp=4", "--ranks-per-node", "4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "pretrain: 1,240,480 parameters, bf16, tp=2,dp=4"
    assert lines[1] == "  ranks         8 on 2 nodes"
    assert lines[-1] == "  host memory   0.03 GiB a rank, 0.12 GiB a node; checkpoint.host_memory=16 a rank"
    assert len(lines) == 7
    rows = json.loads(cupola("checkpoint", "plan", "tiny", "--rank", "1", "--json").stdout)
    assert {row["part"] for row in rows} == {"state", "optimizer"}
    assert {row["at"] for row in rows if row["key"].startswith("optimizer.")} >= {0}
    assert all(row["dtype"] == ("float32" if row["part"] == "optimizer" else "bfloat16") for row in rows)


def test_a_rank_or_a_layout_that_cannot_be_is_refused(cupola: Any) -> None:
    done = cupola("checkpoint", "plan", "tiny", "--rank", "2")
    assert (done.returncode, done.stderr) == (
        2,
        "cupola: error: --rank 2: the layout has ranks 0 to 1. Give one of them.\n",
    )
    done = cupola("checkpoint", "plan", "tiny", "--layout", "pp=3")
    assert done.returncode == 2
    assert done.stderr.startswith("cupola: error: num_layers=2 is not a multiple of pp=3.")
    done = cupola("checkpoint", "plan", "tiny", "--set", "stages.pretrain.checkpoint.host_memory=0.01")
    assert done.returncode == 2
    assert "host_memory" in done.stderr
    assert done.stderr.count("\n") == 1
