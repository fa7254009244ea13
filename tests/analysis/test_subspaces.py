from dataclasses import replace
from math import isnan

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from sea_lens import Activations, Editor, EditorCard, fit_sea
from sea_lens.analysis.subspaces import layer_signatures, measure_spectra
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import InputError
from sea_lens.methods.sea.feature_space import Tanh
from sea_lens.models.activations import ROLES

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")

N, D = 60, 12


def make_activations(layers=(0, 3), n=N, d=D, seed=0, dtype=torch.float32, mean=2.0):
    """Roles that share a mean and half of their variation."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(n, d, generator=generator, dtype=torch.float64)

    roles = {role: {} for role in ROLES}
    for layer in layers:
        common, scales = normal(), torch.linspace(3, 0.3, d, dtype=torch.float64)
        for role in ROLES:
            roles[role][layer] = ((common + normal()) * scales + mean).to(dtype)
    return Activations.from_tensors(**roles)


def arrays(activations, layer, center):
    found = [activations[role][layer].double().numpy() for role in ("neutral", "positive", "negative")]
    return [one - one.mean(0) for one in found] if center else found


def dense_svd(neutral, other):
    """Left singular vectors and singular values of the dense cross-covariance."""
    u, s, _ = np.linalg.svd(sum(np.outer(a, b) for a, b in zip(neutral, other, strict=True)) / len(neutral))
    return u, s


# --- spectra, ranks, angles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [7, N])
@pytest.mark.parametrize(
    "size", [{"ranks": 1}, {"ranks": 4}, {"ranks": (2, 5)}, {"ranks": (6, 3)}, {"explained_variance": (0.9, 0.99)}]
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
            assert rank == editor.card.layers[layer][f"rank_{side}"]
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
        assert row["eigenvalue_error"] < 1e-5


@pytest.mark.parametrize("projections", ["both", "reversed"])
@pytest.mark.parametrize("merge", ["norm", "sum"])
def test_eigenvalues_are_the_sines_of_the_angles_in_either_order_and_merge(projections, merge):
    activations = make_activations()
    editor = fit_sea(activations, ranks=(5, 2), projections=projections, merge=merge)
    assert (measure_spectra(editor, activations).table["eigenvalue_error"] < 1e-5).all()
    exact = fit_sea(activations, ranks=(5, 2), projections=projections, merge=merge, dtype=torch.float64)
    assert (measure_spectra(exact, activations).table["eigenvalue_error"] < 1e-12).all()


def test_an_eigenvalue_that_is_off_is_reported_by_how_much():
    activations = make_activations(layers=(0,))
    editor = fit_sea(activations, ranks=3, dtype=torch.float64)
    edit = editor[0]
    values = edit.eigenvalues.clone()
    values[0] += 0.125
    changed = replace(editor, edits={0: replace(edit, eigenvalues=values)})
    assert measure_spectra(changed, activations).table.at[0, "eigenvalue_error"] == pytest.approx(0.125)


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
    spectra = measure_spectra(fit_sea(activations, ranks=1, merge="sum", dtype=torch.float64), activations)
    row = spectra.table.loc[2]
    assert row["smallest_angle"] == row["largest_angle"] == pytest.approx(angle, abs=1e-10)
    assert row["eigenvalue_error"] < 1e-12
    assert row["effective_rank_positive"] == pytest.approx(1)
    # A difference of two projectors at an angle scales their plane by its sine, wherever a vector in it points.
    assert row["moved_neutral"] == pytest.approx(np.sin(theta), abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"projections": "positive"},
        {"projections": "negative"},
        {"merge": "average"},
        {"feature_map": Tanh(4.0)},
        {"feature_map": Tanh(4.0), "merge_space": "activations"},
    ],
)
def test_edits_of_another_form_have_no_eigenvalue_error_and_all_else(options):
    activations = make_activations()
    table = measure_spectra(fit_sea(activations, ranks=3, **options), activations).table
    assert table["eigenvalue_error"].isna().all()
    assert not table.drop(columns="eigenvalue_error").isna().any(axis=None)


def test_angles_of_a_feature_space_are_between_subspaces_of_features():
    activations = make_activations(layers=(0,))
    editor = fit_sea(activations, ranks=2, feature_map=Tanh(4.0), feature_unit=2.0)
    phi = Tanh(4.0)
    neutral, positive, negative = (
        phi.forward((activations[role][0].double() / 2.0).clamp(*phi.domain)).numpy()
        for role in ("neutral", "positive", "negative")
    )
    bases = [dense_svd(neutral, side)[0][:, :2] for side in (positive, negative)]
    found = measure_spectra(editor, activations).angles["degrees"]
    np.testing.assert_allclose(found, np.rad2deg(subspace_angles(*bases))[::-1], atol=1e-5)


# --- how far activations move ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["norm", "sum"])
@pytest.mark.parametrize("center", [False, True])
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
    activations = make_activations()
    editor = fit_sea(activations, ranks=2, merge="sum")
    one, twice, none = (measure_spectra(editor.scaled(factor), activations) for factor in (1.0, 2.0, 0.0))
    for role in ROLES:
        np.testing.assert_allclose(twice.table[f"moved_{role}"], 2 * one.table[f"moved_{role}"], rtol=1e-5)
        assert (none.table[f"moved_{role}"] == 0).all()
        np.testing.assert_allclose(none.table[f"cosine_{role}"], 1)
    for table in ("curves", "angles"):
        assert getattr(one, table).equals(getattr(twice, table))
    assert one.table["eigenvalue_error"].equals(twice.table["eigenvalue_error"])


def test_a_view_of_some_layers_is_measured_at_these_alone():
    activations = make_activations(layers=(0, 1, 5))
    editor = fit_sea(activations, ranks=2)
    whole, part = measure_spectra(editor, activations), measure_spectra(editor.at_layers([1, 5]), activations)
    assert part.table.equals(whole.table.loc[[1, 5]])
    assert sorted(part.angles["layer"].unique()) == sorted(part.curves["layer"].unique()) == [1, 5]


def test_an_editor_of_another_method_and_absent_layers_are_refused():
    activations = make_activations()
    by_hand = Editor({0: AffineEdit(torch.eye(D)[:, :1], torch.ones(1))}, EditorCard("by hand", {}))
    with pytest.raises(InputError, match="'by hand'"):
        measure_spectra(by_hand, activations)
    editor = fit_sea(make_activations(layers=(0, 1, 4)), ranks=1)
    with pytest.raises(InputError, match=r"Layers \[1, 4\] were asked for; activations are there of \[0, 3\]"):
        measure_spectra(editor, activations)


# --- signatures --------------------------------------------------------------------------------------------------------


def authors_signature(positive, negative):
    """As their code writes it: stacked activations with one-hot labels (column 1 for positives), `x.T @ y / n`."""
    y = np.zeros((2 * len(positive), 2))
    y[: len(positive), 1] = 1
    y[len(positive) :, 0] = 1
    return np.linalg.svd(np.concatenate([positive, negative]).T @ y / len(positive), compute_uv=False)


@pytest.mark.parametrize("mean", [0.0, 2.0, 50.0])
def test_signatures_equal_the_authors_formula(mean):
    activations = make_activations(mean=mean)
    table = layer_signatures(activations)
    assert table.index.tolist() == [0, 3]
    for layer, row in table.iterrows():
        _, positive, negative = arrays(activations, layer, False)
        values = authors_signature(positive, negative)
        assert row["signature"] == pytest.approx(values.sum())
        assert row["explained_first"] == pytest.approx(values[0] ** 2 / (values**2).sum())
        center = np.concatenate([positive, negative]).mean(0)
        assert row["signature_centered"] == pytest.approx(authors_signature(positive - center, negative - center).sum())
        distance = np.linalg.norm(positive.mean(0) - negative.mean(0))
        assert row["signature_centered"] == pytest.approx(distance / np.sqrt(2))


def test_signatures_of_equal_positives_and_negatives_are_all_mean_and_centered_zero():
    activations = make_activations()
    table = layer_signatures(replace(activations, negative=activations.positive))
    assert (table["signature_centered"] < 1e-12).all()
    np.testing.assert_allclose(table["explained_first"], 1)
    for layer, signature in table["signature"].items():
        mean = np.linalg.norm(activations.positive[layer].double().numpy().mean(0))
        assert signature == pytest.approx(np.sqrt(2) * mean)


def test_signatures_of_nothing_are_zero_and_share_nothing_out():
    zeros = {1: torch.zeros(5, 4)}
    row = layer_signatures(Activations.from_tensors(neutral=zeros, positive=zeros, negative=zeros)).loc[1]
    assert (row["signature"], row["signature_centered"], isnan(row["explained_first"])) == (0, 0, True)
