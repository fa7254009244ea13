"""Intervals cover and tests reject as often as they say."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, bootstrap

from sea_lens.errors import InputError
from sea_lens.statistics import beats_controls_p_value, bootstrap_intervals, sign_flip_p_values


def within_its_binomial_interval(successes, n, chance):
    return binom.ppf(0.0005, n, chance) <= successes <= binom.ppf(0.9995, n, chance)


def test_intervals_are_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).normal(1.0, 2.0, (60, 3))
    low, high = bootstrap_intervals(torch.from_numpy(values), n_resamples=8000)
    for column in range(3):
        expected = bootstrap((values[:, column],), np.mean, method="percentile", n_resamples=8000, rng=1)
        assert low[column].item() == pytest.approx(expected.confidence_interval.low, abs=0.03)
        assert high[column].item() == pytest.approx(expected.confidence_interval.high, abs=0.03)


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    draws = torch.from_numpy(np.random.default_rng(1).normal(0.3, 1.0, (80, 600)))
    low, high = bootstrap_intervals(draws, confidence=0.9, n_resamples=800)
    covered = int(((low <= 0.3) & (high >= 0.3)).sum())
    assert 0.9 * 600 - 45 <= covered <= 0.9 * 600 + 30  # percentile intervals are a little short at n = 80


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    values = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bootstrap_intervals(values, 3)[0], bootstrap_intervals(values, 3)[0])
    assert not torch.equal(bootstrap_intervals(values, 3)[0], bootstrap_intervals(values, 4)[0])
    assert torch.equal(sign_flip_p_values(values, 3), sign_flip_p_values(values, 3))


def test_sign_flips_agree_with_all_of_them():
    values = torch.tensor([[0.5, 1.0, -0.2, 0.9, 0.4, 1.3, -0.1, 0.2], [1.0, -1.0, 0.5, -0.4, 0.1, 0.2, -0.3, 0.0]]).T
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=8)))
    exact = ((signs @ values).abs() >= values.sum(0).abs() - 1e-9).double().mean(0)
    assert sign_flip_p_values(values).tolist() == pytest.approx(exact.tolist(), abs=0.03)


def test_sign_flips_of_zeros_and_ones_are_mcnemars_test():
    changes = torch.tensor([1.0] * 14 + [-1.0] * 4 + [0.0] * 30)[:, None]
    expected = binomtest(4, 18).pvalue
    assert sign_flip_p_values(changes, n_resamples=20_000).item() == pytest.approx(expected, abs=0.006)


def test_sign_flips_reject_nothing_at_the_nominal_rate():
    draws = torch.from_numpy(np.random.default_rng(2).normal(0, 1, (40, 1000)))
    rejected = int((sign_flip_p_values(draws, n_resamples=999) <= 0.05).sum())
    assert within_its_binomial_interval(rejected, 1000, 0.05)


def test_no_change_at_all_has_a_p_value_of_1_and_an_interval_of_0():
    zeros = torch.zeros(10, 1)
    assert sign_flip_p_values(zeros).item() == 1
    assert [end.item() for end in bootstrap_intervals(zeros)] == [0, 0]


def test_the_least_p_value_is_one_over_the_number_of_controls_and_one():
    assert beats_controls_p_value(5.0, [1.0] * 19) == pytest.approx(0.05)
    assert beats_controls_p_value(-5.0, [1.0, -6.0, 2.0]) == pytest.approx(0.5)
    assert beats_controls_p_value(0.0, [0.0, 0.0]) == 1


def test_an_editor_like_its_controls_is_rejected_at_the_nominal_rate():
    draws = np.random.default_rng(3).normal(0, 1, (2000, 20))
    rejected = sum(beats_controls_p_value(row[0], row[1:].tolist()) <= 0.05 for row in draws)
    assert within_its_binomial_interval(rejected, 2000, 0.05)


def test_what_cannot_be_said_is_refused():
    with pytest.raises(InputError, match="No controls"):
        beats_controls_p_value(1.0, [])
    with pytest.raises(InputError, match="At least one row"):
        bootstrap_intervals(torch.zeros(0, 2))
    with pytest.raises(InputError, match="confidence inside"):
        bootstrap_intervals(torch.zeros(3, 2), confidence=1.0)
