"""Seconds of a GRPO step and of a DPO step, ours against TRL's trainers: same weights, prompts, pairs and settings.

    python benchmarks/rl.py [--rounds 3] [--steps 16] [--only grpo,dpo]

One process of two threads each, taking turns. The model is a Qwen2 of 5.6M parameters with random weights, in fp32.
GRPO: 8 prompts of 30 to 90 tokens, 8 responses of 32 tokens to each, one update, with a reference. DPO: 8 pairs of 60 to
190 tokens; our reference log-probabilities are computed once before training, and TRL's too in one of its two cases.
A step's time is the mean over 16, so over all pairs; the best round counts.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
LENGTH, RESPONSE, PROMPTS, SAMPLES, PAIRS = 256, 32, 8, 8, 8
SEED, RATE = 7, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--only", default="grpo,dpo")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(PEERS[options.peer](options.folder, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        alone(["--peer", "prepare", "--folder", folder])
        for method in options.only.split(","):
            compare([peer for peer in PEERS if method in peer], folder, options)


def compare(peers: list[str], folder: str, options: argparse.Namespace) -> None:
    """Print a line for each peer; ours is the first."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(options.rounds):
        for peer in peers:
            wall, processor = alone(["--peer", peer, "--folder", folder, "--steps", str(options.steps)])
            least = best.get(peer, (wall, processor))
            best[peer] = min(wall, least[0]), min(processor, least[1])
    ours = best[peers[0]]
    for peer, (wall, processor) in best.items():
        ratios = f"{wall / ours[0]:.2f} wall, {processor / ours[1]:.2f} CPU"
        print(f"{peer:28} {wall:6.2f} s a step, {processor:6.2f} CPU-s   of ours: {ratios}", flush=True)


def alone(arguments: list[str]) -> Any:
    """What a peer prints in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Clock:
    """The mean wall and processor seconds between two calls, but for the first two."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def tick(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def mean(self) -> tuple[float, float]:
        (wall, processor), (last_wall, last_processor) = self.times[2], self.times[-1]
        steps = len(self.times) - 3
        return (last_wall - wall) / steps, (last_processor - processor) / steps


def prepare(folder: Path, steps: int) -> None:
    """Write a tokenizer, the weights in both formats, prompts and pairs."""
    from cupola_platform.corpus.core.qwen_tokenizer import save_tokenizer
    from cupola_platform.corpus.tokenizer.vocabulary import train_tokenizer
    from cupola_trainer import checkpoint, models, runtime
    from cupola_trainer.config import LayoutConfig, ModelConfig
    from cupola_trainer.conversion.exporting import export

    words = Path(argparse.__file__).read_text(encoding="utf-8").split()
    save_tokenizer(train_tokenizer([" ".join(words)], 4096).to_str(), folder / "tokenizer")
    model = ModelConfig(
        vocab_size=4096, hidden_size=256, num_layers=6, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=704,
        max_position_embeddings=512, rope_theta=10_000.0,
    )  # fmt: skip
    runtime.start(LayoutConfig(), seed=SEED)
    checkpoint.save(
        folder / "ours", models.build(model, LayoutConfig(), seed=SEED), model=model, layout=LayoutConfig(),
        step=0, consumed_samples=0, seed=SEED, objective="next_token", tokenizer=folder / "tokenizer",
    )  # fmt: skip
    runtime.stop()
    export(folder / "ours", folder / "theirs")
    draws = random.Random(SEED)

    def text(least: int, most: int) -> str:
        start = draws.randrange(len(words) - most)
        return " ".join(words[start : start + draws.randint(least, most)])

    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": text(8, 30)}], "task": None,
         "chosen": text(10, 35), "rejected": text(10, 35)}
        for n in range(16 * PROMPTS)
    ]  # fmt: skip
    for split in ("train", "heldout"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def spaces(row: Any, response: str) -> float:
    """The reward: the share of a response that is spaces."""
    return response.count(" ") / max(len(response), 1)


def our_job(folder: Path, steps: int, data: Any, **batch: int) -> tuple[float, float]:
    from cupola_trainer.config import BatchConfig, OptimizerConfig, TrainJob
    from cupola_trainer.training import loop

    output = Path(tempfile.mkdtemp(dir=folder))
    job = TrainJob(
        output=output, seed=SEED, parent=folder / "ours", steps=steps + 3, data=data,
        batch=BatchConfig(sequence_length=LENGTH, **batch),
        optimizer=OptimizerConfig(lr=RATE, min_lr_ratio=1.0),
    )  # fmt: skip
    run, clock = loop.begin(job), Clock()
    run.metrics.open(0)
    for _ in range(steps + 3):
        run.step()
        clock.tick()
    run.close()
    return clock.mean()


def our_grpo(folder: Path, steps: int) -> tuple[float, float]:
    from cupola_trainer.config import GrpoData, PythonReward, RolloutConfig

    rollout = RolloutConfig(prompts=PROMPTS, samples_per_prompt=SAMPLES, max_new_tokens=RESPONSE, heldout_prompts=0)
    data = GrpoData(conversations=folder, rollout=rollout, rewards=(PythonReward(function="rl:spaces"),))
    return our_job(folder, steps, data, micro_batch_size=32, global_batch_size=PROMPTS * SAMPLES)


def our_dpo(folder: Path, steps: int) -> tuple[float, float]:
    from cupola_trainer.config import DpoData

    return our_job(folder, steps, DpoData(preferences=folder), micro_batch_size=PAIRS, global_batch_size=PAIRS)


def their_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def their_settings(folder: Path, steps: int) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(dir=folder), "max_steps": steps + 3, "learning_rate": RATE, "report_to": [],
        "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "logging_steps": 1, "use_cpu": True, "bf16": False,
        "fp16": False, "gradient_checkpointing": False, "save_strategy": "no", "seed": SEED, "disable_tqdm": True,
    }  # fmt: skip


def timed(trainer: Any) -> tuple[float, float]:
    from transformers import TrainerCallback

    clock = Clock()

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.tick()

    trainer.add_callback(Ticks())
    trainer.train()
    return clock.mean()


def their_model(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder / "theirs"), AutoTokenizer.from_pretrained(folder / "theirs")


def their_grpo(folder: Path, steps: int) -> tuple[float, float]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = their_model(folder)
    config = GRPOConfig(
        **their_settings(folder, steps), per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
        max_completion_length=RESPONSE, beta=0.04,
    )  # fmt: skip

    def reward(completions: list[Any], **named: Any) -> list[float]:
        return [spaces(None, completion[0]["content"]) for completion in completions]

    data = Dataset.from_list([{"prompt": row["messages"]} for row in their_rows(folder)])
    return timed(
        GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer)
    )


def their_dpo(folder: Path, steps: int, *, before: bool) -> tuple[float, float]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = their_model(folder)
    config = DPOConfig(
        **their_settings(folder, steps), per_device_train_batch_size=PAIRS, precompute_ref_log_probs=before,
        max_length=LENGTH,
    )  # fmt: skip
    sides = [
        {"prompt": row["messages"]}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in their_rows(folder)
    ]
    data = Dataset.from_list(sides)
    return timed(DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer))


PEERS: dict[str, Callable[[Path, int], Any]] = {
    "prepare": prepare,
    "cupola grpo": our_grpo,
    "trl grpo": their_grpo,
    "cupola dpo": our_dpo,
    "trl dpo": lambda folder, steps: their_dpo(folder, steps, before=False),
    "trl dpo, reference before": lambda folder, steps: their_dpo(folder, steps, before=True),
}


if __name__ == "__main__":
    main()
