"""Generation equals transformers' token by token, whatever the batch and the layout."""

import json
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig, SampleJob, write_job
from cupola_trainer.conversion.exporting import export
from cupola_trainer.data.chat import encode_prompt
from cupola_trainer.data.tokenizer_folders import stop_ids
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.loading import Loaded, load
from cupola_trainer.generation.sampling import Sampling, choose, uniforms
from cupola_trainer.jobs.sample import run
from cupola_trainer.reporting.metrics import read_metrics

NAMES = ["dense", "moe", "moe_normalized", "moe_alone", "windows", "llama", "yarn", "dynamic", "gemma2", "qwen3",
         "qwen3_moe", "mistral", "mixtral", "phi3", "gemma", "gemma3", "olmo2"]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(saved: Path) -> Iterator[dict[str, Loaded]]:
    runtime.start(LayoutConfig(), seed=0)
    yield {name: load(saved / name, LayoutConfig()) for name in NAMES}
    runtime.stop()


def random_prompts(count: int, longest: int = 60) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, 500, (length,), generator=generator).tolist() for length in lengths]


def stopping_model(loaded: Loaded) -> Loaded:
    """The same model with <|im_end|> made likely, so that responses have different lengths."""
    [model] = loaded.chunks
    weight = model.embedding.word_embeddings.weight
    weight.data[stop_ids(loaded.tokenizer)[0]] *= 3
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_greedy_responses_equal_transformers(saved: Path, loaded: dict[str, Loaded], name: str, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(export(saved / name, tmp_path / "hf")).eval()
    ours, prompts = loaded[name], random_prompts(12)
    stops = stop_ids(ours.tokenizer)
    greedy = Sampling(max_new_tokens=30, temperature=0.0)
    for prompt, completion in zip(
        prompts, generate(ours.chunks, ours.tokenizer, prompts, greedy, batch_size=5), strict=True
    ):
        expected = deepcopy(theirs).generate(  # a copy, because dynamic RoPE remembers the longest sequence
            torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
        assert completion.tokens == expected[0, len(prompt) :].tolist()
        assert completion.finished == (completion.tokens[-1] in stops)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_logprobs_of_samples_equal_those_of_a_training_forward_pass(loaded: dict[str, Loaded], name: str) -> None:
    [model], tokenizer, prompts = loaded[name].chunks, loaded[name].tokenizer, random_prompts(10)
    hot = Sampling(max_new_tokens=20, temperature=1.3, top_k=50, top_p=0.9)
    for prompt, completion in zip(prompts, generate([model], tokenizer, prompts, hot, batch_size=4), strict=True):
        whole = torch.tensor([prompt + completion.tokens])
        with torch.no_grad():
            positions = torch.arange(whole.size(1) - 1)[None]
            losses = model(whole[:, :-1], positions, None, labels=whole[:, 1:])
        expected = -losses[0, len(prompt) - 1 :]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_samples_depend_on_seed_and_prompt_but_not_on_the_batch(loaded: dict[str, Loaded], name: str) -> None:
    ours = loaded[name]
    prompts = [prompt for prompt in random_prompts(6) for _ in range(3)]

    def sampled(batch_size: int, seed: int) -> list[list[int]]:
        sampling = Sampling(max_new_tokens=16)
        completions = generate(ours.chunks, ours.tokenizer, prompts, sampling, batch_size=batch_size, seed=seed)
        return [completion.tokens for completion in completions]

    together = sampled(batch_size=18, seed=1)
    assert sampled(batch_size=1, seed=1) == sampled(batch_size=7, seed=1) == together
    assert sampled(batch_size=18, seed=2) != together
    assert together[0] != together[1]


def test_finished_rows_leave_the_batch_and_the_others_continue(saved: Path, loaded: dict[str, Loaded]) -> None:
    ours = stopping_model(load(saved / "dense", LayoutConfig()))
    prompts, sampling = random_prompts(24), Sampling(max_new_tokens=40)
    completions = generate(ours.chunks, ours.tokenizer, prompts, sampling, batch_size=24)
    alone = [
        generate(ours.chunks, ours.tokenizer, [prompt], Sampling(max_new_tokens=40, temperature=0))[0]
        for prompt in prompts[:4]
    ]
    batched = generate(ours.chunks, ours.tokenizer, prompts[:4], Sampling(max_new_tokens=40, temperature=0))
    assert [completion.tokens for completion in alone] == [completion.tokens for completion in batched]
    assert len({len(completion.tokens) for completion in completions}) > 5
    for completion in completions:
        ended = [token in stop_ids(ours.tokenizer) for token in completion.tokens]
        assert not any(ended[:-1])
        assert completion.finished == ended[-1]
        assert completion.finished or len(completion.tokens) == 40
        assert len(completion.logprobs) == len(completion.tokens)


def test_a_response_stops_at_the_models_longest_sequence(loaded: dict[str, Loaded]) -> None:
    ours = loaded["dense"]
    [long, short] = generate(
        ours.chunks, ours.tokenizer, [[5] * 120, [5, 6]], Sampling(max_new_tokens=20, temperature=0)
    )
    assert len(long.tokens) == 8
    assert not long.finished
    assert len(short.tokens) == 20


@pytest.mark.parametrize("prompt", [[], [5] * 128])
def test_a_prompt_without_room_for_a_response_is_refused(loaded: dict[str, Loaded], prompt: list[int]) -> None:
    with pytest.raises(ConfigError, match=rf"Prompt 1 has {len(prompt)} tokens"):
        generate(loaded["dense"].chunks, loaded["dense"].tokenizer, [[5], prompt], Sampling())


def test_training_attention_is_restored_after_generation(loaded: dict[str, Loaded]) -> None:
    [model] = loaded["moe"].chunks
    before = [layer.self_attention.core_attention for layer in model.decoder.layers]
    model.train()
    generate([model], loaded["moe"].tokenizer, [[5, 6]], Sampling(max_new_tokens=2))
    assert model.training
    assert [layer.self_attention.core_attention for layer in model.decoder.layers] == before
    model.eval()


def frequencies(logits: torch.Tensor, sampling: Sampling, draws: int = 40_000) -> torch.Tensor:
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = choose(logits.expand(draws, -1), uniform, sampling)
    return torch.bincount(tokens, minlength=logits.numel()) / draws


def test_tokens_are_sampled_with_the_models_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1e9, 0.5])
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(logits / temperature, dim=0)
        measured = frequencies(logits, Sampling(temperature=temperature))
        torch.testing.assert_close(measured, expected, rtol=0, atol=0.01)
        assert measured[3] == 0


def test_top_k_and_top_p_drop_the_tail_and_keep_the_proportions() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.3, 0.2])
    logits = probabilities.log()
    for sampling, expected in [
        (Sampling(top_k=2), [0, 4 / 7, 3 / 7, 0]),
        (Sampling(top_k=1), [0.0, 1.0, 0.0, 0.0]),
        (Sampling(top_p=0.65), [0, 4 / 7, 3 / 7, 0]),
        (Sampling(top_p=0.75), [0, 4 / 9, 3 / 9, 2 / 9]),
        (Sampling(top_p=0.01), [0.0, 1.0, 0.0, 0.0]),
        (Sampling(top_k=3, top_p=0.7), [0, 4 / 7, 3 / 7, 0]),
    ]:
        torch.testing.assert_close(frequencies(logits, sampling), torch.tensor(expected), rtol=0, atol=0.01)


def test_streams_have_different_random_numbers() -> None:
    table = uniforms(3, [0, 1, 2], 4)
    assert table.unique().numel() == 12
    assert torch.equal(uniforms(3, [1], 4)[0], table[1])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"temperature": -1.0}, "temperature=-1.0"), ({"top_p": 0.0}, "top_p=0.0"),
    ({"max_new_tokens": 0}, "max_new_tokens=0")],
)  # fmt: skip
def test_invalid_sampling_settings_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Sampling(**options)


def sample_job(saved: Path, output: Path, name: str, **layout: Any) -> SampleJob:
    prompts = output.parent / "prompts.jsonl"
    chat = [{"id": f"q{i}", "messages": [{"role": "user", "content": "word " * i}]} for i in range(1, 6)]
    texts = [{"id": "text", "text": "import os", "source": "kept apart"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in chat + texts))
    return SampleJob(
        output=output, seed=4, parent=saved / name, prompts=prompts, samples_per_prompt=3, max_new_tokens=12, batch_size=4,
        layout=LayoutConfig(**layout),
    )  # fmt: skip


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def test_a_job_writes_every_sample_in_the_order_of_the_prompts(saved: Path, tmp_path: Path) -> None:
    run(sample_job(saved, tmp_path / "one", "dense"))
    rows = rows_of(tmp_path / "one")
    assert [(row["id"], row["sample"]) for row in rows] == [
        (name, sample) for name in ("q1", "q2", "q3", "q4", "q5", "text") for sample in range(3)
    ]
    assert set(rows[0]) == {"id", "sample", "response", "tokens", "logprob", "finished"}
    assert all(row["logprob"] < 0 for row in rows)
    lines = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert [line["event"] for line in lines] == ["start", *["step"] * (len(lines) - 2), "end"]
    assert lines[0]["steps"] == lines[-2]["step"] == 18
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["metrics"]["samples"] == 18


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param("moe", {"dp": 2, "ep": 2}, id="experts"),
        pytest.param("dense", {"tp": 2}, id="tensors", marks=pytest.mark.slow),
        pytest.param("moe", {"pp": 2}, id="stages"),
        pytest.param("dense", {"cp": 2}, id="contexts"),
    ],
)
def test_two_ranks_sample_the_same_as_one(
    saved: Path,
    tmp_path: Path,
    name: str,
    layout: dict[str, int],
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    run(sample_job(saved, tmp_path / "one", name))
    write_job(sample_job(saved, tmp_path / "two", name, **layout), tmp_path / "job.json")
    torchrun(2, "-m", "cupola_trainer", tmp_path / "job.json")
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    assert [row["logprob"] for row in one] == pytest.approx([row["logprob"] for row in two], abs=1e-4)


def test_a_chat_prompt_is_encoded_as_in_training(saved: Path, loaded: dict[str, Loaded]) -> None:
    tokenizer = loaded["dense"].tokenizer
    text = tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": "Hi."}]))
    assert text.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("", ConfigError, "holds no prompts"),
        ('{"id": "a", "text": "x"}\n{"id": "b"}\n', ConfigError, 'line 2 is not a prompt. Give {"id", "messages"}'),
        ('{"id": "a", "text": "x"}\nnonsense\n', ConfigError, "line 2: not JSON"),
        (None, NotFoundError, "does not exist"),
    ],
)
def test_unreadable_prompts_are_refused_naming_the_line(
    saved: Path, tmp_path: Path, content: str | None, error: type[Exception], says: str
) -> None:
    if content is not None:
        (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(error, match=says):
        run(SampleJob(output=tmp_path / "out", parent=saved / "dense", prompts=tmp_path / "prompts.jsonl"))


def test_a_pipeline_that_does_not_divide_the_layers_is_refused_before_building(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_layers=2 is not a multiple of pp=3\. Try pp="):
        load(saved / "dense", LayoutConfig(pp=3))
