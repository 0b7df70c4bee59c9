"""Laws fitted to losses whose law is known."""

import re

import numpy as np
import pytest

from cupola_platform.corpus.core.sampling_weights import with_epoch_caps, with_temperature
from cupola_platform.errors import ConfigError
from cupola_platform.fitting.mixtures import best_mixture, draw_mixtures, fit_law, propose
from cupola_platform.fitting.plots import laws_page, mixture_page
from cupola_platform.fitting.scaling import BEYOND, MAX_EXPONENT, Run, at_edges, fit_laws

SLOPES = np.array([[-1.2, 0.3, 0.4], [0.5, -0.8, 0.1], [0.3, 0.2, -2.0]])


def losses(mixtures: np.ndarray, noise: float = 0.0) -> np.ndarray:
    exact = 1.5 + np.exp(mixtures @ SLOPES.T)
    return np.asarray(exact + noise * np.random.default_rng(0).normal(size=exact.shape))


def test_mixtures_start_at_the_baseline_and_lie_on_the_simplex() -> None:
    mixtures = draw_mixtures([8, 1, 1], 30, seed=1)
    assert mixtures.shape == (30, 3)
    assert mixtures[0].tolist() == [0.8, 0.1, 0.1]
    assert np.allclose(mixtures.sum(axis=1), 1)
    assert mixtures.min() >= 0
    assert (draw_mixtures([8, 1, 1], 30, seed=1) == mixtures).all()


def test_the_law_behind_exact_losses_is_found() -> None:
    mixtures = draw_mixtures([1, 1, 1], 40, seed=0, concentration=1.0)
    law = fit_law(mixtures, losses(mixtures)[:, 0])
    assert law.floor == pytest.approx(1.5, abs=0.15)
    assert law(mixtures) == pytest.approx(losses(mixtures)[:, 0], abs=2e-3)


def test_the_proposal_is_the_true_optimum_and_within_its_interval() -> None:
    mixtures = draw_mixtures([6, 2, 2], 32, seed=0, concentration=2.0)
    grid = np.array([[a, b, 1 - a - b] for a in np.linspace(0, 1, 101) for b in np.linspace(0, 1 - a, 101)])
    truth = grid[np.argmin(losses(grid).mean(axis=1))]
    found = propose(["web", "code", "maths"], mixtures, losses(mixtures, 0.003), resamples=40)
    assert list(found.weights.values()) == pytest.approx(truth, abs=0.05)
    for i, name in enumerate(found.weights):
        assert found.low[name] - 0.02 <= truth[i] <= found.high[name] + 0.02
        assert found.low[name] <= found.weights[name] <= found.high[name]
    assert found.predicted < found.baseline
    assert max(found.residual.values()) < 0.01
    assert found.left_out.shape == (32, 3)
    assert found.error < 0.02
    assert found.rank_correlation > 0.9
    page = mixture_page(found, {"web": 0.6, "code": 0.2, "maths": 0.2})
    assert all(page.count(f">{name}</text>") == 2 for name in ("web", "code", "maths"))  # a line each, and the legend
    assert len(re.findall(r"<use [^>]*fill-opacity: 0.8", page)) == 32 * 3 + 3


def test_caps_and_targets_bind_the_proposal() -> None:
    mixtures = draw_mixtures([1, 1, 1], 24, seed=0)
    found = propose(
        ["web", "code", "maths"], mixtures, losses(mixtures), targets={"maths": 1.0}, most={"maths": 0.3}, resamples=4
    )
    assert found.weights["maths"] == pytest.approx(0.3, abs=1e-6)
    assert sum(found.weights.values()) == pytest.approx(1)
    laws = [fit_law(mixtures, losses(mixtures)[:, d]) for d in range(3)]
    assert best_mixture(laws, np.array([0.0, 0.0, 1.0]), np.ones(3))[2] > 0.9


def test_too_few_runs_or_caps_that_leave_nothing_are_refused() -> None:
    mixtures = draw_mixtures([1, 1, 1], 4, seed=0)
    with pytest.raises(ConfigError, match=r"4 runs are too few for 3 domains\. Train at least 5"):
        propose(["a", "b", "c"], mixtures, losses(mixtures))
    mixtures = draw_mixtures([1, 1, 1], 8, seed=0)
    with pytest.raises(ConfigError, match=r"the caps on epochs leave 60% of the samples"):
        propose(["a", "b", "c"], mixtures, losses(mixtures), most={"a": 0.2, "b": 0.2, "c": 0.2})


def runs(noise: float) -> list[Run]:
    draws = np.random.default_rng(0)
    made = []
    for n in (1e5, 4e5, 1.6e6):
        for d in (1e6, 4e6, 1.6e7):
            best_lr, best_batch = 3.0 * n**-0.4 * d**0.1, 0.5 * n**0.05 * d**0.6
            settings = [(best_lr * f, best_batch * g) for f in (0.25, 0.5, 1, 2, 4) for g in (0.3, 1, 3)]
            for lr, batch in settings:
                loss = 2 + 300 * n**-0.4 + 900 * d**-0.5
                loss += 0.05 * np.log(lr / best_lr) ** 2 + 0.02 * np.log(batch / best_batch) ** 2
                made.append(Run(n, d, lr, batch, float(loss + noise * draws.normal())))
    return made


def test_power_laws_behind_the_losses_are_found() -> None:
    laws = fit_laws(runs(0.0), resamples=3)
    assert (laws.lr.n_exponent, laws.lr.d_exponent) == pytest.approx((-0.4, 0.1), abs=1e-3)
    assert (laws.batch.n_exponent, laws.batch.d_exponent) == pytest.approx((0.05, 0.6), abs=1e-3)
    assert laws.lr.coefficient == pytest.approx(3.0, rel=0.02)
    assert laws.batch.coefficient == pytest.approx(0.5, rel=0.02)
    assert laws.lr(1e6, 1e8) == pytest.approx(3.0 * 1e6**-0.4 * 1e8**0.1, rel=0.01)


def test_under_noise_the_intervals_contain_the_truth_and_the_page_shows_both_laws() -> None:
    made = runs(0.005)
    laws = fit_laws(made, resamples=30)
    for law, truth in ((laws.lr, (-0.4, 0.1)), (laws.batch, (0.05, 0.6))):
        intervals = law.intervals()
        for name, value in zip(("n_exponent", "d_exponent"), truth, strict=True):
            low, high = intervals[name]
            assert low - 0.03 < value < high + 0.03
            assert high - low < 0.3
    low, high = laws.lr.interval(4e5, 4e6)
    assert low < laws.lr(4e5, 4e6) < high
    page = laws_page(laws, made)
    assert page.count("<svg") == 4
    assert page.count("<title>N = ") == 3 + 3 + 9 + 9
    assert "$" not in page
    fits = np.array([run.loss for run in made]) - laws.fitted
    assert np.sqrt(np.mean(fits**2)) == pytest.approx(laws.residual)


def test_best_settings_at_the_edge_of_the_range_are_reported() -> None:
    made = runs(0.0)
    assert at_edges(made) == {"lr": [], "batch": []}
    low = [run for run in made if run.lr < 1.5 * 3.0 * run.parameters**-0.4 * run.tokens**0.1]
    assert at_edges(low)["lr"] == sorted({(run.parameters, run.tokens) for run in made})
    assert at_edges(low)["batch"] == []


def test_runs_without_an_optimum_give_finite_numbers() -> None:
    draws = np.random.default_rng(3)
    made = [
        Run(n, d, lr, batch, float(6 - 0.4 * np.log(lr) - 0.05 * np.log(batch) + 0.01 * draws.normal()))
        for n in (21_000, 34_000) for d in (1024, 2048)
        for lr, batch in [(1e-3, 128), (4e-3, 128), (1.6e-2, 128), (4e-3, 64), (4e-3, 256)]
    ]  # fmt: skip
    laws = fit_laws(made, resamples=10)
    assert len(at_edges(made)["lr"]) == 4
    for law, (least, most) in ((laws.lr, (1e-3, 1.6e-2)), (laws.batch, (64, 256))):
        assert max(abs(law.n_exponent), abs(law.d_exponent)) <= MAX_EXPONENT
        assert least / BEYOND <= law(np.sqrt(21_000 * 34_000), np.sqrt(1024 * 2048)) <= most * BEYOND
    assert "nan" not in (page := laws_page(laws, made))
    assert "inf" not in page


def test_runs_that_do_not_determine_the_law_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 different model sizes cannot determine a power law\. Give at least 2"):
        fit_laws([run for run in runs(0.0) if run.parameters == 1e5])
    with pytest.raises(ConfigError, match=r"too few for 17 coefficients"):
        fit_laws(runs(0.0)[::9])


def test_temperature_balances_languages_and_leaves_a_single_one_unchanged() -> None:
    tokens = {"web": {"en": 900}, "blog": {"en": 100}, "zh": {"zh": 250}}
    weights = {"web": 900.0, "blog": 100.0, "zh": 250.0}
    found = with_temperature(weights, tokens, 2.0)
    assert found["web"] / found["blog"] == pytest.approx(9)
    assert found["zh"] / (found["web"] + found["blog"]) == pytest.approx((250 / 1000) ** 0.5)
    assert sum(found.values()) == pytest.approx(1)
    assert with_temperature(weights, tokens, 1.0) == pytest.approx({"web": 0.72, "blog": 0.08, "zh": 0.2})


def test_a_cap_on_epochs_gives_the_excess_to_the_others() -> None:
    found = with_epoch_caps({"a": 1, "b": 1, "c": 2}, {"a": 100, "b": 10_000, "c": 10_000}, 4000, {"a": 4})
    assert found == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.6})
    both = with_epoch_caps({"a": 1, "b": 1, "c": 1}, {"a": 100, "b": 300, "c": 9_000}, 1000, {"a": 1, "b": 1})
    assert both == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.6})
    with pytest.raises(ConfigError, match=r"max_epochs allows only 40% of the 1,000 tokens"):
        with_epoch_caps({"a": 1, "b": 1}, {"a": 100, "b": 300}, 1000, {"a": 1, "b": 1})
