"""Decoding by replays of a recorded step. There is no CUDA here: the step is recorded by torch's tracer, which keeps
operations and the tensors that they read and write, as a graph keeps kernels and addresses. What a recording does not
show is that CUDA can record each kernel."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from tests.trainer.training.layout_ranks import DENSE, MODELS
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from cupola_trainer import models, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.generation import graphs
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.sampling import Sampling

PROMPTS = [[5, 6, 7], [9] * 9, [11, 12], [77], [5, 6, 7, 8]]
LONG = replace(DENSE, max_position_embeddings=64)


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    runtime.start(LayoutConfig(), seed=0)
    yield
    runtime.stop()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For each recording its rows, and how often it was replayed."""
    found: list[tuple[int, int]] = []

    def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        output = work()
        number, traced = len(found), make_fx(lambda: work())()  # a method would be traced with itself as an argument
        found.append((len(output), 0))

        def replay() -> Tensor:
            rows, times = found[number]
            found[number] = rows, times + 1
            return output.copy_(traced())

        return replay

    monkeypatch.setattr(graphs, "graph_capture", lambda: capture)
    return found


def build(model: ModelConfig = LONG) -> list[torch.nn.Module]:
    return list(models.build(model, LayoutConfig(), seed=5))


def responses(chunks: Sequence[torch.nn.Module], *, count: int = 20, stops: Sequence[int] = ()) -> list[list[int]]:
    sampling = Sampling(max_new_tokens=count, temperature=0.0)
    made = generate(chunks, None, PROMPTS, sampling, stops=stops, vocabulary=128)
    return [completion.tokens for completion in made]


def test_replays_give_the_tokens_of_steps_one_by_one(recorded: list[tuple[int, int]]) -> None:
    chunks = build()
    replayed = responses(chunks)
    assert recorded == [(5, 19)]  # the first token is the prompt's
    recorded.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "graph_capture", lambda: None)
        assert responses(chunks) == replayed
    assert recorded == []


def test_removed_rows_end_a_recording_and_begin_another_while_it_pays(recorded: list[tuple[int, int]]) -> None:
    chunks = build()
    whole = responses(chunks)
    ends = [whole[row][3] for row in range(3)]  # three of five rows stop early
    recorded.clear()
    stopped = responses(chunks, stops=ends)
    rows = [count for count, _ in recorded]
    assert rows[0] == 5
    assert len(rows) > 1
    assert rows == sorted(rows, reverse=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "graph_capture", lambda: None)
        assert responses(chunks, stops=ends) == stopped


def test_short_responses_are_not_recorded(recorded: list[tuple[int, int]]) -> None:
    responses(build(), count=graphs.PAYS)
    assert recorded == []
    responses(build(), count=graphs.PAYS + 1)
    assert recorded == [(5, graphs.PAYS)]


def test_updated_weights_are_seen(recorded: list[tuple[int, int]]) -> None:
    chunks = build()
    before = responses(chunks)
    with torch.no_grad():
        for weight in chunks[0].parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    after = responses(chunks)
    assert before != after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "graph_capture", lambda: None)
        assert responses(chunks) == after
    assert [count for count, _ in recorded] == [5, 5]


@pytest.mark.parametrize("name", ["moe", "gemma2", "logn", "dual_chunk"])
def test_experts_and_attention_by_distance_are_decoded_step_by_step(recorded: list[tuple[int, int]], name: str) -> None:
    responses(build(MODELS[name]))
    assert recorded == []
