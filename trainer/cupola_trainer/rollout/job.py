"""A SampleJob: prompts.jsonl in, samples.jsonl out."""

import time
from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.json_lines import Row
from cupola_trainer import runtime
from cupola_trainer.config import SampleJob
from cupola_trainer.data.chat import encode_prompt, problem
from cupola_trainer.reporting import Report
from cupola_trainer.rollout.generation import generate
from cupola_trainer.rollout.loading import check_layout, load
from cupola_trainer.rollout.sampling import Sampling
from cupola_trainer.sizes import parameter_count


def run(job: SampleJob) -> None:
    """Answer every prompt `num_samples` times, into `output/samples.jsonl`.

    Rows are {"id", "sample", "answer" (without control tokens), "tokens" (ids, with the stop token), "logprob" (their
    sum under the model), "finished"}, in the order of the prompts.

    Raises:
        NotFoundError: there is no such prompts file.
        ConfigError: a line of it is no prompt, a prompt is too long, or the layout cannot generate.
        CorruptArtifactError: the checkpoint does not verify.
    """
    check_layout(job.parallel)
    prompts = read_prompts(job.prompts)
    runtime.start(job.parallel, job.seed)
    loaded = load(job.initial, job.parallel)
    sampling = Sampling(
        max_new_tokens=job.max_new_tokens, temperature=job.temperature, top_p=job.top_p, top_k=job.top_k
    )
    rows = [(prompt["id"], sample) for prompt in prompts for sample in range(job.num_samples)]
    tokens = [encode(loaded.tokenizer, prompt) for prompt in prompts for _ in range(job.num_samples)]
    size = parameter_count(loaded.model)
    with Report(job.output, kind="sample", steps=len(rows), parameters=size) as report:
        began = time.monotonic()
        completions = generate(
            loaded.chunks,
            loaded.tokenizer,
            tokens,
            sampling,
            batch_size=job.batch_size,
            seed=job.seed,
            progress=lambda done: report.step(done, prompts_per_second=done / (time.monotonic() - began)),
        )
        answers = [
            {
                "id": name,
                "sample": sample,
                "answer": loaded.tokenizer.decode(completion.tokens, skip_special_tokens=True),
                "tokens": completion.tokens,
                "logprob": sum(completion.logprobs),
                "finished": completion.finished,
            }
            for (name, sample), completion in zip(rows, completions, strict=True)
        ]
        runtime.on_first_rank(lambda: json_lines.write(job.output / "samples.jsonl", answers))
        finished = sum(completion.finished for completion in completions)
        new_tokens = sum(len(completion.tokens) for completion in completions)
        report.complete(
            ".",
            {
                "samples": len(rows),
                "finished": finished / len(rows),
                "mean_tokens": new_tokens / len(rows),
                "seconds": time.monotonic() - began,
            },
        )


def read_prompts(path: Path) -> list[Row]:
    """The prompts of a file: {"id", "messages"} or {"id", "text"}; other keys are left alone.

    Raises:
        NotFoundError, ConfigError: names the file, and the line.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no {path} to read prompts from.")
    prompts = []
    for number, row in json_lines.read_numbered(path):
        if not isinstance(row.get("id"), str) or not _is_prompt(row):
            raise ConfigError(f'{path}, line {number} is not a prompt. Give {{"id", "messages"}} or {{"id", "text"}}.')
        prompts.append(row)
    if not prompts:
        raise ConfigError(f"{path} holds no prompts.")
    return prompts


def _is_prompt(row: Row) -> bool:
    if "messages" in row:
        return problem(row["messages"]) in (None, "no_assistant_turn")
    return isinstance(row.get("text"), str) and bool(row["text"])


def encode(tokenizer: Any, prompt: Row) -> list[int]:
    """A prompt's token ids: ChatML up to the assistant's turn, or the text as it is."""
    if "messages" in prompt:
        return encode_prompt(tokenizer, prompt["messages"])
    return list(tokenizer.encode(prompt["text"], add_special_tokens=False))
