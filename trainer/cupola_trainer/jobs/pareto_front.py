"""Run a ParetoFrontJob: measure checkpoints' mean reward and KL to a reference."""

import json
from typing import Any

import torch

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.checkpoint.compatibility import check_architecture
from cupola_trainer.config import ParetoFrontJob
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.data.tokenizer_folders import load_tokenizer
from cupola_trainer.objectives.losses.policy_gradient import kl_estimate
from cupola_trainer.reporting.progress import Report
from cupola_trainer.rl.collector import RolloutCollector, RolloutSettings
from cupola_trainer.rl.prompts import Prompt, read_prompts, spread
from cupola_trainer.rl.rewards import check_rewards
from cupola_trainer.rl.rollouts import Rollout


def run(job: ParetoFrontJob) -> None:
    """Write `output/pareto_front.json`.

    Every checkpoint generates `samples_per_prompt` responses to the same prompts, with the same random numbers. The KL
    is the sum of `kl_estimate` over a response's tokens, averaged over responses; it is never negative.

    Raises:
        ConfigError: no held-out prompt is usable, or the checkpoints have different architectures.
        CorruptArtifactError: a checkpoint does not verify.
    """
    model = checkpoint.read_model(job.reference)
    for folder in job.checkpoints.values():
        check_architecture(folder, model, checkpoint.read_model(folder))
    validate_layout(model, job.layout, job.batch, ranks=runtime.world_size())
    runtime.start(job.layout, job.seed)
    tokenizer = load_tokenizer(job.reference / "tokenizer", job.template_date)
    check_rewards(job.data.rewards)
    prompts = _prompts(job, tokenizer)
    chunks = list(models.build(model, job.layout, seed=None, dtype=runtime.dtype(job.precision)))
    settings = RolloutSettings(
        data=job.data,
        parent=job.reference,
        batch=job.batch,
        layout=job.layout,
        seed=job.seed,
        precision=job.precision,
    )
    collector = RolloutCollector(settings, tokenizer, model, chunks, keeps_reference=True, scores_policy=True)
    points = {}
    size, count = parameter_count(model), len(job.checkpoints)
    with Report(job.output, kind="pareto_front", steps=count, parameters=size) as report:
        for number, (name, folder) in enumerate(job.checkpoints.items(), start=1):
            checkpoint.load_weights(folder, chunks)
            points[name] = _point(collector.collect(prompts, 0))
            report.step(number, **points[name])
        runtime.on_first_rank(
            lambda: (job.output / "pareto_front.json").write_text(json.dumps(points, indent=1) + "\n")
        )
        responses = float(len(prompts) * job.data.rollout.samples_per_prompt)
        report.complete(".", {"prompts": float(len(prompts)), "responses": responses})


def _prompts(job: ParetoFrontJob, tokenizer: Any) -> list[Prompt]:
    """The held-out prompts used for every checkpoint."""
    path = job.data.conversations / "heldout.jsonl"
    longest = job.batch.sequence_length - job.data.rollout.max_new_tokens
    prompts = spread(read_prompts(path, tokenizer, longest, job.data.rewards)[0], job.data.rollout.heldout_prompts)
    if not prompts:
        raise ConfigError(f"{path} has no prompt of at most {longest} tokens. Raise batch.sequence_length.")
    return prompts


def _point(rollout: Rollout) -> dict[str, float]:
    """A checkpoint's point in the plot of reward against KL."""
    logps, ref_logps = (torch.from_numpy(rollout.arrays[name]).double() for name in ("logps", "ref_logps"))
    kl = kl_estimate(logps, ref_logps) * torch.from_numpy(rollout.mask)
    return {
        "reward": rollout.metrics["reward"],
        "kl": float(kl.sum(dim=1).mean()),
        "length": rollout.metrics["length"],
    }
