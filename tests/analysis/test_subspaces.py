from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import sea_lens as sl
from sea_lens import Activations, AffineEdit, Editor, Site, fit_sea
from sea_lens.analysis.subspaces import measure_spectra
from sea_lens.errors import ModelMismatchError
from sea_lens.methods.sea.feature_space import Tanh
from sea_lens.models.activations import ROLES

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")

N, D = 60, 12


def make_activations(layers=(0, 3), n=N, d=D, seed=0, dtype=torch.float32, mean=2.0, site="resid_post"):
    """Roles that share a mean and half of their variation."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(n, d, generator=generator, dtype=torch.float64)

    roles = {role: {} for role in ROLES}
    for layer in layers:
        common, scales = normal(), torch.linspace(3, 0.3, d, dtype=torch.float64)
        for role in ROLES:
            roles[role][layer] = ((common + normal()) * scales + mean).to(dtype)
    return Activations.from_tensors(**roles, site=site)


def arrays(activations, layer, center):
    found = [activations[role][layer].double().numpy() for role in ("neutral", "positive", "negative")]
    return [one - one.mean(0) for one in found] if center else found


def dense_svd(neutral, other):
    """Left singular vectors and singular values of the dense cross-covariance."""
    u, s, _ = np.linalg.svd(neutral.T @ other / len(neutral))
    return u, s


# --- spectra, ranks, angles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("center", "n", "size"),
    [
        (False, N, {"ranks": 4}),
        (True, N, {"ranks": (2, 5)}),
        (False, 7, {"ranks": (6, 3)}),
        (True, N, {"explained_variance": (0.9, 0.99)}),
        (True, 7, {"ranks": 1}),
    ],
)
def test_spectra_ranks_and_angles_are_those_of_the_dense_cross_covariances(center, n, size):
    activations = make_activations(n=n)
    editor = fit_sea(activations, **size, center=center)
    spectra = measure_spectra(editor, activations)
    assert spectra.table.index.tolist() == [0, 3]
    for layer, row in spectra.table.iterrows():
        neutral, positive, negative = arrays(activations, layer, center)
        bases = []
        for side, other in (("positive", positive), ("negative", negative)):
            u, s = dense_svd(neutral, other)
            energies = s**2 / (s**2).sum()
            curve = spectra.curves[(spectra.curves["layer"] == layer) & (spectra.curves["side"] == side)]
            assert curve["rank"].tolist() == list(range(1, min(n, D) + 1))
            np.testing.assert_allclose(curve["singular_value"], s[: len(curve)], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(curve["explained"], energies.cumsum()[: len(curve)], rtol=1e-9)
            assert curve["explained"].iloc[-1] == 1
            kept = energies[energies > 1e-25]
            assert row[f"effective_rank_{side}"] == pytest.approx(np.exp(-(kept * np.log(kept)).sum()))
            rank = int(row[f"rank_{side}"])
            assert rank == editor.card.reports[Site(layer)][f"rank_{side}"]
            if "explained_variance" in size:
                share = size["explained_variance"][side == "negative"]
                assert energies[: rank - 1].sum() < share <= energies[:rank].sum()
            bases.append(u[:, :rank])
        if "ranks" in size:
            pair = size["ranks"] if isinstance(size["ranks"], tuple) else (size["ranks"],) * 2
            assert (row["rank_positive"], row["rank_negative"]) == pair
        expected = np.rad2deg(subspace_angles(*bases))[::-1]
        angles = spectra.angles[spectra.angles["layer"] == layer]
        assert angles["index"].tolist() == list(range(len(expected)))
        np.testing.assert_allclose(angles["degrees"], expected, atol=1e-5)
        found = row[["smallest_angle", "median_angle", "largest_angle"]].astype(float)
        np.testing.assert_allclose(found, [expected[0], np.median(expected), expected[-1]], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"projections": "reversed"}, {"merge": "sum"}])
def test_gains_are_the_sines_of_the_angles_and_one_per_direction_of_one_side_only(options, reads_back):
    activations = make_activations()
    spectra = measure_spectra(fit_sea(activations, ranks=(5, 2), **options, dtype=torch.float64), activations)
    for layer, row in spectra.table.iterrows():
        angles, gains = (frame[frame["layer"] == layer] for frame in (spectra.angles, spectra.gains))
        sines, gains = np.sin(np.deg2rad(angles["degrees"])).tolist(), gains["gain"]
        assert sorted(gains.abs()) == pytest.approx(sorted([*sines, *sines, 1, 1, 1]), abs=1e-9)
        assert (row["least_gain"], row["greatest_gain"]) == (gains.min(), gains.max())
    reads_back(spectra)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 20.0, 70.0, 90.0])
def test_a_planted_angle_is_measured(angle):
    """Neutral activations on two axes; positives covary with the first, negatives with a line at the angle to it."""
    theta = np.deg2rad(angle)
    directions = torch.tensor([[1.0, 0.0], [np.cos(theta), np.sin(theta)]], dtype=torch.float64)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    coordinates = signs.repeat(5, 1)
    neutral = torch.nn.functional.pad(coordinates, (0, 4))
    sides = []
    for direction in directions:
        side = torch.zeros_like(neutral)
        side[:, 3] = coordinates @ direction
        sides.append({2: side})
    activations = Activations.from_tensors(neutral={2: neutral}, positive=sides[0], negative=sides[1])
    row = measure_spectra(fit_sea(activations, ranks=1, merge="sum", dtype=torch.float64), activations).table.loc[2]
    assert row["smallest_angle"] == row["largest_angle"] == pytest.approx(angle, abs=1e-10)
    assert row["effective_rank_positive"] == pytest.approx(1)
    # A difference of two projectors at an angle scales their plane by its sine, wherever a vector in it points.
    assert row["moved_neutral"] == pytest.approx(np.sin(theta), abs=1e-12)


def test_angles_of_a_feature_space_are_between_subspaces_of_features():
    activations = make_activations(layers=(0,))
    editor = fit_sea(activations, ranks=2, feature_map=Tanh(4.0), feature_unit=2.0)
    phi = Tanh(4.0)
    neutral, positive, negative = (
        phi.forward((activations[role][0].double() / 2.0).clamp(*phi.domain)).numpy()
        for role in ("neutral", "positive", "negative")
    )
    bases = [dense_svd(neutral, side)[0][:, :2] for side in (positive, negative)]
    spectra = measure_spectra(editor, activations)
    np.testing.assert_allclose(spectra.angles["degrees"], np.rad2deg(subspace_angles(*bases))[::-1], atol=1e-5)
    assert spectra.gains.empty  # its directions are of features
    assert spectra.table["greatest_gain"].isna().all()


# --- how far activations move ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("merge", "center"), [("norm", True), ("norm", False), ("sum", True)])
def test_movement_and_cosine_are_those_of_the_published_formula(merge, center):
    activations = make_activations()
    table = measure_spectra(fit_sea(activations, ranks=(3, 2), merge=merge, center=center), activations).table
    for layer in activations.layers:
        neutral, positive, negative = arrays(activations, layer, center)
        up, down = (dense_svd(neutral, side)[0][:, :rank] for side, rank in ((positive, 3), (negative, 2)))
        difference = up @ up.T - down @ down.T
        mean = activations.neutral[layer].double().numpy().mean(0) if center else 0.0
        for role in ROLES:
            h = activations[role][layer].double().numpy()
            after = h + (h - mean) @ difference
            norms = np.linalg.norm(h, axis=1)
            if merge == "norm":
                after *= (norms / np.linalg.norm(after, axis=1))[:, None]
            moved = np.linalg.norm(after - h, axis=1) / norms
            cosines = (after * h).sum(1) / norms / np.linalg.norm(after, axis=1)
            assert table.at[layer, f"cosine_{role}"] == pytest.approx(cosines.mean(), abs=1e-5)
            assert table.at[layer, f"moved_{role}"] == pytest.approx(moved.mean(), abs=1e-5)


def test_a_scaled_view_moves_more_or_less_and_has_the_same_spectra():
    activations = make_activations(layers=(0, 1, 5))
    editor = fit_sea(activations, ranks=2, merge="sum")
    one, twice, none = (measure_spectra(editor.scaled(factor), activations) for factor in (1.0, 2.0, 0.0))
    for role in ROLES:
        np.testing.assert_allclose(twice.table[f"moved_{role}"], 2 * one.table[f"moved_{role}"], rtol=1e-5)
        assert (none.table[f"moved_{role}"] == 0).all()
        np.testing.assert_allclose(none.table[f"cosine_{role}"], 1)
    np.testing.assert_allclose(twice.gains["gain"], 2 * one.gains["gain"])
    for table in ("curves", "angles"):
        assert getattr(one, table).equals(getattr(twice, table))
    part = measure_spectra(editor.at_layers([1, 5]), activations)
    assert part.table.equals(one.table.loc[[1, 5]])
    assert sorted(part.angles["layer"].unique()) == sorted(part.curves["layer"].unique()) == [1, 5]


def test_editors_without_subspaces_are_measured_by_what_their_edits_have(reads_back):
    """A shift, and an oblique edit at another site, on activations without neutral ones."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(D, 2, generator=generator) for _ in range(2))
    shift = torch.full((D,), 0.5)
    heads = Site(1, "attn.hook_z")
    editor = Editor({0: AffineEdit.of_shift(shift).scaled(2.0), heads: AffineEdit(left, right)})
    sides = {role: {0: torch.ones(4, D), heads: torch.randn(4, D)} for role in ("positive", "negative")}
    activations = Activations.from_tensors(**sides)
    spectra = measure_spectra(editor, activations)
    assert spectra.table.index.tolist() == [str(Site(0)), str(heads)]
    assert spectra.gains["gain"].tolist() == pytest.approx([D**0.5, *(left * right).sum(0).tolist()])
    assert spectra.table["rank"].tolist() == [0, 2]
    assert spectra.table["moved_positive"].iloc[0] == pytest.approx(1.0)
    assert spectra.table["cosine_negative"].iloc[0] == pytest.approx(1.0)
    assert not {"moved_neutral", "rank_positive"} & set(spectra.table)
    assert spectra.curves.empty
    assert spectra.angles.empty
    reads_back(spectra)
    control = sl.random_editor_like(fit_sea(make_activations(), ranks=2), seed=0)
    assert measure_spectra(control, make_activations()).angles.empty  # its directions are not those of a fit


def test_absent_layers_are_refused():
    editor = fit_sea(make_activations(layers=(0, 1, 4)), ranks=1)
    with pytest.raises(ModelMismatchError, match=r"no (layer|site) .*1"):
        measure_spectra(editor, make_activations())
    assert measure_spectra(replace(editor).at_layers([0]), make_activations()).table.index.tolist() == [0]
