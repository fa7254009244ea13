import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from sea_lens.errors import InputError
from sea_lens.methods.sea.spectral import (
    CrossCovariance,
    basis_of_projector,
    difference_of_projectors,
    effective_rank,
    principal_angles,
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
@pytest.mark.parametrize("n", [1, 7, 15, 16, 17, 60])
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


def test_float32_activations_are_decomposed_in_float64():
    h, g = normal(5, 9).float(), normal(5, 9, seed=1).float()
    found = CrossCovariance.of(h, g)
    assert found.left.dtype == found.singular_values.dtype == torch.float64
    assert torch.equal(found.left, CrossCovariance.of(h.double(), g.double()).left)


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
        ([7.0], 1e-9, 1, 1),
    ],
)
def test_the_rank_that_explains_a_share(values, share, squared, plain):
    singular_values = torch.tensor(values, dtype=torch.float64)
    assert rank_explaining(singular_values, share) == squared
    assert rank_explaining(singular_values, share, "squared") == squared
    assert rank_explaining(singular_values, share, "singular_values") == plain


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
@pytest.mark.parametrize("seed", [0, 1])
def test_the_compact_form_is_the_difference_and_its_eigenvalues_are_sines_of_angles(k_positive, k_negative, seed):
    d = 12
    positive, negative = orthonormal(d, k_positive, seed), orthonormal(d, k_negative, seed + 50)
    w, lam = difference_of_projectors(positive, negative)
    dense = (positive @ positive.T - negative @ negative.T).numpy()
    np.testing.assert_allclose((w * lam) @ w.T, dense, atol=1e-12)
    np.testing.assert_allclose(w.T @ w, np.eye(len(lam)), atol=1e-12)
    sines = np.sin(subspace_angles(positive.numpy(), negative.numpy()))
    sines = sines[sines > 1e-7]  # scipy's zero angles are a little more
    alone = [np.sign(k_positive - k_negative)] * abs(k_positive - k_negative)
    np.testing.assert_allclose(lam, sorted([*sines, *-sines, *alone], reverse=True), atol=1e-12)


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


def test_exchanging_the_subspaces_negates_the_eigenvalues():
    positive, negative = orthonormal(10, 3, 0), orthonormal(10, 2, 1)
    _, lam = difference_of_projectors(positive, negative)
    _, exchanged = difference_of_projectors(negative, positive)
    np.testing.assert_allclose(exchanged, -lam.flip(0), atol=1e-12)


# --- principal angles and effective rank -----------------------------------------------------------------------------


@pytest.mark.parametrize(("k_one", "k_other"), [(1, 1), (3, 3), (4, 2), (2, 5), (7, 7), (12, 3), (12, 12)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_principal_angles_are_scipys_in_ascending_order(k_one, k_other, seed):
    one, other = orthonormal(12, k_one, seed), orthonormal(12, k_other, seed + 50)
    found = principal_angles(one, other)
    assert found.shape == (min(k_one, k_other),)
    assert found.dtype == torch.float64
    assert (found.diff() >= -1e-12).all()
    np.testing.assert_allclose(
        found, subspace_angles(one.numpy(), other.numpy())[::-1], atol=1e-7
    )  # its zeros are 1e-8
    np.testing.assert_allclose(found, principal_angles(other, one), atol=1e-12)


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


def test_sines_of_the_angles_are_the_eigenvalues_of_the_difference():
    one, other = orthonormal(20, 6, 0), orthonormal(20, 4, 1)
    _, lam = difference_of_projectors(one, other)
    sines = principal_angles(one, other).sin()
    np.testing.assert_allclose(lam, sorted([*sines, *-sines, 1.0, 1.0], reverse=True), atol=1e-12)


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


# --- the basis of a stored projector ---------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 8, 9, 10, 16, 31, 64])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.03)]
)
def test_the_basis_of_a_projector_of_any_rank_and_precision(d, dtype, tolerance):
    for rank in sorted({0, 1, d // 2, d - 1, d}):
        exact = orthonormal(d, rank, seed=d)
        stored = (exact @ exact.T).to(dtype)
        basis = basis_of_projector(stored, tolerance)
        assert (basis.shape, basis.dtype) == ((d, rank), torch.float64)
        np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)
        np.testing.assert_allclose(basis @ basis.T, exact @ exact.T, atol=tolerance)
        assert torch.equal(basis, basis_of_projector(stored.double(), tolerance))


def test_the_basis_of_rounded_entries_is_better_than_they_are():
    """It spans the leading eigenspace of what is stored, not the range of a few of its columns."""
    for rank in range(1, 49):
        exact = orthonormal(64, rank, seed=rank)
        stored = (exact @ exact.T).bfloat16().double().numpy()
        basis = basis_of_projector(torch.tensor(stored), 0.03).numpy()
        leading = np.linalg.eigh(stored)[1][:, -rank:]
        from_leading, from_stored = (
            np.linalg.norm(other - basis @ basis.T, 2) for other in (leading @ leading.T, stored)
        )
        assert from_leading < 0.2 * from_stored


def test_bases_leave_torchs_own_randomness_alone():
    projector = torch.diag(torch.tensor([1.0, 0.0, 1.0]))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    basis_of_projector(projector)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("entry", [(5, 5), (0, 0), (0, 5)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-3])
def test_entries_may_be_off_by_the_tolerance_and_no_more(entry, tolerance):
    off = torch.zeros(6, 6, dtype=torch.float64)
    off[entry] = off[entry[::-1]] = 1.0
    projector = torch.diag(torch.tensor([1.0, 1.0, 0, 0, 0, 0], dtype=torch.float64))
    assert basis_of_projector(projector, tolerance).shape == (6, 2)
    if entry != (0, 5):  # an off-diagonal one turns the subspace, so that the nearest projector goes along
        assert basis_of_projector(projector + 0.9 * tolerance * off, tolerance).shape == (6, 2)
        with pytest.raises(
            InputError, match=f"of rank 2, differs from it by .* in an entry, and {tolerance:g} is allowed"
        ):
            basis_of_projector(projector + 1.1 * tolerance * off, tolerance)
    lopsided = off.triu(1)
    if lopsided.any():
        assert basis_of_projector(projector + 0.9 * tolerance * lopsided, tolerance).shape == (6, 2)
        with pytest.raises(InputError, match="differs from its transpose by"):
            basis_of_projector(projector + 1.1 * tolerance * lopsided, tolerance)


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (torch.diag(torch.tensor([1.0, float("nan")])), "holds NaN or infinity"),
        (torch.diag(torch.tensor([1.0, float("inf")])), "holds NaN or infinity"),
        (torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "differs from its transpose by 1"),  # idempotent
        (torch.diag(torch.tensor([0.5, 0.5])), r"of rank \d, differs from it by 0\."),  # symmetric
        (torch.diag(torch.tensor([2.0, -1.0])), r"of rank \d, differs from it by "),
        (torch.diag(torch.tensor([1.001, 1.0])), r"of rank 2, differs from it by 0\.001 "),
        (torch.diag(torch.tensor([0.4, 0.0])), r"of rank 0, differs from it by 0\.4 "),
        (torch.diag(torch.tensor([-1.0, 0.0])), "its trace is -1 at width 2"),
        (torch.diag(torch.tensor([2.0, 2.0])), "its trace is 4 at width 2"),
    ],
)
def test_what_is_no_orthogonal_projector_is_refused_with_the_reason(matrix, why):
    with pytest.raises(InputError, match=f"not an orthogonal projector: .*{why}"):
        basis_of_projector(matrix)
