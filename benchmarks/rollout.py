"""Generated tokens per second, ours against transformers' `generate`: same weights and prompts, in turns in one
process.

    python benchmarks/rollout.py [--sizes 1m,10m,1m-152k] [--batches 1,8,64] [--prompt 64] [--new 64] [--rounds 5]
    [--ragged]

No token ends a response, so both always make as many. Sampling is plain (temperature 1, nothing cut off); prompts are
random, of one length, or with --ragged of any up to it. Processor seconds are counted as well as wall:
others may use the machine.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES = {  # hidden, layers, heads, ffn, vocabulary
    "1m": (128, 4, 4, 352, 4096),
    "10m": (320, 7, 8, 864, 4096),
    "1m-152k": (128, 4, 4, 352, 152_064),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1m,10m,1m-152k")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ragged", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for size in options.sizes.split(","):
        for batch in map(int, options.batches.split(",")):
            compare(size, batch, options)


def compare(size: str, batch: int, options: argparse.Namespace) -> None:
    """Print one case as one line."""
    draws = torch.Generator().manual_seed(0)
    vocabulary = SIZES[size][-1]
    lengths = [options.prompt] * batch
    if options.ragged:
        lengths = torch.randint(1, options.prompt + 1, (batch,), generator=draws).tolist()
    prompts = [torch.randint(1, vocabulary, (length,), generator=draws).tolist() for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = both_models(SIZES[size], options.prompt + options.new, Path(folder))
    peers = {
        "cupola": our_turn(ours, vocabulary, prompts, options.new),
        "transformers": their_turn(theirs, prompts, options.new),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for number in range(options.rounds + 1):
        for name, turn in peers.items():
            began, spent = time.perf_counter(), time.process_time()
            turn(number)
            if number:  # the first warms up
                seconds[name].append((time.perf_counter() - began, time.process_time() - spent))
    tokens = batch * options.new
    wall = {name: statistics.median(turn[0] for turn in turns) for name, turns in seconds.items()}
    cpu = {name: statistics.median(turn[1] for turn in turns) for name, turns in seconds.items()}
    print(
        f"{size}, batch {batch}: cupola {tokens / wall['cupola']:,.0f} tokens/s, transformers "
        f"{tokens / wall['transformers']:,.0f}; ratio {wall['transformers'] / wall['cupola']:.2f} wall, "
        f"{cpu['transformers'] / cpu['cupola']:.2f} CPU",
        flush=True,
    )


def both_models(shape: tuple[int, ...], positions: int, folder: Path) -> tuple[list[Any], Any]:
    """A Qwen2 with random weights as our model chunks, and the same model exported to transformers."""
    from transformers import AutoModelForCausalLM

    from cupola_trainer import checkpoint, models, runtime
    from cupola_trainer.config import LayoutConfig, ModelConfig
    from cupola_trainer.conversion.exporting import export

    hidden, layers, heads, ffn, vocabulary = shape
    model = ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_layers=layers, num_attention_heads=heads,
        num_query_groups=heads // 2, ffn_hidden_size=ffn, max_position_embeddings=positions,
    )  # fmt: skip
    layout = LayoutConfig()
    runtime.start(layout, seed=0)
    chunks = models.build(model, layout, seed=0)
    checkpoint.save(
        folder / "checkpoint", chunks, model=model, layout=layout, step=0, consumed_samples=0, seed=0,
        objective="next_token", tokenizer=None,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(export(folder / "checkpoint", folder / "hf"), dtype=runtime.dtype())
    return list(chunks), theirs.to(runtime.device()).eval()


def our_turn(chunks: list[Any], vocabulary: int, prompts: list[list[int]], new: int) -> Callable[[int], None]:
    from cupola_trainer.generation.generation import generate
    from cupola_trainer.generation.sampling import Sampling

    def turn(number: int) -> None:
        sampling = Sampling(max_new_tokens=new)
        done = generate(chunks, range(vocabulary), prompts, sampling, stops=(), batch_size=len(prompts), seed=number)
        assert sum(len(completion.tokens) for completion in done) == len(prompts) * new

    return turn


def their_turn(model: Any, prompts: list[list[int]], new: int) -> Callable[[int], None]:
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    model.generation_config.eos_token_id = None

    def turn(number: int) -> None:
        torch.manual_seed(number)
        settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        with torch.no_grad():
            done = model.generate(tokens, attention_mask=mask, max_new_tokens=new, **settings)
        assert done.shape == (len(prompts), width + new)

    return turn


if __name__ == "__main__":
    main()
