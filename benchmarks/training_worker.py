"""One peer of `benchmarks/training.py` in its own processes: rank 0 prints the speed as one line of JSON.

    torchrun --nproc-per-node N benchmarks/training_worker.py PEER HIDDEN LAYERS HEADS FFN VOCAB EXPERTS TOP_K SEQUENCE
    ROWS SECONDS FOLDER

Every peer trains the same Qwen2 (Qwen2-MoE if there are experts) from random weights on the same shards: fp32, AdamW, clipping to norm 1, `ROWS`
sequences per step over all processes. Loading and the first steps are not timed.
"""

import contextlib
import json
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
WARM_UP = 3
PRODUCTS = "mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"


@dataclass(frozen=True)
class Case:
    """The model and batch to train."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    """Of an expert, if there are any; the shared expert is twice as wide."""
    vocab: int
    experts: int
    top_k: int
    sequence: int
    rows: int
    seconds: float
    folder: Path
    recompute: bool = False
    """Whether layers are computed again in the backward pass, to save memory."""
    precision: str = "auto"
    """bf16 on a GPU, fp32 on a CPU: ours as `precision`, the others by autocast over fp32 weights."""


def main() -> None:
    peer, *numbers, seconds, folder = sys.argv[1:]
    hidden, layers, heads, ffn, vocab, experts, top_k, sequence, rows = map(int, numbers)
    case = Case(hidden, layers, heads, ffn, vocab, experts, top_k, sequence, rows, float(seconds), Path(folder))
    measured = PEERS[peer](case)
    if os.environ["RANK"] == "0":
        print(json.dumps({"peer": peer, **measured}), flush=True)


Step = Callable[[int], None]
"""Trains one step, counted from 0."""


class Clock:
    """Counts steps after the warm-up until the time is up, then gives tokens per second of wall and of CPU time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.steps = 0
        self.total = 0

    def tick(self) -> bool:
        """Call after each step. True once enough steps are timed, after the same number on all processes."""
        now, cpu = time.perf_counter(), time.process_time()
        self.steps += 1
        if self.steps == WARM_UP:
            self.wall, self.cpu = now, cpu
        if self.steps == WARM_UP + 2:
            self.total = self.steps + agreed(max(3, round(self.case.seconds / ((now - self.wall) / 2))))
        self.last, self.last_cpu = now, cpu
        return self.total > 0 and self.steps >= self.total

    def result(self) -> dict[str, float]:
        tokens = (self.total - WARM_UP) * self.case.rows * self.case.sequence
        return {
            "tokens_per_second": tokens / (self.last - self.wall),
            "tokens_per_cpu_second": tokens / summed(self.last_cpu - self.cpu),
            "memory_gib": summed(_peak_memory() / 2**30),
        }


def _peak_memory() -> int:
    """Bytes: allocated on the GPU, or resident on the host."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(case: Case, step: Step) -> dict[str, float]:
    clock = Clock(case)
    while True:
        step(clock.steps)
        if clock.tick():
            return clock.result()


def agreed(number: int) -> int:
    """Rank 0's number, on all ranks."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return number
    shared = torch.tensor([number], device=_device())
    dist.broadcast(shared, 0)
    return int(shared)


def summed(value: float) -> float:
    """The sum over all processes."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    total = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.all_reduce(total)
    return float(total)


def cupola(case: Case, tensor_parallel: bool = False) -> dict[str, float]:
    """Our own loop."""
    return timed(case, cupola_step(case, tensor_parallel))


def cupola_step(case: Case, tensor_parallel: bool = False) -> Step:
    """A function that does everything a job does in a step."""
    from cupola_trainer import runtime

    run = cupola_run(case, tensor_parallel)

    def step(number: int) -> None:
        runtime.any_rank(False)  # as the loop checks whether a rank was asked to end
        run.step()

    return step


def cupola_run(case: Case, tensor_parallel: bool = False) -> Any:
    """A job before its first step, whose lines go to `metrics.jsonl` in a folder of `case.folder`."""
    from cupola_trainer.config import (
        BatchConfig,
        LayoutConfig,
        NextTokenData,
        OptimizerConfig,
        TrainJob,
    )
    from cupola_trainer.training import loop

    ranks = int(os.environ["WORLD_SIZE"])
    layout = LayoutConfig(
        tp=ranks if tensor_parallel else 1,
        dp=1 if tensor_parallel else ranks,
        recompute="full" if case.recompute else "none",
    )
    job = TrainJob(
        output=case.folder / f"job-{os.environ['MASTER_PORT']}",
        model=cupola_model(case),
        steps=10_000,
        layout=layout,
        optimizer=OptimizerConfig(lr=1e-4),
        batch=BatchConfig(
            sequence_length=case.sequence,
            micro_batch_size=case.rows // layout.dp,
            global_batch_size=case.rows,
        ),
        precision=case.precision,
        data=NextTokenData(tokens=case.folder / "tokens"),
    )
    job.output.mkdir(exist_ok=True)
    run = loop.begin(job)
    run.metrics.open(0)
    return run


def cupola_model(case: Case) -> Any:
    """Our configuration of the model."""
    from cupola_trainer.config import ModelConfig, MoEConfig

    return ModelConfig(
        hidden_size=case.hidden,
        num_layers=case.layers,
        num_attention_heads=case.heads,
        num_query_groups=case.heads // 2,
        ffn_hidden_size=case.ffn,
        vocab_size=case.vocab,
        max_position_embeddings=case.sequence,
        moe=MoEConfig(
            num_experts=case.experts,
            top_k=case.top_k,
            expert_ffn_hidden_size=case.ffn,
            shared_expert_ffn_hidden_size=2 * case.ffn,
        )
        if case.experts
        else None,
    )


def _transformers_model(case: Case) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["WORLD_SIZE"])))
    torch.manual_seed(0)
    shape = {
        "hidden_size": case.hidden,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.heads // 2,
        "intermediate_size": case.ffn,
        "vocab_size": case.vocab,
        "max_position_embeddings": case.sequence,
        "tie_word_embeddings": True,
    }
    if not case.experts:
        with _device():  # a GPU draws a billion weights at once
            return Qwen2ForCausalLM(Qwen2Config(**shape))
    experts = {
        "num_experts": case.experts,
        "num_experts_per_tok": case.top_k,
        "moe_intermediate_size": case.ffn,
        "shared_expert_intermediate_size": 2 * case.ffn,
        "decoder_sparse_step": 1,
        "output_router_logits": True,  # adds the balancing loss, as ours does
    }
    with _device():
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape, **experts))


def _stream(case: Case) -> Any:
    """The shard as one array of token ids."""
    import numpy as np

    return np.memmap(case.folder / "tokens/shards/train-text.bin", dtype=np.int32)


def bare_loop(case: Case, compiled: bool = False) -> dict[str, float]:
    """The shortest equivalent loop with transformers' model."""
    return timed(case, loop_step(case, compiled))


def loop_step(case: Case, compiled: bool = False) -> Step:
    import torch
    import torch.distributed as dist

    device = _device()
    model = _transformers_model(case)
    if case.recompute:
        model.gradient_checkpointing_enable()
    in_bf16 = case.precision == "bf16" or (case.precision == "auto" and device.type == "cuda")
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if ranks > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    if compiled:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = _stream(case)
    share = case.rows // ranks

    def step(number: int) -> None:
        start = (number * case.rows + rank * share) * case.sequence % (len(tokens) - case.rows * case.sequence)
        ids = torch.from_numpy(tokens[start : start + share * case.sequence].astype("int64")).view(share, -1)
        ids = ids.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def by_turns(case: Case) -> dict[str, float]:
    """Ours and the bare loop in one process, in alternating steps, so that other load affects both."""
    steps = {"cupola": cupola_step(case), "loop": loop_step(case)}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    walls: list[float] = []  # of the loop
    end = time.perf_counter() + case.seconds
    number = 0
    while number < WARM_UP + 3 or time.perf_counter() < end:
        for name, step in steps.items():
            start, began = time.process_time(), time.perf_counter()
            step(number)
            spent[name].append(time.process_time() - start)
        walls.append(time.perf_counter() - began)
        number += 1
    kept = {name: times[WARM_UP:] for name, times in spent.items()}
    ratios = [theirs / ours for ours, theirs in zip(kept["cupola"], kept["loop"], strict=True)]
    least = {f"{name}_cpu_seconds_a_step": min(times) for name, times in kept.items()}
    return {
        **least,
        "ratio": statistics.median(ratios),
        "ratio_of_least": min(kept["loop"]) / min(kept["cupola"]),
        "highest_ratio": min(walls[WARM_UP:]) / min(products_seconds(steps["cupola"], number + i) for i in range(5)),
    }


def products_seconds(step: Step, number: int) -> float:
    """Seconds of a step's matrix products, which no implementation of the same arithmetic can save."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(number)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}  # microseconds
    return float(sum(times.get(f"aten::{name}", 0.0) for name in PRODUCTS)) / 1e6


def trainer(case: Case) -> dict[str, float]:
    """Hugging Face Trainer with its defaults, logging each step as we do."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    tokens, clock, ranks = _stream(case), Clock(case), int(os.environ["WORLD_SIZE"])

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(tokens) // case.sequence

        def __getitem__(self, i: int) -> dict[str, Any]:
            ids = torch.from_numpy(tokens[i * case.sequence : (i + 1) * case.sequence].astype("int64"))
            return {"input_ids": ids, "labels": ids}

    class Timer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            control.should_training_stop = clock.tick()

    arguments = TrainingArguments(
        output_dir=str(case.folder / "trainer"),
        per_device_train_batch_size=case.rows // ranks,
        max_steps=10_000,
        learning_rate=1e-4,
        max_grad_norm=1.0,
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        ddp_backend="gloo" if ranks > 1 else None,
    )
    model = _transformers_model(case)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # hides its log lines
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Timer()]).train()
    return clock.result()


PEERS: dict[str, Callable[[Case], dict[str, float]]] = {
    "cupola": cupola,
    "cupola-tp": lambda case: cupola(case, tensor_parallel=True),
    "loop": bare_loop,
    "loop-compiled": lambda case: bare_loop(case, compiled=True),
    "trainer": trainer,
    "by-turns": by_turns,
}

if __name__ == "__main__":
    main()
