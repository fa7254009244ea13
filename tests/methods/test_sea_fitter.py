import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sea_lens import Activations, SeaLensWarning, Tanh, fit_sea
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods import sea_fitter
from sea_lens.methods.sea.feature_space import FeatureSpaceEdit
from sea_lens.methods.sea.streaming import SEAFitter
from sea_lens.models.activations import ROLES

D = 16


def activations(n, offset=0.0, layers=(0, 2), dtype=torch.float32, d=D, seed=0, **facts):
    """A decaying spectrum about a common offset; positives and negatives each add directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    roles = {role: {} for role in ROLES}
    for layer in layers:
        scales = 0.7 ** torch.arange(d, dtype=torch.float64)
        neutral = torch.randn(n, d, generator=generator, dtype=torch.float64) * scales
        roles["neutral"][layer] = neutral + offset
        for role, shift in (("positive", 1), ("negative", 4)):
            noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
            roles[role][layer] = neutral.roll(shift, dims=1) + 0.3 * neutral + 0.05 * noise + offset
    cast = {role: {layer: rows.to(dtype) for layer, rows in found.items()} for role, found in roles.items()}
    return Activations(cast["neutral"], cast["positive"], cast["negative"], **facts)


def part(whole, rows):
    return Activations(
        **{role: {layer: whole[role][layer][rows] for layer in whole.layers} for role in ROLES}, token=whole.token
    )


def fitter_of(whole, sizes, **settings):
    fitter = SEAFitter(**settings)
    for rows in torch.arange(whole.n).split(sizes):
        fitter.update(part(whole, rows))
    return fitter


def quietly(fit, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return fit(*arguments, progress=False, **options)


def dense(edit):
    """The linear part of an edit as a matrix, and its shift."""
    parts = edit.parts if isinstance(edit, FeatureSpaceEdit) else (edit,)
    return [
        (p.directions @ torch.diag(p.eigenvalues) @ p.directions.T, p.kept, 0.0 if p.shift is None else p.shift)
        for p in parts
    ]


def assert_same_editor(one, other, tolerance=1e-8):
    assert one.layers == other.layers
    for layer in one.layers:
        for (matrix, kept, shift), (matrix_, kept_, shift_) in zip(dense(one[layer]), dense(other[layer]), strict=True):
            torch.testing.assert_close(matrix, matrix_, atol=tolerance, rtol=0)
            torch.testing.assert_close(shift, shift_, atol=tolerance * 10, rtol=1e-8)
            assert kept == kept_


SETTINGS = [
    {"explained_variance": 0.99},
    {"explained_variance": (0.9, 0.999), "center": True},
    {"ranks": (3, 2), "merge": "sum"},
    {"ranks": 2, "projections": "reversed", "center": True},
    {"explained_variance": 0.8, "spectrum": "singular_values", "projections": "positive"},
]


@pytest.mark.parametrize("sizes", [60, [1, 20, 3, 36], 7])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("n", [9, 60])
def test_editors_equal_those_of_the_fit_in_memory(n, settings, sizes):
    """With fewer demonstrations than dimensions, and with more."""
    whole = activations(n, offset=2.0)
    fitter = fitter_of(whole, [1, 5, 3] if n == 9 and isinstance(sizes, list) else sizes)
    found = quietly(fitter.fit, **settings, dtype=torch.float64)
    expected = quietly(fit_sea, whole, **settings, dtype=torch.float64)
    assert_same_editor(found, expected)
    ours, theirs = found.card.to_json(), expected.card.to_json()
    for layer in theirs["layers"]:
        measured, exact = (card["layers"][layer].pop("displacement") for card in (ours, theirs))
        assert measured == pytest.approx(exact, abs=1e-9)
    assert ours == theirs


@pytest.mark.parametrize("center", [False, True])
def test_an_offset_of_ten_thousand_spreads_loses_nothing(center):
    """Float32 activations, summed in float64: a float32 sum would have lost the centered covariance."""
    whole = activations(500, offset=1e4, d=24)
    found = quietly(fitter_of(whole, 32).fit, ranks=(5, 4), center=center, dtype=torch.float64)
    expected = quietly(fit_sea, whole, ranks=(5, 4), center=center, dtype=torch.float64)
    if center:
        assert_same_editor(found, expected)
        naive = torch.linalg.svd(
            whole.neutral[0].T @ whole.positive[0]
            - torch.outer(whole.neutral[0].sum(0), whole.positive[0].sum(0)) / whole.n
        )[0][:, :5]
        h, g = (side[0].double() - side[0].double().mean(0) for side in (whole.neutral, whole.positive))
        exact = torch.linalg.svd(h.T @ g)[0][:, :5]
        assert (naive.double() @ naive.double().T - exact @ exact.T).norm() > 0.1
    else:
        # Uncentered, the offset is the leading direction and the others some 1e10 times weaker, by either way of fitting:
        # with 16 digits, 6 are left of those.
        assert_same_editor(found, expected, tolerance=1e-5)


@pytest.mark.parametrize("merge_space", ["features", "activations"])
def test_editors_of_a_feature_space_equal_those_of_the_fit_in_memory(merge_space, tmp_path):
    whole, settings = activations(40), {"feature_map": Tanh(2.0), "feature_unit": 0.5}
    fitter = fitter_of(whole, 13, **settings)
    fitter.save(tmp_path / "fitter.safetensors")
    expected = quietly(fit_sea, whole, 0.9, merge_space=merge_space, **settings, center=True, dtype=torch.float64)
    for found in (fitter, SEAFitter.load(tmp_path / "fitter.safetensors")):
        editor = quietly(found.fit, 0.9, merge_space=merge_space, center=True, dtype=torch.float64)
        assert_same_editor(editor, expected)
        assert editor.card.hyper_parameters == expected.card.hyper_parameters
        assert editor.card.layers[2]["clamped_features"] == expected.card.layers[2]["clamped_features"]


def test_merging_fitters_in_any_order_is_the_fit_of_all():
    whole = activations(50, offset=100.0, token=-1)
    expected = quietly(fit_sea, whole, ranks=(3, 2), center=True, dtype=torch.float64)
    for order in ([0, 1, 2], [2, 1, 0]):
        merged = SEAFitter()
        for number in order:
            merged.merge(fitter_of(part(whole, torch.arange(50).split(20)[number]), 6))
            merged.merge(SEAFitter())
        assert (merged.n, merged.token, merged.layers, merged.d_model) == (50, -1, [0, 2], D)
        assert_same_editor(quietly(merged.fit, ranks=(3, 2), center=True, dtype=torch.float64), expected)


def test_saving_and_loading_is_exact_and_goes_on(tmp_path):
    whole = activations(40)
    once, path = fitter_of(whole, 10), tmp_path / "fitter.safetensors"
    halved = fitter_of(part(whole, torch.arange(20)), 10)
    halved.save(path)
    written = path.read_bytes()
    loaded = SEAFitter.load(path)
    for start in (20, 30):
        loaded.update(part(whole, torch.arange(start, start + 10)))
    assert path.read_bytes() == written  # tensors that are added to in place are not the file's own memory
    for layer in once.layers:
        for one, other in zip(once._sides[layer], loaded._sides[layer], strict=True):
            assert torch.equal(one.comoment, other.comoment)
            assert torch.equal(one.neutral_mean, other.neutral_mean)
        assert torch.equal(once._sample.rows[layer], loaded._sample.rows[layer])
    with safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == [sea_fitter.FORMAT]


def test_the_card_says_how_many_rows_an_edit_was_measured_on():
    n = 2 * sea_fitter.SAMPLE
    whole = activations(n, layers=(1,))
    found = quietly(fitter_of(whole, 100).fit, ranks=(3, 2)).card.layers[1]
    expected = quietly(fit_sea, whole, ranks=(3, 2)).card.layers[1]
    assert found.pop("measured_on") == sea_fitter.SAMPLE
    assert found.pop("displacement") == pytest.approx(expected["displacement"], rel=0.1)
    assert found == {name: value for name, value in expected.items() if name != "displacement"}


def test_demonstrations_are_named_where_there_is_one_set_of_them():
    named = activations(10, demonstrations="abc")
    fitter, merged = SEAFitter(), SEAFitter()
    fitter.update(named)
    assert fitter.demonstrations == quietly(fitter.fit, ranks=1).card.demonstrations == "abc"
    merged.merge(fitter)
    assert merged.demonstrations == "abc"
    fitter.update(named)
    assert fitter.demonstrations is None


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"site": "mlp_out"}, r"site \('resid_post', 'mlp_out'\)"),
        ({"token": "mean"}, r"token \('last', 'mean'\)"),
        ({"editor": "sea 1"}, "editor"),
        ({"layers": (0, 1)}, r"layers \(\(0, 2\), \(0, 1\)\)"),
        ({"d": 8}, r"d_model \(16, 8\)"),
    ],
)
def test_activations_of_another_kind_are_refused(change, named):
    fitter, other = SEAFitter(), SEAFitter()
    fitter.update(activations(5))
    with pytest.raises(InputError, match=named):
        fitter.update(activations(5, **change))
    other.update(activations(5, **change))
    with pytest.raises(InputError, match=named):
        fitter.merge(other)
    assert fitter.n == 5


def test_what_a_fitter_cannot_do_is_refused(tmp_path):
    with pytest.raises(InputError, match="Give feature_unit as a number"):
        SEAFitter(feature_map=Tanh(1.0))
    empty = SEAFitter()
    for attempt in (empty.fit, lambda: empty.save(tmp_path / "empty"), lambda: empty.d_model):
        with pytest.raises(InputError, match="has seen no activations"):
            attempt()
    assert repr(empty) == "SEAFitter(no demonstrations yet)"
    fitter = fitter_of(activations(5), 5)
    with pytest.raises(InputError, match="1 to 4"):
        fitter.fit(ranks=5, center=True, progress=False)
    with pytest.raises(InputError, match=r"Layers \[1\] were asked for.*\[0, 2\]"):
        fitter.fit(layers=[1], progress=False)
    with pytest.raises(InputError, match="one feature map"):
        fitter.merge(SEAFitter(feature_map=Tanh(1.0), feature_unit=1.0))
    assert "5 demonstrations, resid_post of layers [0, 2]" in repr(fitter)


def test_rows_that_are_all_the_same_cannot_be_centered():
    same = torch.full((6, D), 0.1)
    fitter = SEAFitter()
    for _ in range(3):
        fitter.update(Activations({0: same}, {0: same * 3}, {0: same * 7}))
    with pytest.raises(InputError, match="all rows are the same"):
        fitter.fit(center=True, progress=False)


def test_an_edit_that_does_nothing_is_warned_about_as_for_the_fit_in_memory():
    whole = activations(30)
    same = Activations(whole.neutral, whole.positive, whole.positive)
    with pytest.warns(SeaLensWarning, match="edits nothing"):
        fitter_of(same, 30).fit(progress=False)


class Arcsinh:
    """A feature map of a user's own, whose text does not tell what it is."""

    domain = (-np.inf, np.inf)

    def forward(self, x):
        return torch.arcsinh(x)

    def inverse(self, features):
        return torch.sinh(features)


def test_damaged_and_other_files_are_refused(tmp_path):
    fitter, path = fitter_of(activations(20), 20), tmp_path / "fitter.safetensors"
    with pytest.raises(FileFormatError, match="missing"):
        SEAFitter.load(path)
    activations(5).save(path)
    with pytest.raises(FileFormatError, match="not a fitter's file"):
        SEAFitter.load(path)
    fitter.save(path)
    with pytest.raises(FileFormatError, match="features of no feature map"):
        SEAFitter.load(path, feature_map=Tanh(1.0))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match="truncated"):
        SEAFitter.load(path)
    fitter_of(activations(20), 20, feature_map=Arcsinh(), feature_unit=2.0).save(path)
    with pytest.raises(FileFormatError, match="features of Arcsinh, and feature_map=None"):
        SEAFitter.load(path)
    with pytest.raises(FileFormatError, match="features of Arcsinh"):
        SEAFitter.load(path, feature_map=Tanh(1.0))
    loaded = SEAFitter.load(path, feature_map=Arcsinh())
    assert (loaded.n, loaded.feature_unit) == (20, 2.0)
    loaded.merge(fitter_of(activations(20), 20, feature_map=Arcsinh(), feature_unit=2.0))
