"""The mathematics of decay rates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musubi_merge_ema.schedules import (
    SIGMA_REL_LIMIT,
    constant_rates,
    effective_count,
    gamma_of,
    linear_rates,
    power_rates,
    weights,
)

RATES = st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=40)


def some(count):
    """Schedules look at nothing but the number here."""
    return [None] * count


@given(RATES)
def test_weights_are_those_of_the_recursion_and_sum_to_one(rates):
    shares = weights(rates)
    assert len(shares) == len(rates) + 1
    assert math.isclose(sum(shares), 1)
    for index, share in enumerate(shares):
        average = 1.0 if index == 0 else 0.0
        for merge, rate in enumerate(rates, 1):
            average = rate * average + (1 - rate) * (merge == index)
        assert math.isclose(share, average, abs_tol=1e-12)


@given(RATES)
def test_between_one_and_all_checkpoints_are_effective(rates):
    assert 1 - 1e-9 <= effective_count(weights(rates)) <= len(rates) + 1 + 1e-9


@pytest.mark.parametrize(("count", "percent"), [(5, 81), (10, 63), (20, 38)])
def test_how_much_the_oldest_file_keeps_under_the_default(count, percent):
    assert round(100 * weights(constant_rates(some(count), beta=0.95))[0]) == percent


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.01, 97.0), (0.05, 16.97), (0.1, 6.937), (0.15, 3.558), (0.2, 1.826), (0.25, 0.7198)],
)
def test_gammas_of_the_paper(sigma_rel, gamma):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, rel=1e-3)


@given(st.floats(min_value=0.005, max_value=SIGMA_REL_LIMIT - 1e-4))
def test_gamma_gives_back_its_sigma_rel(sigma_rel):
    g = gamma_of(sigma_rel)
    assert math.sqrt(g + 1) / (g + 2) / math.sqrt(g + 3) == pytest.approx(sigma_rel, rel=1e-6)


def test_power_gives_nothing_to_the_oldest_file():
    rates = power_rates(some(20), sigma_rel=0.2)
    assert rates[0] == 0.0
    assert rates == sorted(rates)
    assert weights(rates)[0] == 0.0


def test_power_with_two_files_is_the_newer_one():
    assert power_rates(some(2), sigma_rel=0.2) == [0.0]


def test_linear_goes_from_one_rate_to_the_other():
    assert linear_rates(some(5), beta=0.6, beta2=0.9) == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert linear_rates(some(2), beta=0.6, beta2=0.9) == [0.6]
