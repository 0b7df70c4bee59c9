"""Tokens per second and MFU of a training step, ours and the peers', each in a process of its own."""

import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import training
import training_worker
from cupola_trainer.training.timing import flops_per_token
from gpu_check import device
from gpu_check.rows import Section, in_one_line
from training_worker import Case

Shape = tuple[int, int, int, int, int, int, int]
CASES: dict[str, Shape] = {  # hidden, layers, heads, ffn, vocabulary, experts, experts of a token
    "1B dense": (2048, 19, 16, 6144, 32_768, 0, 0),
    "1B active of 2B, 8 experts, top 2": (2048, 15, 16, 2048, 32_768, 8, 2),
}
SMALL: dict[str, Shape] = {"4 experts, top 2": (64, 3, 4, 32, 512, 4, 2)}
ROWS = {4096: 4, 32_768: 1}
"""Rows of a step by their length."""
SMALL_ROWS = {64: 2, 256: 1}
PEERS = {"cupola": "cupola", "transformers": "loop", "torch.compile": "loop-compiled"}
"""Names in the table, and in training_worker. Both peers train transformers' model in a plain loop, by autocast over
fp32 weights."""
SECONDS = 6.0
"""Time over which steps are timed."""


def run(section: Section) -> None:
    """Measure each peer on each model at both lengths. Ours must run; a peer that cannot is said to have failed."""
    note = device.peak_note()
    section.measured("peak", {"FLOP/s in bf16": device.peak_flops() or "unknown", "source": note})
    cases, rows = (SMALL, SMALL_ROWS) if section.small else (CASES, ROWS)
    left = len(cases) * len(PEERS)
    end = time.monotonic() + section.seconds
    for model in cases:
        ours: dict[int, float] = {}
        for peer in PEERS:
            share = (end - time.monotonic()) / left
            left -= 1
            if section.small and peer == "torch.compile":
                section.unavailable(
                    f"{model}, {peer}", "the small form compiles nothing: it takes longer than the rest"
                )
                continue
            for length, found in _measure(section, model, peer, list(rows), share).items():
                _write(section, f"{model}, {length:,} tokens, {peer}", peer, found, ours.get(length))
                if peer == "cupola" and "tokens_per_second" in found:
                    ours[length] = found["tokens_per_second"]


def _write(section: Section, name: str, peer: str, found: dict[str, Any], ours: float | None) -> None:
    if "error" in found:
        if peer == "cupola":
            section.failed(name, found["error"])
        else:
            section.unavailable(name, found["error"])
        return
    figures: dict[str, float | str] = {"tokens/s": found["tokens_per_second"]}
    if torch.cuda.is_available():
        figures["GiB"] = found["memory_gib"]
    peak = device.peak_flops()
    if peak:
        figures["MFU"] = found["tokens_per_second"] * found["flops_per_token"] / peak
    if ours and peer != "cupola":
        figures["cupola over it"] = ours / found["tokens_per_second"]
    section.measured(name, figures)


def _measure(section: Section, model: str, peer: str, lengths: list[int], seconds: float) -> dict[int, dict[str, Any]]:
    """What a process of the peer's found for each length; {"error": one line} where it found nothing."""
    with TemporaryDirectory(prefix="gpu-check-speed-") as folder:
        lines = Path(folder) / "lines"
        command = [sys.executable, str(Path(__file__).parent), "peer", model, peer, folder, *map(str, lengths)]
        command += ["--small"] if section.small else []
        environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=max(seconds, 5),
                env={**environment, "MASTER_PORT": "0", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            )  # fmt: skip
            reason = f"exit status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"
        except subprocess.TimeoutExpired:
            reason = f"took longer than {seconds:.0f} s"
        found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        found += [{"error": reason}] * (len(lengths) - len(found))
        return dict(zip(lengths, found, strict=True))


def peer_process(model: str, peer: str, folder: Path, lengths: list[int], small: bool) -> None:
    """The peer's process: writes a line of JSON to `folder/lines` for each length."""
    torch.set_float32_matmul_precision("high")
    shape = (SMALL if small else CASES)[model]
    training.write_shard(folder / "tokens", shape[4])
    for length in lengths:
        try:
            found: dict[str, Any] = _timed(case_of(shape, length, small, folder / str(length)), peer)
        except torch.cuda.OutOfMemoryError:
            found = {"error": "out of memory"}
        except Exception as error:  # noqa: BLE001 - the other length may run
            found = {"error": in_one_line(error)}
        with (folder / "lines").open("a") as file:
            file.write(json.dumps(found) + "\n")
        if "error" in found:
            return  # what it holds cannot be freed here; the rest is said to have failed


def case_of(shape: Shape, length: int, small: bool, folder: Path) -> Case:
    """The model at a length. Experts at 32K compute their layers again in the backward pass, so that they fit."""
    folder.mkdir()
    (folder / "tokens").symlink_to(folder.parent / "tokens")
    rows = (SMALL_ROWS if small else ROWS)[length]
    recompute = bool(shape[5]) and length == max(ROWS)
    return Case(*shape, length, rows, 0.2 if small else SECONDS, folder, recompute=recompute)


def _timed(case: Case, peer: str) -> dict[str, Any]:
    gc.collect()  # the model of the length before
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = dict(training_worker.PEERS[PEERS[peer]](case))
    return {**found, "flops_per_token": flops_per_token(training_worker.cupola_model(case), case.sequence)}


def losses(small: bool, precision: str, folder: Path, steps: int) -> dict[str, Any]:
    """Our losses in the first steps of the dense model in a precision, and seconds of the last one."""
    shape = next(iter((SMALL if small else CASES).values()))
    training.write_shard(folder / "tokens", shape[4])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": "0"}
    case = replace(
        case_of(shape, next(iter(SMALL_ROWS if small else ROWS)), small, folder / "case"), precision=precision
    )
    run = training_worker.cupola_run(case)
    seconds = 0.0
    for _ in range(steps):
        began = time.perf_counter()
        run.step()
        seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (run.job.output / "metrics.jsonl").read_text().splitlines()]
    return {"loss": [line["loss"] for line in lines if line["event"] == "step"], "seconds": seconds}
