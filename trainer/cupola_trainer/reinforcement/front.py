"""A FrontJob: checkpoints in, the reward of their answers and their KL to a reference out."""

import json

import torch

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, runtime
from cupola_trainer.config import FrontJob, TrainJob
from cupola_trainer.data.tokenizer_folders import load_tokenizer
from cupola_trainer.identity import check_architecture
from cupola_trainer.layout import validate_layout
from cupola_trainer.objectives.grpo import kl_estimate
from cupola_trainer.reinforcement.gathering import Gatherer
from cupola_trainer.reinforcement.queries import read_queries, spread
from cupola_trainer.reinforcement.rewards import check_rewards
from cupola_trainer.reporting import Report
from cupola_trainer.sizes import parameter_count


def run(job: FrontJob) -> None:
    """Write `output/front.json`. Every checkpoint answers the same questions `group_size` times with the same noise; the KL is
    the mean over answers of the sum over their tokens of `kl_estimate`, which is never below 0.

    Raises:
        ConfigError: no held-out question can be used, or the checkpoints are of different architectures.
        CorruptArtifactError: a checkpoint does not verify.
    """
    model = checkpoint.read_model(job.reference)
    for folder in job.checkpoints.values():
        check_architecture(folder, model, checkpoint.read_model(folder))
    validate_layout(model, job.parallel, job.batch, ranks=runtime.world_size())
    runtime.start(job.parallel, job.seed)
    training = TrainJob(
        output=job.output, initial=job.reference, steps=1, seed=job.seed, parallel=job.parallel, batch=job.batch,
        data=job.data, precision=job.precision, dry=True, template_date=job.template_date,
    )  # fmt: skip
    tokenizer = load_tokenizer(job.reference / "tokenizer", job.template_date)
    rollout, rewards = job.data.rollout, job.data.rewards
    check_rewards(rewards)
    path = job.data.conversations / "heldout.jsonl"
    longest = job.batch.sequence_length - rollout.max_new_tokens
    queries = spread(read_queries(path, tokenizer, longest, rewards)[0], rollout.heldout_queries)
    if not queries:
        raise ConfigError(f"{path} has no question that can be asked within {longest} tokens. Give longer sequences.")
    chunks = list(models.build(model, job.parallel, seed=None, dtype=runtime.dtype(job.precision)))
    gatherer = Gatherer(training, job.data, tokenizer, model, chunks, keeps_reference=True)
    found = {}
    size, count = parameter_count(model), len(job.checkpoints)
    with Report(job.output, kind="front", steps=count, parameters=size) as report:
        for number, (name, folder) in enumerate(job.checkpoints.items(), start=1):
            checkpoint.load_weights(folder, chunks)
            told = gatherer.gather(queries, 0)
            logps, ref_logps = (torch.from_numpy(told.arrays[name]).double() for name in ("logps", "ref_logps"))
            apart = kl_estimate(logps, ref_logps) * torch.from_numpy(told.mask)
            found[name] = {
                "reward": told.metrics["reward"],
                "kl": float(apart.sum(dim=1).mean()),
                "length": told.metrics["length"],
            }
            report.step(number, **found[name])
        runtime.on_first_rank(lambda: _write(job, found))
        report.complete(".", {"questions": float(len(queries)), "answers": float(len(queries) * rollout.group_size)})


def _write(job: FrontJob, found: dict[str, dict[str, float]]) -> None:
    (job.output / "front.json").write_text(json.dumps(found, indent=1) + "\n")
