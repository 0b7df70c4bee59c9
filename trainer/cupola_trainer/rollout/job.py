"""A SampleJob: prompts.jsonl in, samples.jsonl out."""

import time
from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.conversation import problem
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.json_lines import Row
from cupola_trainer import runtime
from cupola_trainer.config import SampleJob
from cupola_trainer.data.chat import RefusedError, encode_prompt
from cupola_trainer.reporting import Report
from cupola_trainer.rollout.batch import Completion
from cupola_trainer.rollout.generation import generate
from cupola_trainer.rollout.loading import load
from cupola_trainer.rollout.sampling import Sampling
from cupola_trainer.sizes import parameter_count


def run(job: SampleJob) -> None:
    """Answer every prompt `num_samples` times, into `output/samples.jsonl`.

    Rows are {"id", "sample", "answer" (without control tokens), "tokens" (ids, with the stop token), "logprob" (their
    sum under the model), "finished"}, in the order of the prompts. A prompt that the tokenizer or its template refuses has
    empty answers that are not finished, and `refused` says why.

    Raises:
        NotFoundError: there is no such prompts file.
        ConfigError: a line of it is no prompt, none can be asked, one is too long, or the layout does not fit the model.
        CorruptArtifactError: the checkpoint does not verify.
    """
    prompts = read_prompts(job.prompts)
    runtime.start(job.parallel, job.seed)
    loaded = load(job.initial, job.parallel, day=job.template_date)
    sampling = Sampling(
        max_new_tokens=job.max_new_tokens, temperature=job.temperature, top_p=job.top_p, top_k=job.top_k
    )
    encoded = [encode_or_reason(loaded.tokenizer, prompt) for prompt in prompts]
    asked = [tokens for tokens in encoded if isinstance(tokens, list) for _ in range(job.num_samples)]
    if not asked:
        raise ConfigError(f"{job.prompts}: none of its {len(prompts)} prompts can be asked; the first: {encoded[0]}.")
    size = parameter_count(loaded.model)
    with Report(job.output, kind="sample", steps=len(asked), parameters=size) as report:
        began = time.monotonic()
        completions = generate(
            loaded.chunks,
            loaded.tokenizer,
            asked,
            sampling,
            batch_size=job.batch_size,
            seed=job.seed,
            progress=lambda done: report.step(done, prompts_per_second=done / (time.monotonic() - began)),
        )
        answers = _answers(loaded.tokenizer, prompts, encoded, completions, job.num_samples)
        runtime.on_first_rank(lambda: json_lines.write(job.output / "samples.jsonl", answers))
        finished = sum(completion.finished for completion in completions)
        new_tokens = sum(len(completion.tokens) for completion in completions)
        report.complete(
            ".",
            {
                "samples": len(asked),
                "finished": finished / len(asked),
                "mean_tokens": new_tokens / len(asked),
                "seconds": time.monotonic() - began,
            },
        )


def _answers(
    tokenizer: Any, prompts: list[Row], encoded: list[list[int] | str], completions: list[Completion], samples: int
) -> list[Row]:
    """The rows of samples.jsonl."""
    done = iter(completions)
    rows = []
    for prompt, tokens in zip(prompts, encoded, strict=True):
        for sample in range(samples):
            refused = isinstance(tokens, str)
            completion = Completion([], [], False) if refused else next(done)
            row = {
                "id": prompt["id"],
                "sample": sample,
                "answer": tokenizer.decode(completion.tokens, skip_special_tokens=True),
                "tokens": completion.tokens,
                "logprob": sum(completion.logprobs),
                "finished": completion.finished,
            }
            rows.append(row | ({"refused": tokens} if refused else {}))
    return rows


def read_prompts(path: Path) -> list[Row]:
    """The prompts of a file: {"id", "messages"}, with "tools" where there are any, or {"id", "text"}.

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
        reason = problem(
            row["messages"], (), row.get("tools")
        )  # which tokens are control tokens, the tokenizer says later
        return reason in (None, "no_assistant_turn")
    return isinstance(row.get("text"), str) and bool(row["text"])


def encode(tokenizer: Any, prompt: Row) -> list[int]:
    """A prompt's token ids: the template up to the assistant's turn, tools included, or the text as it is.

    Raises:
        as `chat.encode_prompt`.
    """
    if "messages" in prompt:
        return encode_prompt(tokenizer, prompt["messages"], prompt.get("tools"))
    return list(tokenizer.encode(prompt["text"], add_special_tokens=False))


def encode_or_reason(tokenizer: Any, prompt: Row) -> list[int] | str:
    """A prompt's token ids, or why it cannot be asked, in a word."""
    try:
        return encode(tokenizer, prompt)
    except RefusedError as error:
        return error.reason
