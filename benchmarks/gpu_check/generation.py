"""Generated tokens per second against transformers' `generate`, with the same weights and prompts, in turns."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

import rollout
from cupola_trainer import runtime
from gpu_check.networks import draws
from gpu_check.rows import Section

SHAPE = (2048, 19, 16, 6144, 32_768)
"""hidden, layers, heads, ffn, vocabulary: 1B"""
SMALL = (64, 2, 4, 128, 512)
BATCHES, PROMPT, NEW, ROUNDS = (8, 64), 512, 128, 2
SMALL_BATCHES, SMALL_PROMPT, SMALL_NEW, SMALL_ROUNDS = (2,), 8, 8, 1


def run(section: Section) -> None:
    """Sample with both at each batch size; the first turn of each is not timed."""
    shape, batches = (SMALL, SMALL_BATCHES) if section.small else (SHAPE, BATCHES)
    prompt, new = (SMALL_PROMPT, SMALL_NEW) if section.small else (PROMPT, NEW)
    end = time.monotonic() + section.seconds
    with tempfile.TemporaryDirectory(prefix="gpu-check-generation-") as folder:
        ours, theirs = rollout.both_models(shape, prompt + new, Path(folder))
    for batch in batches:
        prompts = [draws(7, row).integers(1, shape[-1], prompt).tolist() for row in range(batch)]
        turns = {
            "cupola": rollout.our_turn(ours, shape[-1], prompts, new),
            "transformers": rollout.their_turn(theirs, prompts, new),
        }
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for number in range((SMALL_ROUNDS if section.small else ROUNDS) + 1):
            for name, turn in turns.items():
                began = time.perf_counter()
                turn(number)
                runtime.synchronize()
                if number:
                    seconds[name].append(time.perf_counter() - began)
            if number and time.monotonic() > end:
                break
        speeds = {f"{name}, tokens/s": batch * new / statistics.median(turns) for name, turns in seconds.items()}
        ratio = speeds["cupola, tokens/s"] / speeds["transformers, tokens/s"]
        section.measured(
            f"batch {batch}, prompts of {prompt} tokens, {new} new", {**speeds, "cupola over transformers": ratio}
        )
    del ours, theirs
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
