"""Losses and gradient norms of every family and objective, against those of fp32 on a CPU in a file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cupola_trainer import optim
from cupola_trainer.config import BatchConfig, DpoData, GrpoData, LayoutConfig, OptimizerConfig, TaskReward
from cupola_trainer.data.batches import Batch, to_rank
from cupola_trainer.forward import outputs
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.batches import training_samples
from cupola_trainer.objectives.dpo import DpoObjective
from cupola_trainer.objectives.sft import SftObjective
from cupola_trainer.rl.grpo import GrpoObjective, collate_rows
from gpu_check.networks import FAMILIES, LENGTH, LONG, build, draws
from gpu_check.rows import Section

STEPS = 2
OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=1)
OBJECTIVES = ("sft", "dpo", "grpo")
TOLERANCES = {
    "fp32": {"loss": 2e-5, "grad_norm": 1e-3},
    "bf16": {"loss": 3e-2, "grad_norm": 5e-2},
}
"""Largest relative difference from the reference. fp32 differs by the order of sums only, which AdamW's first steps
amplify in gradients near zero; bf16 has 8 bits of precision, and a CPU's is up to 0.013 and 0.014 off."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PackedConversations(SftObjective):
    """Several random conversations in a row; about half of the tokens are trained on."""

    def __init__(self, sequence_length: int) -> None:
        self.sequence_length, self.packed = sequence_length, True

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        random = draws(1, index)
        length = self.sequence_length + 1
        segments = 1 + (random.integers(0, length // 4, length) == 0).cumsum()
        first = np.append(True, segments[1:] != segments[:-1])
        trained = (random.integers(0, 2, length) == 1) & ~first
        return {"tokens": random.integers(0, 512, length), "mask": trained, "segments": segments}


class Pairs(DpoObjective):
    """Random pairs of responses to a prompt."""

    def __init__(self, sequence_length: int) -> None:
        self.data, self.sequence_length = DpoData(preferences=Path()), sequence_length

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        random = draws(2, index)
        longest = self.sequence_length // 2
        parts = {
            name: random.integers(0, 512, random.integers(longest // 4, longest))
            for name in ("prompt", "chosen", "rejected")
        }
        return {**parts, "reference": random.integers(-8, 8, 2).astype(np.float32) / 8}


class Responses(GrpoObjective):
    """Random responses in groups, with advantages."""

    def __init__(self, sequence_length: int) -> None:
        self.grpo = GrpoData(conversations=Path(), rewards=(TaskReward(),), kl_coef=0.1)
        self.config, self.sequence_length = self.grpo.rollout, sequence_length

    def width(self, index: int) -> int:
        return self.sequence_length

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        random, length = draws(3, index), self.sequence_length
        place, end = np.arange(length), random.integers(length // 2, length)
        mask = ((place >= length // 4) & (place < end)).astype(np.float32)
        share = mask / np.float32(mask.sum())
        return {
            "tokens": random.integers(0, 512, length + 1), "loss_mask": mask, "shares": share, "weights": share,
            "advantages": mask * np.float32(random.integers(-4, 5) / 2), "quarters": mask, "old_logps": 0 * mask,
            "sampling_logps": 0 * mask,
            "ref_logps": mask * (random.integers(-4, 5, length) / 16).astype(np.float32),
        }  # fmt: skip

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        return collate_rows(samples)


KINDS: dict[str, type[PackedConversations] | type[Pairs] | type[Responses]] = {
    "sft": PackedConversations,
    "dpo": Pairs,
    "grpo": Responses,
}


def run(section: Section) -> None:
    """Compare each case in fp32 and bf16, and the weights by their digest. The small form compares fp32 only, and DPO
    and GRPO of the dense model only."""
    reference = json.loads(section.reference.read_text())
    for name, wanted in reference["cases"].items():
        family, kind = name.split()
        if section.small and family != "qwen2" and kind != "sft":
            continue
        for precision in ("fp32",) if section.small else DTYPES:
            section.attempt(f"{name} {precision}", lambda: _compare(section, name, precision, wanted, reference))  # noqa: B023


def _compare(section: Section, name: str, precision: str, wanted: Any, reference: Any) -> None:
    family, kind = name.split()
    found, drawn = trajectory(family, kind, precision)
    if drawn != reference["weights"][family]:
        section.failed(
            f"{name} {precision}", f"the weights are {drawn}, and the reference's {reference['weights'][family]}"
        )
        return
    allowed = TOLERANCES[precision]
    worst = {
        figure: max(
            abs(ours - theirs) / abs(theirs) for ours, theirs in zip(found[figure], wanted[figure], strict=True)
        )
        for figure in allowed
    }
    section.judged(
        f"{name} {precision}",
        all(worst[figure] <= allowed[figure] for figure in allowed),
        {
            "loss": found["loss"][-1],
            "gradient norm": found["grad_norm"][-1],
            **{f"largest relative difference of {figure}": value for figure, value in worst.items()},
        },
        f"of the reference's loss within {allowed['loss']:g}, gradient norm within {allowed['grad_norm']:g}",
        f"the reference has loss {wanted['loss'][-1]:.6g}, gradient norm {wanted['grad_norm'][-1]:.6g} in the last step",
    )


def trajectory(family: str, kind: str, precision: str) -> tuple[dict[str, list[float]], str]:
    """Loss and gradient norm of each step, and the digest of the initial weights."""
    length = LONG if family == "dual-chunk" else LENGTH
    batch = BatchConfig(sequence_length=length, micro_batch_size=2, global_batch_size=4)
    chunk, drawn = build(FAMILIES[family], DTYPES[precision])
    trainee = optim.build([chunk], LayoutConfig(), OPTIMIZER, STEPS + 1)
    objective = KINDS[kind](length)
    steps = [list(_batches(objective, batch, step, trainee.chunks)) for step in range(STEPS)]
    found: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for batches in steps:
        found["loss"].append(passes.train(trainee.chunks, objective, batches)["loss"])
        trainee.scheduler.step(increment=1)
        found["grad_norm"].append(trainee.update()[0])
        if FAMILIES[family].moe:
            passes.aux_losses(FAMILIES[family], len(batches))  # or the next case would find this one's
    return found, drawn


def _batches(objective: Objective, config: BatchConfig, step: int, chunks: list[Any]) -> Iterator[Batch]:
    """Micro-batches of a step, whose references are the initial model's, moved by what the sample says."""
    for micro in training_samples(objective, config, step * config.global_batch_size):
        batch = objective.collate([objective.sample(index) for index in micro])
        if objective.name != "sft":
            logps = -outputs.token_losses(chunks, batch).cpu() * batch["loss_mask"]
            for name, own in (
                ("reference_logps", logps.sum(dim=1)),
                ("old_logps", logps),
                ("ref_logps", logps),
            ):
                if name in batch:
                    batch[name] = batch[name] + own
        yield to_rank(batch)


def write_reference(path: Path) -> None:
    """Compute every case in fp32 on this machine's CPU and write them to a file."""
    cases, drawn = {}, {}
    for family in FAMILIES:
        for kind in OBJECTIVES:
            cases[f"{family} {kind}"], drawn[family] = trajectory(family, kind, "fp32")
    made_by = {"torch": torch.__version__.split("+")[0], "device": "cpu", "precision": "fp32", "steps": STEPS}
    path.write_text(json.dumps({"made_by": made_by, "weights": drawn, "cases": cases}, indent=1) + "\n")
