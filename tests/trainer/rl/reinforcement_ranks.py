"""Run by test_layouts.py under torchrun: the same jobs in many layouts, one after another, in one launch.

reinforcement_ranks.py MATERIAL OUTPUT.json     all layouts of this world size
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import (
    BatchConfig,
    GrpoData,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    OnlineDpoData,
    OptimizerConfig,
    PpoData,
    PythonReward,
    RolloutConfig,
    TrainJob,
)
from cupola_trainer.data import batches
from cupola_trainer.generation.batch import Completion
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.training.loop import begin

HERE = Path(__file__).parent
STEPS = 2
DENSE = ModelConfig(
    vocab_size=512, hidden_size=32, num_layers=4, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=64,
    max_position_embeddings=64, init_std=0.1,
)  # fmt: skip
MOE = replace(DENSE, moe=MoEConfig(num_experts=4, expert_ffn_hidden_size=48, aux_loss_coeff=0.05))
LAYOUTS = {
    "grpo dense one process": LayoutConfig(),
    "grpo dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "grpo dense pp2": LayoutConfig(pp=2),
    "grpo dense cp2": LayoutConfig(cp=2),
    "grpo dense dp2": LayoutConfig(dp=2),
    "grpo dense tp2 sp cp2": LayoutConfig(tp=2, sp=True, cp=2),
    "grpo dense pp2 vp2 dp2": LayoutConfig(pp=2, vp=2, dp=2),
    "gspo dense one process": LayoutConfig(),
    "gspo dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "gspo dense cp2": LayoutConfig(cp=2),
    "cispo dense one process": LayoutConfig(),
    "cispo dense cp2": LayoutConfig(cp=2),
    "once dense one process": LayoutConfig(),
    "once dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "once dense pp2": LayoutConfig(pp=2),
    "once dense cp2": LayoutConfig(cp=2),
    "grpo moe one process": LayoutConfig(),
    "grpo moe ep2": LayoutConfig(dp=2, ep=2),
    "grpo moe tp2 sp pp2": LayoutConfig(tp=2, sp=True, pp=2),
    "grpo moe cp2 dp2 ep2": LayoutConfig(cp=2, dp=2, ep=2),
    "ppo dense one process": LayoutConfig(),
    "ppo dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "ppo dense pp2 dp2": LayoutConfig(pp=2, dp=2),
    "ppo dense cp2 tp2": LayoutConfig(cp=2, tp=2),
    "ppo moe one process": LayoutConfig(),
    "ppo moe ep2": LayoutConfig(dp=2, ep=2),
    "online_dpo dense one process": LayoutConfig(),
    "online_dpo dense pp2": LayoutConfig(pp=2),
    "online_dpo dense cp2": LayoutConfig(cp=2),
    "online_dpo dense tp2 sp dp2": LayoutConfig(tp=2, sp=True, dp=2),
}


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"normalization": "token"},
    "once": {"normalization": "token"},  # each rollout is one step
    "gspo": {"ratio": "sequence", "clip_low": 0.01, "clip_high": 0.01, "kl_estimator": "k2"},
    "cispo": {
        "clipping": "weight",
        "normalization": "token",
        "baseline": "leave_one_out",
        "scale_rewards": "rollout",
    },
}


class Recorded:
    """An engine that returns prerecorded responses: random tokens, the same in every layout."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        draws = np.random.default_rng(seed)
        lengths = draws.integers(3, sampling.max_new_tokens + 1, len(prompts))
        return [Completion(draws.integers(3, 400, n).tolist(), [0.0] * int(n), bool(n % 2)) for n in lengths]


def job_of(kind: str, material: Path, policy: Path, layout: LayoutConfig, output: Path) -> TrainJob:
    pairs = kind == "online_dpo"
    shared: dict[str, Any] = {
        "conversations": material / "conversations",
        "rollout": RolloutConfig(
            prompts=8 if pairs else 2 if kind == "once" else 4,
            samples_per_prompt=2 if pairs else 4,
            epochs=1 if kind == "once" else 2,
            max_new_tokens=12,
        ),
        "rewards": (PythonReward(function="toy_rewards:spaces"),),
    }
    data: GrpoData | PpoData | OnlineDpoData = GrpoData(**shared, **VARIANTS.get(kind, {}))
    if kind == "ppo":
        data = PpoData(**shared, value_warmup_steps=1, value_optimizer=OptimizerConfig(lr=1e-3))
    elif pairs:
        data = OnlineDpoData(**shared)
    return TrainJob(
        output=output, parent=policy, steps=STEPS, seed=3, layout=layout, data=data, dry=True,
        batch=BatchConfig(sequence_length=48, micro_batch_size=2, global_batch_size=8),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=1),
    )  # fmt: skip


def trajectory(kind: str, material: Path, policy: Path, layout: LayoutConfig) -> dict[str, Any]:
    """Responses of the initial weights, and the metrics of each step on the recorded responses."""
    folder = [tempfile.mkdtemp() if runtime.rank() == 0 else ""]
    if dist.is_initialized():
        dist.broadcast_object_list(folder, src=0)
    under_way = begin(job_of(kind, material, policy, layout, Path(folder[0])))
    objective: Any = under_way.objective
    prompts = [prompt.tokens for prompt in objective.prompts[:6]]
    sampling = Sampling(max_new_tokens=10, temperature=1.2, top_p=0.9)
    responses = generate(under_way.trainee.chunks, objective.tokenizer, prompts, sampling, batch_size=4, seed=1)
    objective.collector.engine = Recorded()
    logged: list[dict[str, Any]] = []
    under_way.metrics.write = lambda event, **values: logged.append(values) if event == "step" else None  # type: ignore[method-assign]
    for _ in range(STEPS):
        under_way.step()
    return {
        "tokens": [response.tokens for response in responses],
        "logprobs": [sum(response.logprobs) for response in responses],
        "steps": [{name: step[name] for name in NUMBERS if name in step} for step in logged],
    }


NUMBERS = ("loss", "grad_norm", "kl", "policy_kl", "value_loss", "value_grad_norm", "margin", "reference_kl", "entropy",
           "sampler_gap", "sampler_gap_p99", "sampler_gap_quarter4")  # fmt: skip


def policy(kind: str, folder: Path) -> Path:
    """A checkpoint, written by the first call."""
    model = {"dense": DENSE, "moe": MOE}[kind]
    if not (folder / kind).exists():
        runtime.start(LayoutConfig(), seed=0)
        chunks = models.build(model, LayoutConfig(), seed=5)
        checkpoint.save(
            folder / kind, chunks, model=model, layout=LayoutConfig(), step=1, consumed_samples=1, seed=1,
            objective="sft", tokenizer=folder / "tokenizer",
        )  # fmt: skip
    return folder / kind


def main(material: Path, output: Path) -> None:
    sys.path.insert(0, str(HERE))
    batches.ROW_UNIT = 8  # rows are so short that 64 would cut none
    results = {}
    for name, layout in sorted(LAYOUTS.items(), key=lambda item: str(item[1])):  # equal layouts share their groups
        if layout.world_size == runtime.world_size():
            kind, model, *_ = name.split()
            results[name] = trajectory(kind, material, policy(model, material), layout)
    if runtime.rank() == 0:
        output.write_text(json.dumps(results))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
