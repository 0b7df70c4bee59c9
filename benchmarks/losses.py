"""Every loss of DPO's and GRPO's stages on the same small task, from the same weights, with several seeds.

    python benchmarks/losses.py FOLDER [--seeds 7,8,9] [--only grpo,gspo,dpo] [--steps 160]

FOLDER becomes a workspace, and what it has is not computed again. The text is the source of the sympy that
constraints.txt pins and the tasks are reasoning-gym's, so both are the same on every machine. A model that still makes
many errors samples the pairs, and every method starts from it: the offline ones with the pairs of 1,200 prompts, the
online ones with the same prompts. The table has the mean over the seeds and the range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DPO_RATE = 1.0e-4
OFFLINE: dict[str, dict[str, Any]] = {  # the settings of a stage `dpo`
    "DPO": {},
    "APO-zero": {"loss_type": "apo_zero"},
    "APO-down": {"loss_type": "apo_down"},
    "KTO": {"loss_type": "kto"},
    "CPO": {"loss_type": "cpo"},
    "SimPO": {"loss_type": "simpo", "beta": 2.0},
    "ORPO": {"loss_type": "orpo"},
}
ONLINE: dict[str, dict[str, Any]] = {  # of a stage `grpo`, as docs/reinforcement.md lists them
    "GRPO": {},
    "Dr. GRPO": {"normalization": "constant", "scale_rewards": "none", "kl_coef": 0},
    "DAPO": {"normalization": "token", "clip_high": 0.28, "kl_coef": 0, "rollout": {"max_draws": 10}},
    "GSPO": {"ratio": "sequence", "clip_low": 3.0e-4, "clip_high": 4.0e-4},
    "CISPO": {"clipping": "weight", "normalization": "token", "kl_coef": 0},
    "RLOO": {"baseline": "leave_one_out", "scale_rewards": "none"},
    "REINFORCE++": {"scale_rewards": "rollout"},
}
SIBLINGS = {"name": "aiw", "config": {"task_type_weights": [1, 0, 0], "max_entities": 9}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="7,8,9")
    parser.add_argument("--only", default="", help="methods by name, in any case; all by default")
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    chosen = {name.lower() for name in options.only.split(",") if name}
    known = {**OFFLINE, **ONLINE}
    if unknown := chosen - {name.lower() for name in known}:
        parser.error(f"no method {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    methods = [name for name in known if not chosen or name.lower() in chosen]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "losses.yaml"
    path.write_text(json.dumps(recipe(methods, seeds, options.steps), indent=1))  # JSON is YAML
    subprocess.run([cupola(), "run", str(path), "--workspace", str(options.folder), "--no-prefect"], check=True)
    show(results(options.folder), methods, seeds)


def cupola() -> str:
    return str(Path(sys.executable).with_name("cupola"))


def recipe(methods: Iterable[str], seeds: list[int], steps: int) -> dict[str, Any]:
    """The recipe: a stage for each method and seed, and one that evaluates all of them."""
    stages = base_stages()
    trained = [stage_name(method, seed) for method in methods for seed in seeds]
    for method in methods:
        for seed in seeds:
            stages[stage_name(method, seed)] = {"seed": seed, **method_stage(method, steps)}
    stages["evaluate"] = {
        "checkpoints": ["early", *trained],
        "conversations": "prompts",
        "max_heldout_tokens": 16384,
        "window": 128,
        "max_tasks": 400,
        "max_new_tokens": 8,
    }
    return {"name": "losses", "description": "Losses of preference and of RL on one task.", "seed": 7, "stages": stages}


def base_stages() -> dict[str, Any]:
    """The stages before alignment: a small model that makes many errors, prompts, and pairs of its own responses."""
    specification = find_spec("sympy")
    assert specification is not None
    assert specification.origin is not None
    sources = {"sympy": {"type": "files", "path": str(Path(specification.origin).parent), "max_bytes": 6_000_000}}
    training = {
        "layout": {"dp": 2},
        "batch": {"sequence_length": 128, "micro_batch_size": 8, "global_batch_size": 16},
    }
    shape = {
        "hidden_size": 128,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 352,
        "max_position_embeddings": 256,
        "rope_theta": 10000,
    }
    return {
        "prepare": {"corpus": {"sources": sources, "tokenizer": {"vocab_size": 2048, "train_bytes": 2_000_000}}},
        "pretrain": {"model": shape, "optimizer": {"lr": 2.0e-3, "warmup_steps": 20}, "steps": 150, **training},
        "conversations": {"tasks": [{**SIBLINGS, "count": 6000}], "heldout_per_task": 2000},
        "prompts": {"kind": "conversations", "tasks": [{**SIBLINGS, "count": 1600}], "heldout_per_task": 400},
        "early": {
            "kind": "sft",
            "parent": "pretrain",
            "conversations": "conversations",
            "optimizer": {"lr": 1.5e-3, "warmup_steps": 10},
            "steps": 80,
            **training,
        },
        "preferences": {
            "parent": "early",
            "conversations": "prompts",
            "samples_per_prompt": 8,
            "max_prompts": 1200,
            "pairs_per_prompt": 4,
            "max_new_tokens": 8,
            "batch_size": 256,
            "layout": {"dp": 2},
        },
    }


def method_stage(method: str, steps: int) -> dict[str, Any]:
    """A stage that trains by one method; all of a family have the same learning rate, batch and number of steps."""
    if method in OFFLINE:
        return {
            "kind": "dpo",
            "parent": "early",
            "preferences": "preferences",
            "layout": {"dp": 2},
            "optimizer": {"lr": DPO_RATE, "warmup_steps": 5},
            "batch": {"sequence_length": 64, "micro_batch_size": 8, "global_batch_size": 16},
            "steps": steps // 2,
            **OFFLINE[method],
        }
    variant = dict(ONLINE[method])
    return {
        "kind": "grpo",
        "parent": "early",
        "conversations": "prompts",
        "rollout": {"prompts": 64, "samples_per_prompt": 8, "max_new_tokens": 8} | variant.pop("rollout", {}),
        "layout": {"dp": 2},
        "optimizer": {"lr": 5.0e-4, "warmup_steps": 4, "weight_decay": 0.0},
        "batch": {"sequence_length": 128, "micro_batch_size": 32, "global_batch_size": 128},
        "kl_coef": 0.01,
        "steps": steps,
        **variant,
    }


def stage_name(method: str, seed: int) -> str:
    return "".join(c if c.isalnum() else "_" for c in method.lower()).replace("___", "_") + f"_{seed}"


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What the newest evaluation measured of each checkpoint."""
    newest = answer("artifacts", "--kind", "evaluation", "--workspace", str(folder))[0]["id"]
    path = Path(answer("show", newest, "--workspace", str(folder))["path"])
    measured: dict[str, dict[str, Any]] = json.loads((path / "results.json").read_text())["checkpoints"]
    return measured


def answer(*arguments: str) -> Any:
    """What a command of cupola prints as JSON."""
    command = [cupola(), *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def show(measured: dict[str, dict[str, Any]], methods: Iterable[str], seeds: list[int]) -> None:
    """Print the table for BENCHMARKS.md."""
    print(f"| method | right, of {400} held-out prompts | bits per byte of other text |\n|---|---|---|")
    print(f"| before | {row([measured['early']])} |")
    for method in methods:
        print(f"| {method} | {row([measured[stage_name(method, seed)] for seed in seeds])} |")


def row(of_seeds: list[dict[str, Any]]) -> str:
    accuracy = [100 * found["accuracy"]["accuracy"] for found in of_seeds]
    return f"{spread(accuracy, '.1f', '%')} | {spread([found['bits_per_byte'] for found in of_seeds], '.2f')}"


def spread(values: list[float], form: str, unit: str = "") -> str:
    mean = f"{statistics.mean(values):{form}}{unit}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
