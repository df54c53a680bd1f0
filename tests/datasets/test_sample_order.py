"""The order of samples: permutations at every size, weights, windows, how well it shuffles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from worldline.datasets.sample_order import OrderConfig, SampleOrder, permute


@settings(deadline=None)
@given(st.one_of(st.integers(1, 400), st.integers(1020, 1100), st.just(5000)), st.integers(0, 2**63 - 1))
def test_it_is_a_permutation_and_its_inverse_undoes_it(size: int, key: int) -> None:
    image = permute(np.arange(size), size, key)
    assert sorted(image.tolist()) == list(range(size))
    np.testing.assert_array_equal(permute(image, size, key, inverse=True), np.arange(size))


def test_a_billion_samples_cost_what_a_thousand_do() -> None:
    """Nothing of the size of the range is stored: an explicit permutation of this one would be 8 EB."""
    size = 10**18
    image = permute(np.arange(1000), size, 5)
    assert len(set(image.tolist())) == 1000
    assert image.min() >= 0
    assert image.max() < size
    np.testing.assert_array_equal(permute(image, size, 5, inverse=True), np.arange(1000))
    # Uniform over the range.
    assert stats.kstest(image / size, "uniform").pvalue > 1e-3


def test_all_permutations_of_four_come_up_equally_often() -> None:
    """The oracle is the definition: 24 orders, each with chance 1 / 24."""
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for key in range(2400):
        counts[tuple(permute(np.arange(4), 4, key).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_neighbours_do_not_stay_neighbours() -> None:
    """Steps between successive samples are spread as those of numpy's own permutation."""
    size = 20_000
    steps = np.diff(permute(np.arange(size), size, 11))
    expected = np.diff(np.random.default_rng(0).permutation(size))
    assert stats.ks_2samp(steps, expected).pvalue > 1e-3
    first, second = (permute(np.arange(size), size, key) for key in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    assert np.mean(first == second) < 5 / size * 3


def test_the_order_is_written_down() -> None:
    """Literal values: a run begun today must go on with any later version of the code or of numpy."""
    assert permute(np.arange(10), 10, 7).tolist() == WRITTEN_PERMUTATION
    assert permute(np.arange(5), 10**6, 7).tolist() == [65147, 736304, 985101, 185653, 964968]
    order = SampleOrder(1000, OrderConfig(seed=42))
    assert order.samples(np.array([0, 1, 999, 1000, 10**9])).tolist() == WRITTEN_SAMPLES
    assert order.replacement(5, 1) == WRITTEN_REPLACEMENT


WRITTEN_PERMUTATION = [0, 8, 6, 9, 3, 4, 1, 7, 5, 2]
WRITTEN_SAMPLES = [764, 227, 772, 468, 837]
WRITTEN_REPLACEMENT = 670

sizes = st.one_of(st.integers(1, 200), st.just(1500))
configs = st.builds(
    OrderConfig,
    seed=st.integers(0, 2**63 - 1),
    window=st.sampled_from([0, 1, 2, 3, 7, 64, 400]),
    windows_mixed=st.integers(1, 5),
)


@settings(deadline=None, max_examples=60)
@given(sizes, configs, st.integers(0, 3))
def test_every_epoch_holds_every_sample_once(size: int, config: OrderConfig, epoch: int) -> None:
    order = SampleOrder(size, config)
    seen = order.samples(np.arange(epoch * size, (epoch + 1) * size))
    assert sorted(seen.tolist()) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(sizes, configs, st.lists(st.integers(0, 5000), min_size=1, max_size=20))
def test_a_sample_depends_on_its_position_alone(size: int, config: OrderConfig, positions: list[int]) -> None:
    order = SampleOrder(size, config)
    together = order.samples(np.array(positions))
    alone = [SampleOrder(size, config).samples(np.array([p]))[0] for p in positions]
    np.testing.assert_array_equal(together, alone)


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder(1000, OrderConfig())
    first, second = (order.samples(np.arange(e * 1000, (e + 1) * 1000)) for e in (0, 1))
    other = SampleOrder(1000, OrderConfig(seed=1)).samples(np.arange(1000))
    for a, b in ((first, second), (first, other)):
        assert np.mean(a == b) < 0.01


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), configs, st.integers(0, 5))
def test_weights_are_kept_to_within_one_draw(weights: list[float], config: OrderConfig, epoch: int) -> None:
    total = sum(weights)
    if total < 1e-3:
        return
    size = len(weights)
    order = SampleOrder(size, config, np.cumsum(weights))
    counts = np.bincount(order.samples(np.arange(epoch * size, (epoch + 1) * size)), minlength=size)
    expected = np.array(weights) * size / total
    assert counts.sum() == size
    assert np.all(np.abs(counts - expected) < 1 + 1e-6)
    assert np.all(counts[np.array(weights) == 0] == 0)


def test_weights_are_exact_on_average() -> None:
    weights = np.array([1.0, 2, 3, 0, 0.5])
    order = SampleOrder(5, OrderConfig(), np.cumsum(weights))
    counts = np.bincount(order.samples(np.arange(5 * 1000)), minlength=5) / 1000
    # One uniform offset an epoch: the standard error of a count is at most 0.5 / sqrt(1000).
    np.testing.assert_allclose(counts, weights * 5 / 6.5, atol=4 * 0.5 / 1000**0.5)


def test_a_window_keeps_few_places_open() -> None:
    """Of 10,000 samples in windows of 100, four at a time: any 400 in a row lie in at most 8 windows (two groups)."""
    order = SampleOrder(10_000, OrderConfig(window=100, windows_mixed=4))
    samples = order.samples(np.arange(10_000))
    for start in range(0, 9_600, 123):
        assert len(set((samples[start : start + 400] // 100).tolist())) <= 8
    # Inside a group nothing is in order.
    assert abs(np.corrcoef(samples[:400], np.arange(400))[0, 1]) < 0.3


def test_stand_ins_are_drawn_from_all_samples() -> None:
    order = SampleOrder(50, OrderConfig())
    drawn = [order.replacement(p, 1) for p in range(5000)]
    assert stats.chisquare(np.bincount(drawn, minlength=50)).pvalue > 1e-3
    assert [order.replacement(9, k) for k in (1, 2)] == [order.replacement(9, k) for k in (1, 2)]
    weighted = SampleOrder(3, OrderConfig(), np.cumsum([1.0, 0.0, 1.0]))
    assert {weighted.replacement(p, 1) for p in range(100)} == {0, 2}


def test_wrong_arguments() -> None:
    for wrong in ({"window": -1}, {"windows_mixed": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="window"):
            OrderConfig(**wrong)
    with pytest.raises(ValueError, match="at least one"):
        SampleOrder(0, OrderConfig())
