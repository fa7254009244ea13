import numpy as np
import pytest
import torch

from sea_lens.methods.sea.row_sample import RowSample
from sea_lens.methods.sea.running import RunningCrossCovariance
from sea_lens.methods.sea.spectral import CrossCovariance


def sides(n, d=12, offset=0.0, dtype=torch.float64, seed=0):
    """Two sides that share some of their directions, about a common offset."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, d, generator=generator, dtype=torch.float64)
    g = h[:, torch.arange(d).roll(1)] + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (h + offset).to(dtype), (g + offset).to(dtype)


def accumulated(h, g, sizes):
    running = RunningCrossCovariance.empty(h.shape[1])
    for neutral, other in zip(h.split(sizes), g.split(sizes), strict=True):
        running.update(neutral, other)
    return running


def oracle(h, g):
    """Sum of centered products in extended precision, which float64 holds exactly enough to judge float64 by."""
    h, g = h.numpy().astype(np.longdouble), g.numpy().astype(np.longdouble)
    return (h - h.mean(0)).T @ (g - g.mean(0))


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 1, 25, 7]])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e8])
def test_sums_over_ragged_batches_keep_their_digits_whatever_the_offset(sizes, offset):
    h, g = sides(40, offset=offset)
    running = accumulated(h, g, sizes)
    assert running.n == 40
    expected = oracle(h, g).astype(np.float64)
    # A mean near 1e8 is itself rounded by 1e-8, and the sum is of 40 products.
    np.testing.assert_allclose(running.comoment.numpy(), expected, rtol=0, atol=1e-12 + 1e-14 * abs(offset))
    np.testing.assert_allclose(running.neutral_mean.numpy(), h.numpy().mean(0), rtol=1e-14, atol=1e-14)


def test_naive_float32_sums_would_have_lost_them():
    """So that the test above could fail: an offset of 1e4 times the spread, with float32 activations."""
    h, g = sides(500, offset=1e4, dtype=torch.float32)
    expected = torch.from_numpy(oracle(h, g).astype(np.float64))
    naive = h.T @ g - torch.outer(h.sum(0), g.sum(0)) / 500
    running = accumulated(h, g, [64] * 7 + [52])
    assert (naive - expected).norm() > 0.1 * expected.norm()
    assert (running.comoment - expected).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("n", [1, 5, 30])
@pytest.mark.parametrize("center", [False, True])
def test_the_decomposition_is_that_of_all_rows_at_once(n, center):
    h, g = sides(n, offset=3.0)
    found, expected = accumulated(h, g, [1] * n).decomposed(center), CrossCovariance.of(h, g, center)
    kept = len(found.singular_values)  # n - 1 rows count once centered, and the rest is rounding
    torch.testing.assert_close(found.singular_values, expected.singular_values[:kept], atol=1e-12, rtol=1e-12)
    assert expected.singular_values[kept:].lt(1e-12).all()
    rank = int((expected.singular_values > 1e-10).sum())
    one, other = found.left[:, :rank], expected.left[:, :rank]
    torch.testing.assert_close(one @ one.T, other @ other.T, atol=1e-10, rtol=0)


def test_columns_of_equal_values_are_exactly_zero():
    h, g = sides(30, offset=0.1)
    h[:, 3] = 0.1 + 0.2
    running = accumulated(h, g, [7, 11, 12])
    assert running.comoment[3].eq(0).all()
    assert not running.comoment[4].eq(0).any()


def test_merging_agrees_in_any_order_and_with_none_is_a_copy():
    h, g = sides(45, offset=1e4)
    parts = [accumulated(h[rows], g[rows], [5] * 3) for rows in torch.arange(45).split(15)]
    expected = torch.from_numpy(oracle(h, g).astype(np.float64))
    for order in ([0, 1, 2], [2, 0, 1]):
        whole = RunningCrossCovariance.empty(12)
        for number in order:
            whole.merge(parts[number])
            whole.merge(RunningCrossCovariance.empty(12))
        assert whole.n == 45
        torch.testing.assert_close(whole.comoment, expected, atol=1e-9, rtol=1e-12)
    copy = RunningCrossCovariance.empty(12)
    copy.merge(parts[0])
    assert torch.equal(copy.comoment, parts[0].comoment)
    assert torch.equal(copy.neutral_mean, parts[0].neutral_mean)
    copy.merge(parts[1])
    assert parts[0].n == 15


# --- the sample beside it --------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_order_or_batches():
    rows = {layer: torch.randn(50, 4, generator=torch.Generator().manual_seed(layer)) for layer in (1, 3)}

    def sample(parts):
        found = RowSample.empty(8, [1, 3], 4)
        for part in parts:
            found.update({layer: rows[layer][part] for layer in rows})
        return found

    whole = sample([torch.arange(50)])
    assert whole.hashes.shape == (8,)
    for parts in (torch.arange(50).flip(0).split(7), torch.randperm(50).split(20)):
        again = sample(parts)
        assert torch.equal(again.hashes, whole.hashes)
        assert all(torch.equal(again.rows[layer], whole.rows[layer]) for layer in rows)
    one, other = sample([torch.arange(20)]), sample([torch.arange(20, 50)])
    one.merge(other.hashes, other.rows)
    assert torch.equal(one.rows[3], whole.rows[3])
    # The same demonstrations at every layer.
    where = [int((rows[3] == row).all(1).nonzero()) for row in whole.rows[3]]
    assert torch.equal(rows[1][where], whole.rows[1])


def test_every_row_is_as_likely_to_be_drawn():
    rows = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 0] = torch.linspace(0, 1, 4000)
    found = RowSample.empty(400, [0], 3)
    found.update({0: rows})
    # A uniform sample's mean: 0.5, with a standard error of 0.29 / 20.
    assert abs(float(found.rows[0][:, 0].mean()) - 0.5) < 4 * 0.29 / 20
