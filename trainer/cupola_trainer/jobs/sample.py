"""Run a SampleJob: generate responses to prompts.jsonl and write samples.jsonl."""

import time
from typing import Any

from cupola_platform import json_lines
from cupola_platform.errors import ConfigError
from cupola_platform.json_lines import Row
from cupola_trainer import runtime
from cupola_trainer.config import SampleJob
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.generation.batch import Completion
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.loading import load
from cupola_trainer.generation.prompts import encode_or_reason, read_prompts
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.reporting.progress import Report


def run(job: SampleJob) -> None:
    """Sample `samples_per_prompt` responses to every prompt and write `output/samples.jsonl`.

    Rows are {"id", "sample", "response" (without special tokens), "tokens" (ids, including the stop token), "logprob"
    (their sum under the model), "finished"}, in the order of the prompts. A prompt that the tokenizer or its chat
    template refuses gets empty, unfinished responses with the reason in "refused".

    Raises:
        NotFoundError: the prompts file does not exist.
        ConfigError: a line of it is not a prompt, none is usable, one is too long,
            or the layout does not fit the model.
        CorruptArtifactError: the checkpoint does not verify.
    """
    prompts = read_prompts(job.prompts)
    runtime.start(job.layout, job.seed)
    loaded = load(job.parent, job.layout, day=job.template_date)
    sampling = Sampling(
        max_new_tokens=job.max_new_tokens, temperature=job.temperature, top_p=job.top_p, top_k=job.top_k
    )
    encoded = [encode_or_reason(loaded.tokenizer, prompt) for prompt in prompts]
    repeated = [tokens for tokens in encoded if isinstance(tokens, list) for _ in range(job.samples_per_prompt)]
    if not repeated:
        raise ConfigError(
            f"{job.prompts}: none of its {len(prompts)} prompts is usable; reason for the first: {encoded[0]}."
        )
    size = parameter_count(loaded.model)
    with Report(job.output, kind="sample", steps=len(repeated), parameters=size) as report:
        began = time.monotonic()
        completions = generate(
            loaded.chunks,
            loaded.tokenizer,
            repeated,
            sampling,
            batch_size=job.batch_size,
            seed=job.seed,
            progress=lambda done: report.step(done, prompts_per_second=done / (time.monotonic() - began)),
        )
        responses = _responses(loaded.tokenizer, prompts, encoded, completions, job.samples_per_prompt)
        runtime.on_first_rank(lambda: json_lines.write(job.output / "samples.jsonl", responses))
        finished = sum(completion.finished for completion in completions)
        new_tokens = sum(len(completion.tokens) for completion in completions)
        report.complete(
            ".",
            {
                "samples": len(repeated),
                "finished": finished / len(repeated),
                "mean_tokens": new_tokens / len(repeated),
                "seconds": time.monotonic() - began,
            },
        )


def _responses(
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
                "response": tokenizer.decode(completion.tokens, skip_special_tokens=True),
                "tokens": completion.tokens,
                "logprob": sum(completion.logprobs),
                "finished": completion.finished,
            }
            rows.append(row | ({"refused": tokens} if refused else {}))
    return rows
