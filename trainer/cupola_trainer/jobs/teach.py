"""Run a TeachJob: store a teacher's top-k log-probabilities for every token of a later training run."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import TeachJob
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.data.batches import to_rank
from cupola_trainer.data.teachings import digest
from cupola_trainer.forward.schedule import forward
from cupola_trainer.generation.loading import check_whole, load
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.objectives.losses.distillation import vocabulary_topk
from cupola_trainer.reporting.progress import Report
from cupola_trainer.training.objective_table import build_objective


def run(job: TeachJob) -> None:
    """Write `output/teacher/`: see `data.teachings`.

    Raises:
        ConfigError: the layout has pipeline or context parallelism, the data are unusable,
            or the teacher has no language-model head.
        CorruptArtifactError: the teacher's checkpoint does not verify.
    """
    check_whole(job.layout, "A stored teacher")
    runtime.start(job.layout, job.seed)
    loaded = load(job.parent, job.layout)
    if job.top_k > loaded.model.vocab_size:
        raise ConfigError(f"top_k={job.top_k} exceeds the vocabulary size {loaded.model.vocab_size}. Lower it.")
    text = build_objective(
        ObjectiveInputs(
            name=job.data.objective,
            data=job.data,
            batch=job.batch,
            steps=job.steps,
            seed=job.seed,
            output=job.output,
            tokenizer=job.parent / "tokenizer",
            template_date=job.template_date,
        )
    )
    samples = list(_samples(text, job))
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    size = job.batch.micro_batch_size
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    folder = job.output / "teacher"
    runtime.on_first_rank(lambda: _empty(folder))
    tokens, logprobs, digests = [], [], []
    with Report(job.output, kind="teach", steps=len(samples), parameters=parameter_count(loaded.model)) as report:
        for place in range(
            rank, -(-len(batches) // ranks) * ranks, ranks
        ):  # the same number of passes on every rank, because expert parallelism needs all of them
            batch = to_rank(text.collate(batches[min(place, len(batches) - 1)]))
            likeliest = _top_k(loaded.chunks[0], batch, job)
            tokens.append(likeliest[0])
            logprobs.append(likeliest[1])
            digests += [digest(row) for row in batch["tokens"].cpu().numpy()]
            report.step(min(len(samples), (place + 1) * size))
        _write(folder, job, rank, tokens, logprobs, digests)
        report.complete("teacher", {"samples": float(len(samples)), "top_k": float(job.top_k)})


@torch.no_grad()  # type: ignore[untyped-decorator]
def _top_k(model: torch.nn.Module, batch: Mapping[str, torch.Tensor], job: TeachJob) -> tuple[np.ndarray, np.ndarray]:
    """The most likely tokens and their log-probabilities [b, s, k]."""
    logits = forward(dict(batch), model, "logits")
    group = parallel_state.get_tensor_model_parallel_group()
    logprobs, tokens = vocabulary_topk(logits / job.temperature, job.top_k, group)
    return tokens.int().cpu().numpy(), logprobs.cpu().numpy()


def _samples(text: Objective, job: TeachJob) -> Iterator[Mapping[str, np.ndarray]]:
    """The samples that training will read, each once, then the held-out samples it may read."""
    seen: set[str] = set()
    for index in range(job.steps * job.batch.global_batch_size):
        sample = text.sample(index)
        name = digest(sample["tokens"])
        if name not in seen:
            seen.add(name)
            yield sample
    for index in range(job.evaluate_batches * job.batch.global_batch_size):
        heldout = text.heldout(index)
        if heldout is None:
            return
        yield heldout


def _empty(folder: Path) -> None:
    """Remove files left by a killed job, which may have had more ranks."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write(
    folder: Path, job: TeachJob, rank: int, tokens: list[np.ndarray], logprobs: list[np.ndarray], digests: list[str]
) -> None:
    ranks: list[tuple[int, list[str]]] = [(0, [])] * dist.get_world_size()
    dist.all_gather_object(ranks, (rank, digests))
    if parallel_state.get_tensor_model_parallel_rank() == 0:
        np.save(folder / f"tokens-{rank}.npy", np.concatenate(tokens))
        np.save(folder / f"logprobs-{rank}.npy", np.concatenate(logprobs))
    if runtime.rank() == 0:
        places = {name: [part, row] for part, names in ranks for row, name in enumerate(names)}
        index = {"temperature": job.temperature, "k": job.top_k, "samples": places}
        (folder / "index.json").write_text(json.dumps(index))
    dist.barrier()
