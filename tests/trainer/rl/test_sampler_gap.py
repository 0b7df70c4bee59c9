"""The gap between sampling and training: its metrics, its correction, and the end of a run in which it grows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer.rl.test_jobs import SPACES
from torch import Tensor

from cupola_platform.errors import ConfigError, StageFailedError
from cupola_trainer.config import BatchConfig, GrpoData, OnlineDpoData, PpoData, RolloutConfig, TrainJob
from cupola_trainer.generation.batch import Completion
from cupola_trainer.generation.engine import engine_of
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.rl.sampler_gap import correction, gap_metrics, gap_sums
from cupola_trainer.training.loop import begin, train

ROLLOUT: dict[str, Any] = {"prompts": 4, "samples_per_prompt": 8, "max_new_tokens": 8, "heldout_prompts": 0}
BATCH = BatchConfig(sequence_length=32, micro_batch_size=16, global_batch_size=32)
"""One step per rollout."""
JobOf = Callable[..., TrainJob]


class Shifted:
    """An engine whose log-probabilities are off by a constant."""

    def __init__(self, engine: Any, shift: float) -> None:
        self.engine, self.shift = engine, shift

    def generate(self, *arguments: Any, **named: Any) -> list[Completion]:
        done = self.engine.generate(*arguments, **named)
        return [Completion(each.tokens, [p + self.shift for p in each.logprobs], each.finished) for each in done]


def data_of(kind: type[GrpoData | PpoData], material: Path, **rollout: Any) -> GrpoData | PpoData:
    config = RolloutConfig(**ROLLOUT | rollout)
    return kind(conversations=material / "conversations", rollout=config, rewards=SPACES)


def one_step(under_way: Any) -> dict[str, Any]:
    """The line of the first step."""
    under_way.start()
    under_way.step()
    under_way.close()
    under_way.metrics.close()
    return next(line for line in read_metrics(under_way.job.output / "metrics.jsonl") if line["event"] == "step")


def test_the_metrics_are_those_of_the_tokens() -> None:
    random = np.random.default_rng(0)
    gap, quarters = 10.0 ** random.uniform(-6, 0, (16, 40)), random.integers(0, 5, (16, 40))
    halves = [gap_sums(*(torch.from_numpy(a[part]) for a in (gap, np.zeros_like(gap), quarters)))
              for part in (slice(0, 8), slice(8, 16))]  # fmt: skip
    count = 7.0  # what the means were divided by does not matter
    means = {name: float(halves[0][name] + halves[1][name]) / count for name in halves[0]}
    metrics, tokens = gap_metrics({**means, "loss": 2.0}, None), gap[quarters > 0]
    assert metrics["loss"] == 2.0
    assert metrics["sampler_gap"] == pytest.approx(tokens.mean())
    assert metrics["sampler_gap_wide"] == pytest.approx((tokens > 0.1).mean())
    assert 1 <= metrics["sampler_gap_p99"] / np.quantile(tokens, 0.99) <= 1.8
    for quarter in range(1, 5):
        assert metrics[f"sampler_gap_quarter{quarter}"] == pytest.approx(gap[quarters == quarter].mean())
    none = gap_sums(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3))
    assert gap_metrics({name: float(value) for name, value in none.items()}, None)["sampler_gap_p99"] == 0


def test_tokens_are_weighted_by_the_truncated_or_masked_ratio() -> None:
    scored, sampled = torch.log(torch.tensor([[0.2, 0.6, 0.9]])), torch.log(torch.tensor([[0.4, 0.4, 0.3]]))

    def weights(kind: Any) -> Tensor | None:
        return correction(scored, sampled, RolloutConfig(correction=kind, correction_cap=2.0))

    assert weights("none") is None
    torch.testing.assert_close(weights("truncate"), torch.tensor([[0.5, 1.5, 2.0]]))  # min(ratio, cap)
    torch.testing.assert_close(weights("mask"), torch.tensor([[0.5, 1.5, 0.0]]))


@pytest.mark.parametrize("kind", [GrpoData, PpoData])
@pytest.mark.parametrize(("mode", "weight"), [("truncate", 1.5), ("mask", 0.0)])
def test_the_correction_weighs_the_policys_loss(
    job: JobOf, material: Path, kind: Any, mode: Any, weight: float
) -> None:
    norms = []
    for correction_ in ("none", mode):
        data = data_of(kind, material, correction=correction_, correction_cap=1.5)
        data = data.but(kl_coef=0.0) if kind is GrpoData else data.but(value_warmup_steps=0)
        under_way = begin(job(f"{mode}-{correction_}", data, batch=BATCH))
        objective: Any = under_way.objective
        objective.collector.engine = Shifted(objective.collector.engine, -1.0)  # e times as likely in training
        norms.append(one_step(under_way))
    plain, weighed = norms
    assert plain["sampler_gap"] == pytest.approx(1, abs=1e-4) == weighed["sampler_gap_quarter4"]
    assert plain["sampler_gap_wide"] == 1
    assert weighed["grad_norm"] == pytest.approx(weight * plain["grad_norm"], rel=1e-5)


def test_a_rollout_of_one_step_is_scored_by_that_step(job: JobOf, material: Path) -> None:
    lines = []
    for scored in (True, False):
        data = data_of(GrpoData, material)
        under_way = begin(job(f"scored-{scored}", data, batch=BATCH))
        objective: Any = under_way.objective
        assert objective.scores_policy is False
        objective.collector.scores_policy = scored
        lines.append(one_step(under_way))
        assert ("old_logps" in objective.sample(0)) is scored
    for name in ("loss", "grad_norm", "kl", "sampler_gap", "entropy"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=1e-5, abs=1e-7)
    assert lines[1]["policy_kl"] == lines[1]["clip_fraction"] == 0


def test_a_run_ends_when_sampling_and_training_drift_apart(job: JobOf, material: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("cupola_trainer.rl.collector.engine_of", lambda *of: Shifted(engine_of(*of), 0.3))
    line = r"differ by 0\.3 a token, more than rollout.max_gap=0.2\. Sample with engine=megatron"
    with pytest.raises(StageFailedError, match=line):
        train(job("drift", data_of(GrpoData, material, max_gap=0.2), batch=BATCH), lambda: False)


def test_pairs_have_nothing_to_correct(material: Path) -> None:
    data = OnlineDpoData(conversations=material / "conversations", rollout=RolloutConfig(prompts=32, correction="mask"))
    with pytest.raises(ConfigError, match="the loss of pairs has no ratio to sampling"):
        data.rollout.check(BATCH, pairs=True)
