import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from sea_lens.errors import InputError
from sea_lens.methods.sea.projectors import difference_of_projectors, principal_angles
from sea_lens.methods.sea.spectral import (
    CrossCovariance,
    RunningCrossCovariance,
    effective_rank,
    rank_explaining,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(d: int, k: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(d, k, seed=seed))[0]


def dense_covariance(h: torch.Tensor, g: torch.Tensor, center: bool) -> np.ndarray:
    """The mean over rows of outer products, one row at a time."""
    mean_h, mean_g = (h.mean(0).numpy(), g.mean(0).numpy()) if center else (0, 0)
    rows = zip(h.numpy(), g.numpy(), strict=True)
    return sum(np.outer(a - mean_h, b - mean_g) for a, b in rows) / len(h)


# --- cross-covariances -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [1, 7, 16, 60])
def test_a_cross_covariance_is_decomposed_as_a_dense_one_is(n, center):
    d = 16
    h, g = normal(n, d, seed=n) + 1.0, normal(n, d, seed=n + 100) - 2.0
    u, s, _ = np.linalg.svd(dense_covariance(h, g, center))
    found = CrossCovariance.of(h, g, center)
    assert found.left.shape == (d, min(n, d))
    np.testing.assert_allclose(found.singular_values, s[: min(n, d)], rtol=1e-9, atol=1e-12)
    for rank in range(1, min(n - center, d) + 1):
        basis = found.leading(rank).basis.numpy()
        np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)
        np.testing.assert_allclose(basis @ basis.T, u[:, :rank] @ u[:, :rank].T, atol=1e-8)


def test_the_sides_are_not_interchangeable():
    h, g = normal(40, 6), normal(40, 6, seed=1)
    ours, swapped = (CrossCovariance.of(*sides).leading(2).basis for sides in ((h, g), (g, h)))
    assert not torch.allclose(ours @ ours.T, swapped @ swapped.T, atol=0.1)


def test_ranks_beyond_what_the_rows_span_are_refused():
    h, g = normal(5, 9), normal(5, 9, seed=1)
    plain, centered = CrossCovariance.of(h, g), CrossCovariance.of(h, g, center=True)
    twice = CrossCovariance.of(h.repeat(2, 1), g.repeat(2, 1))
    assert (plain.leading(5).rank, centered.leading(4).rank, twice.leading(5).rank) == (5, 4, 5)
    for covariance, rank, most in ((plain, 6, 5), (plain, 0, 5), (plain, -1, 5), (centered, 5, 4), (twice, 6, 5)):
        with pytest.raises(InputError, match=rf"rank of {rank} was asked for; .* support 1 to {most} "):
            covariance.leading(rank)


def test_explaining_cuts_at_the_share():
    covariance = CrossCovariance.of(normal(30, 8), normal(30, 8, seed=1))
    energy = covariance.singular_values**2
    share = float((energy[:3].sum() + energy[:4].sum()) / 2 / energy.sum())
    assert covariance.explaining(share).rank == 4
    assert torch.equal(covariance.explaining(share).basis, covariance.left[:, :4])
    assert covariance.explaining(share, "singular_values").rank > 4
    assert torch.equal(covariance.explaining(share).singular_values, covariance.singular_values)


# --- explained variance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "share", "squared", "plain"),
    [
        ([2.0, 1.0, 1.0], 0.5, 1, 1),  # 4/6 | 2/4
        ([2.0, 1.0, 1.0], 0.51, 1, 2),  # 4/6 | 3/4
        ([2.0, 1.0, 1.0], 0.75, 2, 2),  # 5/6 | 3/4
        ([2.0, 1.0, 1.0], 0.84, 3, 3),  # 5/6 < 0.84
        ([3.0, 1.0], 0.9, 1, 2),  # 9/10 | 3/4
        ([3.0, 1.0], 0.901, 2, 2),
        ([1.0, 1.0, 1.0, 1.0], 0.25, 1, 1),
        ([1.0, 1.0, 1.0, 1.0], 1.0, 4, 4),
        ([5.0, 0.0, 0.0], 1.0, 1, 1),
        ([5.0, 1e-3, 1e-17], 1.0, 2, 2),  # the last is rounding
        ([0.1] * 10, 1.0, 10, 10),
        ([9e6, *[1e-3] * 49], 1.0, 50, 50),  # beside a massive one, their squares are lost in a sum of squares
        ([9e6, *[1e-3] * 49], 0.9999, 1, 1),
        ([7.0], 1e-9, 1, 1),
    ],
)
def test_the_rank_that_explains_a_share(values, share, squared, plain):
    singular_values = torch.tensor(values, dtype=torch.float64)
    assert rank_explaining(singular_values, share) == squared
    assert rank_explaining(singular_values, share, "squared") == squared
    assert rank_explaining(singular_values, share, "singular_values") == plain


def test_all_of_a_cross_covariance_with_a_massive_coordinate_is_all_of_its_directions():
    h, g = normal(300, 50, seed=3), normal(300, 50, seed=4)
    h[:, 7] += 3000.0
    g[:, 7] += 3000.0
    assert CrossCovariance.of(h, h + 0.1 * g).explaining(1.0).rank == 50


def test_the_rank_grows_with_the_share_and_not_with_the_scale():
    singular_values = normal(40).abs().sort(descending=True).values
    shares = np.linspace(0.01, 1, 60)
    ranks = [rank_explaining(singular_values, float(share)) for share in shares]
    assert ranks == sorted(ranks)
    assert ranks == [rank_explaining(singular_values * 1e6, float(share)) for share in shares]
    for share, rank in zip(shares, ranks, strict=True):
        energy = (singular_values**2).numpy()
        assert energy[:rank].sum() >= share * energy.sum() * (1 - 1e-12)
        assert energy[: rank - 1].sum() < share * energy.sum()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, 99.8, float("nan"), float("inf")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match=rf"must lie in \(0, 1\], and {share} was given"):
        rank_explaining(torch.ones(3), share)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_spectrum_of_zeros_is_refused(share):
    with pytest.raises(InputError, match="cross-covariance is zero"):
        rank_explaining(torch.zeros(3), share)
    same_rows = normal(1, 4).expand(6, 4)
    with pytest.raises(InputError, match="all rows are the same"):
        CrossCovariance.of(same_rows, normal(6, 4), center=True).explaining(share)
    with pytest.raises(InputError, match="support 1 to 0"):
        CrossCovariance.of(torch.zeros(6, 4), normal(6, 4)).leading(1)


# --- the difference of two projectors --------------------------------------------------------------------------------


@pytest.mark.parametrize(("k_positive", "k_negative"), [(1, 1), (3, 3), (4, 2), (2, 5), (7, 7), (12, 3), (12, 12)])
def test_the_compact_form_is_the_difference_and_its_eigenvalues_are_sines_of_angles(k_positive, k_negative):
    d, seed = 12, 1
    positive, negative = orthonormal(d, k_positive, seed), orthonormal(d, k_negative, seed + 50)
    w, lam = difference_of_projectors(positive, negative)
    dense = (positive @ positive.T - negative @ negative.T).numpy()
    np.testing.assert_allclose((w * lam) @ w.T, dense, atol=1e-12)
    np.testing.assert_allclose(w.T @ w, np.eye(len(lam)), atol=1e-12)
    sines = np.sin(subspace_angles(positive.numpy(), negative.numpy()))
    sines = sines[sines > 1e-7]  # scipy's zero angles are a little more
    alone = [np.sign(k_positive - k_negative)] * abs(k_positive - k_negative)
    np.testing.assert_allclose(lam, sorted([*sines, *-sines, *alone], reverse=True), atol=1e-12)


@pytest.mark.parametrize("extra", [0, 1, 4])
def test_the_compact_form_holds_at_small_and_large_angles_together(extra):
    angles = [1e-12, 1e-7, 1e-4, 0.01, 0.1, 0.14, 0.15, 0.8, 0.8, 1.5, np.pi / 2]
    for positive, negative in (planted(angles, extra, 5), planted(angles, extra, 5)[::-1]):
        w, lam = difference_of_projectors(positive, negative)
        np.testing.assert_allclose((w * lam) @ w.T, positive @ positive.T - negative @ negative.T, atol=1e-13)
        np.testing.assert_allclose(w.T @ w, np.eye(len(lam)), atol=1e-13)
        alone = [float(np.sign(positive.shape[1] - negative.shape[1]))] * extra
        sines = [np.sin(angle) for angle in angles[1:]]
        np.testing.assert_allclose(lam, sorted([*sines, *(-s for s in sines), *alone], reverse=True), atol=1e-13)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_equal_subspaces_leave_nothing(k):
    basis = orthonormal(12, k, 0)
    turned = basis @ orthonormal(k, k, 1)
    for other in (basis, turned, -basis):
        w, lam = difference_of_projectors(basis, other)
        assert w.shape == (12, 0)
        assert lam.shape == (0,)


def test_a_shared_direction_drops_out():
    axes = torch.eye(6, dtype=torch.float64)
    w, lam = difference_of_projectors(axes[:, [0, 1]], axes[:, [0, 2, 3]])
    np.testing.assert_allclose(lam, [1, -1, -1], atol=1e-14)
    np.testing.assert_allclose(w.abs()[:, 0], axes[:, 1], atol=1e-14)
    np.testing.assert_allclose((w * lam) @ w.T, np.diag([0, 1, -1, -1, 0, 0]), atol=1e-14)


def test_a_small_angle_is_kept():
    angle = 1e-6
    axes = torch.eye(4, dtype=torch.float64)
    turned = np.cos(angle) * axes[:, :1] + np.sin(angle) * axes[:, 1:2]
    _, lam = difference_of_projectors(axes[:, :1], turned)
    np.testing.assert_allclose(lam, [np.sin(angle), -np.sin(angle)], rtol=1e-8)


# --- principal angles and effective rank -----------------------------------------------------------------------------


def planted(angles: list[float], extra: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two subspaces at these angles, turned at random; the second has so many dimensions more."""
    k = len(angles)
    d = 2 * k + extra + 3
    axes = orthonormal(d, d, seed)
    theta = torch.tensor(angles, dtype=torch.float64)
    turned = axes[:, :k] * theta.cos() + axes[:, k : 2 * k] * theta.sin()
    other = torch.cat([turned, axes[:, 2 * k : 2 * k + extra]], dim=1)
    return axes[:, :k] @ orthonormal(k, k, seed + 1), other @ orthonormal(k + extra, k + extra, seed + 2)


@pytest.mark.parametrize(
    "degrees",
    [
        [1e-9],
        [90 - 1e-9],
        [0.0, 1e-9, 1e-7, 1e-4, 1.0, 30.0],
        [44.999999, 45.0, 45.000001],
        [60.0, 89.9, 89.999999, 90 - 1e-9, 90.0],
        [1e-9, 45.0, 90.0],
        [30.0, 30.0, 30.0],
        [0.0, 0.0],
        [90.0, 90.0],
    ],
)
@pytest.mark.parametrize("extra", [0, 1, 4])
def test_planted_angles_come_back_from_tiny_to_nearly_right(degrees, extra):
    angles = np.deg2rad(degrees).tolist()
    one, other = planted(angles, extra, seed=3)
    for found in (principal_angles(one, other), principal_angles(other, one)):
        np.testing.assert_allclose(found, angles, atol=1e-14, rtol=1e-13)


def test_a_subspace_is_at_no_angle_to_itself_and_to_what_holds_it():
    whole = orthonormal(9, 5, 0)
    for part in (whole, whole[:, :2], whole @ orthonormal(5, 3, 1)):
        np.testing.assert_allclose(principal_angles(part, whole), 0, atol=1e-14)
    np.testing.assert_allclose(principal_angles(whole[:, :2], whole[:, 2:]), np.pi / 2, atol=1e-14)


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([5.0], 1),
        ([5.0, 0.0, 0.0], 1),
        ([2.0, 2.0, 2.0, 2.0], 4),
        ([1e-8] * 3, 3),
        ([3.0, 3.0, 0.0], 2),
        ([2.0, 1.0], 5 / 4**0.8),  # energies 4/5 and 1/5: exp(-(4/5) ln(4/5) - (1/5) ln(1/5))
        ([0.0, 0.0], 0),
        ([], 0),
    ],
)
def test_the_effective_rank_of_known_spectra(values, rank):
    assert effective_rank(torch.tensor(values)) == pytest.approx(rank, rel=1e-6)


def test_the_effective_rank_knows_no_scale_and_lies_below_the_number_of_values():
    values = normal(30).abs()
    assert effective_rank(values) == pytest.approx(effective_rank(1e5 * values))
    energies = values.numpy() ** 2 / (values.numpy() ** 2).sum()
    assert effective_rank(values) == pytest.approx(float(np.exp(-(energies * np.log(energies)).sum())))
    assert 1 < effective_rank(values) < 30


# --- running sums ------------------------------------------------------------------------------------------------------


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
