import numpy as np
import pytest
import torch

from sea_lens.errors import InputError
from sea_lens.methods.sea.leading import ANGLE, LeadingDirections
from sea_lens.methods.sea.operators import OfMatrix, OfRows
from sea_lens.methods.sea.rows import Rows
from sea_lens.methods.sea.spectral import CrossCovariance, rank_explaining
from sea_lens.methods.sea.squared import SquaredSpectrum

D = 240


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(d: int, k: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(d, k, seed=seed))[0]


def rows_with(spectrum: torch.Tensor, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sides of n rows whose uncentered cross-covariance has these singular values."""
    k = len(spectrum)
    common, left, right = (orthonormal(size, k, seed + shift) for shift, size in enumerate((n, D, D)))
    return (common * spectrum.sqrt() * n) @ left.T, (common * spectrum.sqrt()) @ right.T


def decay(power: float, k: int) -> torch.Tensor:
    return torch.arange(1, k + 1, dtype=torch.float64) ** -power


def activations(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A power law in a turned basis, half of it shared, around a dominant mean, with a massive coordinate; in float32."""
    scale, turn = decay(0.5, d), orthonormal(d, d, seed)
    shared, mean = normal(n, d, seed=seed + 1), normal(1, d, seed=seed + 2) / d**0.5
    mean[0, 3] = 2.0
    sides = [(shared + normal(n, d, seed=seed + extra)) * scale @ turn + mean for extra in (3, 4)]
    return sides[0].float(), sides[1].float()


def exact(h: torch.Tensor, g: torch.Tensor, center: bool = False) -> tuple[np.ndarray, np.ndarray]:
    h, g = (side.double().numpy() for side in (h, g))
    if center:
        h, g = h - h.mean(0), g - g.mean(0)
    u, s, _ = np.linalg.svd(h.T @ g / len(h))
    return u, s


def both_ways(h: torch.Tensor, g: torch.Tensor, center: bool = False) -> list[LeadingDirections]:
    """By the matrix itself, and by products with rows: with Gram matrices in float64, and in float32 as far as that goes."""
    left, right = Rows(h, center), Rows(g, center)
    by_rows = [OfRows(left, right, exact) for exact in (True, False)]
    return [
        LeadingDirections(operator, most=160) for operator in (OfMatrix(left.all().T @ right.all() / len(h)), *by_rows)
    ]


def assert_same_subspace(basis: torch.Tensor, u: np.ndarray, k: int, tolerance: float = 1e-8) -> None:
    found = basis.numpy()
    assert found.shape == (len(u), k)
    np.testing.assert_allclose(found.T @ found, np.eye(k), atol=1e-12)
    outside = found - u[:, :k] @ (u[:, :k].T @ found)
    assert np.linalg.norm(outside, 2) < tolerance


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [180, 500])
def test_activations_with_a_dominant_mean_give_the_subspaces_of_the_whole_decomposition(n, center):
    h, g = activations(n, D, seed=n)
    u, s = exact(h, g, center)
    for search in both_ways(h, g, center):
        for share in (0.3, 0.7, 0.9):
            k = rank_explaining(torch.tensor(s), share)
            assert_same_subspace(search.explaining(share), u, k)
        for k in (1, 2, 20):
            assert_same_subspace(search.leading(k), u, k)


@pytest.mark.parametrize("power", [0.75, 1.0, 2.0, 4.0])
def test_any_decay_is_either_right_or_left_to_the_whole_decomposition(power):
    h, g = rows_with(decay(power, 200), n=200)
    u, s = exact(h, g)
    for search in both_ways(h, g):
        certified = 0
        for share in (0.2, 0.5, 0.9, 0.99, 0.9999):
            basis = search.explaining(share)
            if basis is not None:
                certified += 1
                assert_same_subspace(basis, u, rank_explaining(torch.tensor(s), share))
        assert certified >= {0.75: 1, 1.0: 3}.get(power, 5)


@pytest.mark.parametrize("copies", [3, 40])
def test_repeated_singular_values_are_cut_around_and_never_through(copies):
    """40 copies are more than a block holds, so that an iteration from one block alone would miss some."""
    values = torch.cat([torch.tensor([9.0, 8.0]), torch.full((copies,), 4.0), decay(1.0, 60)]).double()
    h, g = rows_with(values, n=200)
    u, s = exact(h, g)
    total = float((s**2).sum())
    for search in both_ways(h, g):
        assert search.leading(2 + copies // 2) is None
        assert search.explaining((81 + 64 + 16 * (copies // 2) - 8) / total) is None
        for k in (2, 2 + copies):
            assert_same_subspace(search.leading(k), u, k)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_share_at_the_very_edge_is_left_to_the_whole_decomposition(k):
    h, g = rows_with(decay(1.5, 150), n=180)
    u, s = exact(h, g)
    edge = float((s[:k] ** 2).sum() / (s**2).sum())
    for search in both_ways(h, g):
        for share in (edge, edge * (1 - 1e-13), min(1.0, edge * (1 + 1e-13))):
            assert search.explaining(share) is None
        assert_same_subspace(search.explaining(edge * (1 - 1e-9)), u, k)
        assert_same_subspace(search.explaining(edge * (1 + 1e-9)), u, k + 1)


def test_nearly_equal_singular_values_are_told_apart_or_left():
    for gap in (1e-3, 1e-9):
        values = torch.cat([torch.tensor([5.0, 3.0, 3.0 * (1 - gap)]), decay(1.0, 100)]).double()
        h, g = rows_with(values, n=200)
        u, _ = exact(h, g)
        for search in both_ways(h, g):
            basis = search.leading(2)
            assert basis is None or gap > 1e-9
            if basis is not None:
                assert_same_subspace(basis, u, 2, tolerance=1e-12 / gap + 1e-8)


@pytest.mark.parametrize(("n", "rank"), [(530, 5), (530, 30), (600, 16), (600, 17)])
def test_a_cross_covariance_of_low_rank_is_cut_at_its_rank_and_no_further(n, rank):
    common, left, right = (orthonormal(size, rank, seed) for seed, size in enumerate((n, 560, 560)))
    h, g = (common * decay(0.3, rank)) @ left.T, common @ right.T
    covariance = CrossCovariance.of(h, g)
    for cut in (covariance.leading(rank), covariance.explaining(1 - 1e-9), covariance.explaining(1.0)):
        assert_same_subspace(cut.basis, left.numpy(), rank)
    with pytest.raises(InputError, match=f"support 1 to {rank} "):
        covariance.leading(rank + 1)
    with pytest.raises(InputError, match=f"support 1 to {rank} "):
        covariance.leading(0)


def test_rows_may_be_there_twice():
    h, g = activations(100, D, seed=5)
    for sides in ((h.repeat(2, 1), g.repeat(2, 1)), (h.repeat(2, 1), torch.cat([g, g.flip(0)]))):
        for center in (False, True):
            u, s = exact(*sides, center)
            for search in both_ways(*sides, center):
                k = rank_explaining(torch.tensor(s), 0.8)
                assert_same_subspace(search.explaining(0.8), u, k)


def test_a_direction_that_the_iteration_never_meets_is_not_certified_away():
    """Kept blind to the second direction, the iteration converges on the others; what is left over tells."""
    h, g = rows_with(torch.cat([torch.tensor([9.0, 7.0, 5.0]), 3 * decay(1.0, 180)]).double(), n=200)
    u, _ = exact(h, g)
    hidden = torch.tensor(u[:, 1])

    class Blind(LeadingDirections):
        def _orthonormal(self, x, noise):
            return super()._orthonormal(x - (x @ hidden)[:, None] * hidden, noise)

    search = Blind(OfMatrix(h.T @ g / len(h)), most=112)
    assert search.leading(1) is not None
    assert search.leading(2) is None
    assert search.leading(3) is None
    rung = search._rungs[112]
    np.testing.assert_allclose(rung.values[:3].sqrt(), [9, 5, 3], rtol=1e-12)  # and converged they are
    assert torch.linalg.matrix_norm(rung.coupling[:, :3]) < 1e-9
    assert search.operator.energy - rung.captured > 49 - 1e-9


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_unit_of_activations_does_not_matter(scale):
    h, g = activations(150, D, seed=2)
    for ours, scaled in zip(both_ways(h, g), both_ways(h * scale, g * scale), strict=True):
        one, other = ours.explaining(0.95), scaled.explaining(0.95)
        assert_same_subspace(other, one.numpy(), one.shape[1])


def test_results_are_the_same_to_the_bit_and_know_nothing_of_earlier_questions():
    h, g = activations(180, D, seed=7)
    shares = (0.97, 0.3, 0.9, 0.5)
    for first, second in zip(both_ways(h, g), both_ways(h, g), strict=True):
        found = [first.explaining(share) for share in shares]
        again = [second.explaining(share) for share in reversed(shares)][::-1]
        for one, other in zip(found, again, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("center", [False, True])
def test_gram_matrices_and_panels_are_those_of_the_rows(center):
    h = torch.cat([3 * normal(37, 2100, seed=0) + 50, torch.full((37, 1), 1e6 / 3, dtype=torch.float64)], dim=1)
    rows = Rows(h.float(), center)
    expected = h.float().double().numpy()
    expected = expected - expected.mean(0) if center else expected
    np.testing.assert_allclose(
        rows.gram, expected @ expected.T, rtol=1e-9, atol=1e-9 * np.abs(expected @ expected.T).max()
    )
    np.testing.assert_allclose(rows.all()[:, :2100], expected[:, :2100], atol=1e-12)
    assert not center or not rows.all()[:, 2100].any()
    assert torch.equal(torch.cat([panel for _, panel in rows.panels()], dim=1), rows.all())


@pytest.mark.parametrize(("n", "d", "center"), [(520, 560, True), (700, 520, False)])
def test_a_large_cross_covariance_gives_the_subspace_of_its_whole_decomposition(n, d, center):
    h, g = activations(n, d, seed=n)
    covariance = CrossCovariance.of(h, g, center)
    assert covariance._leading is not None
    for share in (0.5, 0.95, 0.99999):
        cut = covariance.explaining(share)
        k = rank_explaining(covariance.singular_values, share)
        assert_same_subspace(cut.basis, covariance.left.numpy(), k)
        assert torch.equal(cut.singular_values, covariance.singular_values)
    parts = [part for part in (covariance._leading, covariance._squared) if part is not None]
    assert any(part.explaining(0.95) is not None for part in parts)
    assert covariance._leading.explaining(0.99999) is None  # most of the spectrum
    assert covariance.explaining(0.9, "singular_values").rank == rank_explaining(
        covariance.singular_values, 0.9, "singular_values"
    )


def test_sides_share_what_is_computed_of_the_neutral_one_and_nothing_else():
    h, g = activations(520, 640, seed=0)
    f = activations(520, 640, seed=9)[1]
    shared = CrossCovariance.of_sides(h, [g, f])
    assert shared[0].rows[0] is shared[1].rows[0]
    for covariance, side in zip(shared, (g, f), strict=True):
        assert torch.equal(covariance.explaining(0.9).basis, CrossCovariance.of(h, side).explaining(0.9).basis)


@pytest.mark.parametrize("n", [30, 900])
def test_a_matrix_summed_up_elsewhere_gives_the_same_subspaces(n):
    h, g = activations(n, 560, seed=n)
    matrix = CrossCovariance.of_matrix(h.double().T @ g.double() / n)
    ours = CrossCovariance.of(h, g)
    for share in (0.5, 0.95):
        cut = ours.explaining(share)
        assert_same_subspace(matrix.explaining(share).basis, cut.basis.numpy(), cut.rank)


def test_rows_may_be_ill_conditioned():
    common, left, right = (orthonormal(size, 200, seed) for seed, size in enumerate((200, D, D)))
    h, g = (common * decay(4.0, 200)) @ left.T, common @ right.T
    u, _ = exact(h, g)
    for search in both_ways(h, g):
        assert_same_subspace(search.leading(2), u, 2)


@pytest.mark.parametrize("ratio", [30.0, 1e3, 1e4])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_beside_a_dominant_direction_what_is_certified_is_right(ratio, power):
    """Products of the iteration are then nearly parallel, and what rounding drops of any of them counts."""
    values = torch.cat(
        [torch.tensor([ratio], dtype=torch.float64), decay(power, 219) / (1 + 0.01 * torch.arange(219.0))]
    )
    h, g = rows_with(values, n=230)
    u, s = exact(h, g)
    certified = 0
    for search in both_ways(h, g):
        for share in (0.5, 0.99, 0.9999, 0.999999):
            basis = search.explaining(share)
            certified += basis is not None
            if basis is not None:
                assert_same_subspace(basis, u, rank_explaining(torch.tensor(s), share), tolerance=ANGLE)
        for k in (1, 2, 3, 5, 10):
            basis = search.leading(k)
            if basis is not None:
                assert_same_subspace(basis, u, k, tolerance=ANGLE)
    assert certified >= 2


# --- Gram matrices in float32 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("center", [False, True])
def test_what_float32_loses_of_a_gram_matrix_and_of_the_energy_lies_within_the_bounds(scale, center):
    h, g = (side.double() * scale for side in activations(300, D, seed=1))
    h[7] *= 300  # a massive row
    operators = [OfRows(Rows(h, center), Rows(g, center), exact) for exact in (True, False)]
    for exact, rough in ((one.left, other.left) for one, other in [operators]):
        gram, norm, bound = rough.rough_gram
        error = float(torch.linalg.matrix_norm(gram - exact.gram))
        assert 0 < error <= bound < 1e-5 * norm
    exact, rough = operators
    assert exact.doubt == 0
    assert abs(rough.energy - exact.energy) <= rough.doubt < 1e-3 * exact.energy


def test_a_share_within_the_doubt_is_settled_in_float64_and_others_need_not_be():
    h, g = activations(300, D, seed=2)
    exact, rough = (LeadingDirections(OfRows(Rows(h), Rows(g), which), most=160) for which in (True, False))
    assert torch.equal(rough.explaining(0.8), exact.explaining(0.8))
    assert not rough.operator.exact
    k = exact.explaining(0.8).shape[1]
    energies = (exact._rungs[max(exact._rungs)].values.cumsum(0) / exact.operator.energy).tolist()
    for share in (energies[k - 1] * (1 + 1e-9), energies[k - 1] * (1 - 1e-9)):
        fresh = LeadingDirections(OfRows(Rows(h), Rows(g), False), most=160)
        found = fresh.explaining(share)
        assert fresh.operator.exact
        assert torch.equal(found, exact.explaining(share))
        assert found.shape[1] == k + (share > energies[k - 1])


def test_the_bound_on_what_is_left_is_above_it_and_not_far():
    h, g = activations(300, D, seed=3)
    u, s = exact(h, g)
    for search in both_ways(h, g):
        search.leading(3)
        size = min(search._rungs)
        basis = search._basis[:size]
        rest = (torch.from_numpy(u * s).T @ (torch.eye(D, dtype=torch.float64) - basis.T @ basis)).numpy()
        left = np.linalg.norm(rest, 2) ** 2
        assert left <= search._bound(size, 8) <= 2.5 * left


# --- by squares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [60, 200])
def test_squares_give_the_subspaces_of_the_whole_decomposition(n, center):
    h, g = activations(n, D, seed=n)
    u, s = exact(h, g, center)
    squared = SquaredSpectrum(Rows(h, center), Rows(g, center))
    for share in (0.5, 0.9, 0.99):
        assert_same_subspace(squared.explaining(share), u, rank_explaining(torch.tensor(s), share))
    for k in (1, 7, n // 3):
        assert_same_subspace(squared.leading(k), u, k)
    assert squared.leading(n) is None
    assert squared.leading(0) is None


def test_squares_leave_what_they_lose_to_the_whole_decomposition():
    h, g = rows_with(torch.tensor([1.0, 0.5, 1e-7, 3e-8, 1e-8, *[1e-9] * 60], dtype=torch.float64), n=100)
    assert SquaredSpectrum(Rows(h), Rows(g)).leading(2) is None  # 100 rows in 65 dimensions
    h, g = activations(100, D, seed=0)
    twice = SquaredSpectrum(Rows(torch.cat([h, h])), Rows(torch.cat([g, g.flip(0)])))
    assert twice.explaining(0.9) is None
    common, left, right = (orthonormal(size, 200, seed) for seed, size in enumerate((200, D, D)))
    squared = SquaredSpectrum(Rows((common * decay(3.0, 200)) @ left.T), Rows(common @ right.T))
    for k in (2, 20, 150):
        basis = squared.leading(k)
        assert basis is None if k == 150 else basis is None or assert_same_subspace(basis, left.numpy(), k) is None


@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9])
def test_the_bound_on_the_angle_is_above_it_and_not_far(angle, monkeypatch):
    h, g = activations(150, D, seed=4)
    u, s = exact(h, g)
    k, squared = 12, SquaredSpectrum(Rows(h), Rows(g))
    basis = torch.from_numpy(u.T[:k].copy())
    basis[5] = np.cos(angle) * basis[5] + np.sin(angle) * torch.from_numpy(u[:, k + 4])
    values = torch.from_numpy(s[:k] ** 2)
    bound = squared._sine(basis, values, float(s[k] ** 2 / s[k - 1] ** 2))
    assert angle * (1 - 1e-6) <= bound <= 100 * angle
    monkeypatch.setattr("sea_lens.methods.sea.squared.TURNS", (6,))
    closer = squared._sine(basis, values, float(s[k] ** 2 / s[k - 1] ** 2))
    assert angle * (1 - 1e-6) <= closer <= bound
