"""Run an EvaluateJob: evaluate several checkpoints and write results.json."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from cupola_platform import artifacts
from cupola_platform.durable import write_text
from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint import read_model
from cupola_trainer.config import EvaluateJob
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.evaluation import likelihood, long_context, responses
from cupola_trainer.evaluation.likelihood import Heldout
from cupola_trainer.evaluation.responses import TaskPrompt
from cupola_trainer.generation.loading import Loaded, check_whole, load
from cupola_trainer.reporting.progress import Report

GENERATION_TOKENS = 48
"""Length of the sample continuations, in tokens."""


def run(job: EvaluateJob) -> None:
    """Evaluate every checkpoint and write `output/results.json`.

    Raises:
        ConfigError: there are no checkpoints, one has a different tokenizer from the held-out tokens,
            or the layout does not fit a model or `long_context`.
        CorruptArtifactError: a checkpoint does not verify.
    """
    if job.long_context:
        check_whole(job.layout, "long_context")
    if not job.checkpoints:
        raise ConfigError("checkpoints is empty: nothing to evaluate. Give at least one.")
    runtime.start(job.layout, job.seed)
    largest = max(parameter_count(read_model(folder)) for folder in job.checkpoints.values())
    tokenizer = AutoTokenizer.from_pretrained(job.tokens / "tokenizer")
    heldout = likelihood.read_heldout(job.tokens, tokenizer, job.max_heldout_tokens)
    prompts = responses.read_task_prompts(job.conversations, job.max_tasks) if job.conversations else []
    began = time.monotonic()
    with Report(job.output, kind="evaluate", steps=len(job.checkpoints), parameters=largest) as report:
        results: dict[str, Any] = {
            "unigram_bits_per_byte": likelihood.unigram_bits_per_byte(job.tokens, heldout, len(tokenizer)),
            "checkpoints": {},
        }
        for number, (name, folder) in enumerate(job.checkpoints.items(), start=1):
            results["checkpoints"][name] = measured = _measure(job, folder, tokenizer, heldout, prompts)
            report.step(number, checkpoint=name, **headline(measured))
        runtime.on_first_rank(lambda: _write(job.output / "results.json", results))
        report.complete(".", _metrics(results) | {"seconds": time.monotonic() - began})


def _measure(
    job: EvaluateJob, folder: Path, tokenizer: Any, heldout: Heldout, prompts: list[TaskPrompt]
) -> dict[str, Any]:
    loaded = load(folder, job.layout, day=job.template_date)
    _check_tokenizer(folder, loaded, tokenizer)
    window = _window(job, folder, loaded.model.max_position_embeddings)
    end = tokenizer.convert_tokens_to_ids(likelihood.END_OF_DOCUMENT)
    fit = likelihood.likelihood(loaded.chunks, heldout, window=window, end=end)
    texts = responses.respond(loaded, prompts, job.max_new_tokens)
    generations = responses.continue_texts(loaded, job.sample_prompts, GENERATION_TOKENS)
    scored = runtime.on_first_rank(lambda: responses.accuracies(prompts, texts))
    return {
        "digest": artifacts.read(folder).digest,
        "bits_per_byte": fit.bits_per_byte,
        "heldout_loss": fit.loss,
        "heldout_tokens": fit.tokens,
        **scored,
        "generations": generations,
        **({"long_context": _long_context(job, folder, heldout)} if job.long_context else {}),
    }


def _window(job: EvaluateJob, folder: Path, longest: int) -> int:
    if job.window and job.window > longest:
        raise ConfigError(
            f"window={job.window} exceeds max_position_embeddings={longest} of {folder}. "
            f"Use window={longest}, or leave it unset."
        )
    return job.window or longest


def _long_context(job: EvaluateJob, folder: Path, heldout: Heldout) -> dict[str, Any]:
    assert job.long_context is not None
    return long_context.measure(folder, job.layout, heldout.stream(), job.long_context, seed=job.seed)


def _check_tokenizer(folder: Path, loaded: Loaded, tokenizer: Any) -> None:
    if loaded.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{folder} has a different tokenizer from the held-out tokens. Evaluate it on tokens made with its own."
        )


def headline(measured: dict[str, Any]) -> dict[str, float]:
    """A checkpoint's main metrics, as shown in progress lines."""
    numbers = {"bits_per_byte": measured["bits_per_byte"], "heldout_loss": measured["heldout_loss"]}
    if measured["accuracy"]:
        numbers["accuracy"] = measured["accuracy"]["accuracy"]
    return numbers


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    metrics = {"unigram_bits_per_byte": results["unigram_bits_per_byte"]}
    for name, measured in results["checkpoints"].items():
        metrics |= {f"{key}/{name}": value for key, value in headline(measured).items()}
    return metrics


def _write(path: Path, results: dict[str, Any]) -> None:
    write_text(path, json.dumps(results, indent=2, ensure_ascii=False))
