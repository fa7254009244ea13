"""SEA against an oracle written from the paper's equations, linear and in feature spaces."""

import dataclasses
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from methods.oracles import (
    ROLES,
    D,
    activations,
    close,
    layers_of,
    matrix,
    oracle_projectors,
    probes,
    quiet_fit,
    same_editors,
    sides,
    with_norms,
)

from sea_lens import ELU, SEA, Activations, Identity, Site, SquaredExponential, Tanh, fit_sea
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning

# --- against the oracle ----------------------------------------------------------------------------------------------

SETTINGS = [
    {"spectrum": "singular_values"},
    {"explained_variance": (0.95, 0.6)},
    {"ranks": 2},
    {"ranks": (1, 4)},
    {"ranks": (5, 2), "explained_variance": 0.3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [6, 15, 16, 60])
def test_the_fit_is_the_papers(n, center, settings):
    arrays = sides(n, seed=n)
    settings = {"explained_variance": 0.9, **settings}
    share, ranks = settings["explained_variance"], settings.get("ranks")
    keep, remove, found_ranks = oracle_projectors(
        arrays,
        share if isinstance(share, tuple) else (share, share),
        (ranks, ranks) if isinstance(ranks, int) else ranks,
        settings.get("spectrum", "squared"),
        center,
    )
    editor = SEA(center=center, **settings).fit(activations(arrays), dtype=torch.float64)
    report = editor.card.reports[Site(0)]
    assert (report["rank_positive"], report["rank_negative"]) == found_ranks
    close(np.eye(D) + matrix(editor), keep + remove)
    h, mean = probes(), arrays[0].mean(0) if center else np.zeros(D)
    expected = with_norms(mean + (h - mean) @ (keep + remove).T, h)
    assert np.linalg.norm(expected - h) > 0.01 * np.linalg.norm(h)
    close(editor[0](torch.tensor(h)), expected)
    edited = with_norms(mean + (arrays[0] - mean) @ (keep + remove).T, arrays[0])
    moved = np.linalg.norm(edited - arrays[0], axis=1) / np.linalg.norm(arrays[0], axis=1)
    assert report.displacement == pytest.approx(moved.mean(), rel=1e-8)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("merge", ["norm", "sum", "average"])
@pytest.mark.parametrize("projections", ["both", "positive", "negative", "reversed"])
def test_the_papers_ablations_and_strengths_equal_their_dense_form(projections, merge, center):
    arrays = sides(40)
    keep, remove, _ = oracle_projectors(arrays, (0.95, 0.8), center=center)
    mean = arrays[0].mean(0) if center else np.zeros(D)
    reversed_total = 2 * np.eye(D) - remove - keep
    total = {"both": keep + remove, "positive": keep, "negative": remove, "reversed": reversed_total}[projections]
    if merge == "average" and projections in ("both", "reversed"):
        total = total / 2
    h = probes()
    editor = quiet_fit(SEA((0.95, 0.8), projections=projections, merge=merge, center=center), activations(arrays))
    for strength in (1.0, 0.5, -2.0):
        expected = h + strength * (mean + (h - mean) @ total.T - h)
        expected = with_norms(expected, h) if merge == "norm" else expected
        close(editor.scaled(strength)[0](torch.tensor(h)), expected)
    assert torch.equal(editor.scaled(0.0)[0](torch.tensor(h)), torch.tensor(h))


def test_the_compact_edit_in_float32_equals_the_dense_merge():
    arrays = sides(200, 128, seed=3)
    keep, remove, _ = oracle_projectors(arrays, (0.99, 0.99))
    edit = SEA(0.99).fit(activations(arrays))[0]
    assert edit.left.dtype == torch.float32
    h = probes(128).astype(np.float32)
    close(edit(torch.tensor(h)).double(), with_norms(h.astype(float) @ (keep + remove).T, h.astype(float)), 1e-5)


# --- in a feature space ----------------------------------------------------------------------------------------------


class Arcsinh:
    """A user's own map."""

    domain = (-math.inf, math.inf)

    def forward(self, x):
        return torch.asinh(x)

    def inverse(self, features):
        return torch.sinh(features)


MAPS = {
    "identity": (Identity(), lambda x: x, lambda y: y),
    "tanh": (Tanh(3.0), lambda x: np.tanh(x / 3), lambda y: 3 * np.arctanh(y)),
    "squared exponential": (
        SquaredExponential(2.0),
        lambda x: np.sign(x) * (1 - np.exp(-(x**2) / 8)),
        lambda y: np.sign(y) * np.sqrt(-8 * np.log(1 - np.abs(y))),
    ),
    "elu": (
        ELU(0.5),
        lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0))),
        lambda y: np.where(y > 0, y, np.log1p(2 * np.minimum(y, 0))),
    ),
    "own": (Arcsinh(), np.arcsinh, np.sinh),
}


class Oracle:
    """The edit in a feature space, with dense matrices."""

    def __init__(self, arrays, name, unit, center, merge_space, projections, merge, **sizes):
        feature_map, self.forward, self.inverse = MAPS[name]
        self.unit, self.merge, self.ends = unit, merge, np.array(feature_map.domain)
        phi = [self.features(side) for side in arrays]
        width = arrays[0].shape[1]
        keep, remove, self.ranks = oracle_projectors(phi, center=center, **sizes)
        if projections == "reversed":
            keep, remove = np.eye(width) - remove, np.eye(width) - keep
        self.mean = phi[0].mean(0) if center else np.zeros(width)
        # Each row: a matrix, and how much of the mean is put back with it; mapped back one by one.
        if projections in ("positive", "negative"):
            self.mapped_back = [(keep if projections == "positive" else remove, 1)]
        elif merge_space == "features":
            self.mapped_back = [((keep + remove) / (2 if merge == "average" else 1), 1)]
        else:  # the mean is there once, and where two results are averaged, in both
            self.mapped_back = [(keep, merge == "average"), (remove, 1)]
        self.weight = 0.5 if merge == "average" and len(self.mapped_back) == 2 else 1.0

    def features(self, h):
        return self.forward(np.clip(h / self.unit, *self.ends))

    def __call__(self, h, strength=1.0):
        features, total = self.features(h), 0
        for dense, share in self.mapped_back:
            edited = share * self.mean + (features - self.mean) @ dense.T
            total = total + self.inverse(np.clip(edited, *self.forward(self.ends)))
        moved = h + strength * self.unit * (self.weight * total - self.inverse(features))
        return with_norms(moved, h) if self.merge == "norm" else moved


def variants():
    spaces, projections = ("features", "activations"), ("both", "positive", "negative", "reversed")
    for values in itertools.product(spaces, (False, True), projections, ("norm", "sum", "average")):
        yield dict(zip(("merge_space", "center", "projections", "merge"), values, strict=True))


@pytest.mark.parametrize("name", MAPS)
def test_the_fit_in_feature_space_is_the_oracles(name):
    for n, options in [
        (9, next(variants())),
        *((41, options) for options in variants()),
    ]:  # rows above and below the width
        arrays = sides(n, 15, seed=n)  # odd numbers, so that every median is one of the numbers
        unit = float(np.median(np.abs(arrays[0])))
        oracle = Oracle(arrays, name, unit, shares=(0.95, 0.8), **options)
        editor = quiet_fit(SEA((0.95, 0.8), feature_map=MAPS[name][0], **options), activations(arrays))
        h = probes(15)
        close(editor[0](torch.tensor(h)), oracle(h))
        close(editor.scaled(0.5)[0](torch.tensor(h)), oracle(h, 0.5))
        report = editor.card.reports[Site(0)]
        assert (report["rank_positive"], report["rank_negative"]) == oracle.ranks
        assert report["unit"] == pytest.approx(unit, rel=1e-12)
        if name == "identity":
            close(
                editor[0](torch.tensor(h)),
                quiet_fit(SEA((0.95, 0.8), **options), activations(arrays))[0](torch.tensor(h)),
            )


@pytest.mark.parametrize("name", ["tanh", "own"])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_median_unit_makes_the_edit_follow_the_scale_and_a_number_does_not(name, scale):
    arrays, h = sides(31, 15), probes(15)
    method = SEA(0.9, feature_map=MAPS[name][0])
    plain, scaled = (quiet_fit(method, activations([by * side for side in arrays])) for by in (1, scale))
    close(scaled[0](torch.tensor(scale * h)), scale * plain[0](torch.tensor(h)).numpy())
    fixed = quiet_fit(dataclasses.replace(method, feature_unit=1.0), activations([scale * side for side in arrays]))
    apart = np.linalg.norm(fixed[0](torch.tensor(scale * h)) - scale * plain[0](torch.tensor(h)).numpy())
    assert apart > 0.01 * scale * np.linalg.norm(h)


def test_without_a_map_unit_and_merge_space_do_nothing():
    both = activations(sides(31))
    plain, other = SEA(0.9).fit(both), SEA(0.9, merge_space="activations", feature_unit=7.0).fit(both)
    assert plain.fingerprint == other.fingerprint


def test_activations_of_which_half_are_zero_have_no_median_unit():
    arrays = sides(20)
    arrays[0][:, : D // 2 + 1] = 0
    with pytest.raises(InputError, match=r"Half of the neutral activations of .*3.* are zero\. Give feature_unit"):
        SEA(0.9, feature_map=Tanh()).fit(activations(arrays, layer=3))
    quiet_fit(SEA(0.9, feature_map=Tanh(), feature_unit=1.0), activations(arrays, layer=3))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: "neither"}, f"^{name} is one of ") for name in ("projections", "merge", "merge_space", "spectrum")),
        *(({"explained_variance": share}, "must lie in") for share in (0.0, 1.1, float("nan"), (0.9, 0.0))),
        ({"explained_variance": None}, "needs explained_variance"),
        ({"ranks": (1, 2, 3)}, "A pair"),
        *(({"ranks": ranks}, "whole numbers above zero") for ranks in (0, (1, 0), 1.5, "3")),
        *(({"feature_map": Tanh(), "feature_unit": unit}, "feature_unit is") for unit in (0.0, float("inf"), "mean")),
        ({"feature_map": "tanh"}, "A feature map is an object with a domain"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_type_checks")
def test_impossible_settings_are_refused_before_anything_is_fitted(settings, message):
    with pytest.raises(InputError, match=message):
        SEA(**settings)


@pytest.mark.parametrize(("n", "center", "most"), [(6, False, 6), (6, True, 5), (40, False, D)])
def test_a_rank_beyond_the_demonstrations_is_refused(n, center, most):
    data = activations(sides(n))
    SEA(ranks=(most, 1), center=center).fit(data)
    for ranks in (most + 1, (1, most + 1)):
        with pytest.raises(InputError, match=f"support 1 to {most} "):
            SEA(ranks=ranks, center=center).fit(data)


def test_missing_sides_and_equal_rows_are_refused():
    both = activations(sides(6))
    without = Activations.from_tensors(positive={0: both.positive[0]}, negative={0: both.negative[0]})
    with pytest.raises(InputError, match=r"there are no neutral ones.*with_neutral_answers"):
        SEA().fit(without)
    with pytest.raises(InputError, match="all rows are the same"):
        SEA(0.9, center=True).fit(activations([np.tile(side[:1], (6, 1)) for side in sides(6)]))


def test_the_card_says_how_it_was_fitted():
    method = SEA((0.9, 0.8), center=True, spectrum="singular_values")
    card = method.fit(activations(sides(20), layer=3)).card
    assert (card.method, card.token, card.n_demonstrations, list(card.reports)) == ("sea", "last", 20, [Site(3)])
    assert SEA(**card.settings) == method
    assert (SEA(ranks=(1, 2)).explained_variance, SEA(ranks=(1, 2)).ranks) == (None, (1, 2))


def test_fit_sea_is_the_same_fit():
    data = layers_of(0, 3, 4)
    one = fit_sea(data, 0.9, center=True, layers=[4, 0], dtype=torch.float64)
    assert same_editors(one, SEA(0.9, center=True).fit(data.at_sites([0, 4]), dtype=torch.float64))
    with pytest.raises(ModelMismatchError, match="no layer 2"):
        fit_sea(data, 0.9, layers=[2])


# --- many settings at once -------------------------------------------------------------------------------------------


def test_many_settings_at_once_are_single_fits_bit_for_bit_and_decompose_once(monkeypatch):
    svd, shapes = torch.linalg.svd, []

    def counted(given, *arguments, **options):
        shapes.append(tuple(given.shape))
        return svd(given, *arguments, **options)

    data = layers_of(0, 3)
    methods = [
        *(SEA(share, center=center) for share in (0.5, (0.95, 0.6), 0.9) for center in (False, True)),
        SEA(ranks=2, projections="reversed", merge="average"),
        SEA(0.9, spectrum="singular_values", center=True, merge="sum"),
        SEA(0.9, feature_map=Tanh(3.0)),
        SEA(ranks=(3, 1), feature_map=Tanh(3.0), merge_space="activations"),
        SEA(0.9, feature_map=Tanh(3.0), feature_unit=0.2),
    ]
    singly = [quiet_fit(method, data) for method in methods]
    monkeypatch.setattr(torch.linalg, "svd", counted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fitted in silence
        together = SEA.fit_all(methods, data, dtype=torch.float64, progress=False)
    assert all(same_editors(one, other) for one, other in zip(together, singly, strict=True))
    assert len({editor.fingerprint for editor in together}) == len(methods)
    assert shapes.count((16, 16)) == 4 * 2 * 2  # (center, map, unit) x layers x sides


# --- edits of nothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [6, 40])
def test_positive_equal_to_negative_is_exactly_the_identity(n, center):
    neutral, positive, _ = sides(n)
    with pytest.warns(SeaLensWarning, match=r"edits nothing: .*projectors cancel.*check\(\)") as caught:
        editor = SEA(0.9, center=center).fit(activations([neutral, positive, positive.copy()]))
    assert ("try center=True, at one layer" in str(caught[0].message)) is not center
    h = torch.tensor(probes()).float()
    assert editor.is_identity
    assert torch.equal(editor[0](h), h)


def test_the_ranks_of_many_layers_are_said_in_a_line():
    neutral, positive, _ = (torch.tensor(side) for side in sides(30))
    cut = {layer: torch.arange(neutral.shape[1]) < 2 + layer for layer in range(12)}  # a rank of its own per layer
    layers = {layer: positive * kept for layer, kept in cut.items()}
    data = Activations.from_tensors(
        neutral={layer: neutral * kept for layer, kept in cut.items()}, positive=layers, negative=layers
    )
    with pytest.warns(SeaLensWarning, match="edits nothing") as caught:
        editor = SEA(0.9).fit(data)
    ranks = [int(report["rank_positive"]) for report in editor.card.reports.values()]
    assert min(ranks) < max(ranks)
    assert f"(ranks: {min(ranks)} to {max(ranks)} positive, {min(ranks)} to {max(ranks)} negative)" in str(
        caught[0].message
    )


def test_a_dominant_mean_edits_next_to_nothing_until_it_is_centered():
    rng = np.random.default_rng(0)
    mean = 20 * rng.standard_normal(D)
    data = activations([mean + rng.standard_normal((50, D)) for _ in ROLES])
    with pytest.warns(
        SeaLensWarning, match=r"edits (next to )?nothing.*ranks: 1 positive, 1 negative.*try center=True"
    ) as caught:
        editor = SEA(0.998).fit(data)
    assert len(caught) == 1
    assert editor.card.reports[Site(0)].displacement < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeaLensWarning)
        SEA(0.998, center=True).fit(data)


@pytest.mark.parametrize(("still", "warned"), [(3, True), (2, False)])
def test_nearly_all_layers_that_do_nothing_are_listed(still, warned):
    """As in Gemma 3, where one edit of eighteen acts."""
    neutral, positive, negative = (torch.tensor(side) for side in sides(30))
    same = {layer: positive if layer < still else negative for layer in range(4)}
    data = Activations.from_tensors(
        neutral=dict.fromkeys(range(4), neutral), positive=dict.fromkeys(range(4), positive), negative=same
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SeaLensWarning)
        editor = SEA(0.9).fit(data)
    assert [editor[layer].is_identity for layer in range(4)] == [layer < still for layer in range(4)]
    assert len(caught) == warned
    if warned:
        expected = "at 3 of its 4 sites: it moves the neutral activations by under 1% of their norm at layers 0-2"
        assert expected in str(caught[0].message)


@pytest.mark.parametrize(("n_planted", "warned"), [(0, False), (6, False), (7, True)])
def test_over_one_in_a_hundred_activations_outside_the_domain_are_warned_about(n_planted, warned):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-1, 1, (40, 15)) for _ in ROLES]
    arrays[0].reshape(-1)[rng.permutation(600)[:n_planted]] = 100.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SeaLensWarning)
        editor = SEA(0.5, feature_map=Tanh(), feature_unit=1.0).fit(activations(arrays, layer=4))
    assert editor.card.reports[Site(4)]["clamped_activations"] == n_planted / 600
    outside = [str(one.message) for one in caught if "outside the domain of the feature map" in str(one.message)]
    assert len(outside) == warned
    assert not warned or f"layer 4 {n_planted / 600:.1%}. Give the feature map a larger scale" in outside[0]


@pytest.mark.parametrize(("n_doubled", "warned"), [(2, False), (3, True)])
def test_over_one_in_a_hundred_edited_features_outside_the_range_are_warned_about(n_doubled, warned):
    """Only the first rows covary with positives and only the others with negatives: they are doubled, these removed."""
    first = np.arange(200)[:, None] < n_doubled
    neutral = np.where(first, 1.0, np.resize([1.0, -1.0], 16))
    data = activations([neutral, 1.0 * first * np.ones(16), 1.0 * ~first * np.ones(16)], layer=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SeaLensWarning)
        editor = SEA(ranks=1, feature_map=Tanh(), feature_unit=1.0).fit(data)
    report = editor.card.reports[Site(4)]
    assert (report["clamped_activations"], report["clamped_features"]) == (0, n_doubled / 200)
    found = [one for one in caught if "where the feature map has no values" in str(one.message)]
    assert len(found) == warned


# --- what the fit must not depend on, and how it must follow ---------------------------------------------------------


@pytest.mark.parametrize(("n", "center"), [(6, False), (6, True), (50, False), (50, True)])
def test_order_rotation_scale_repetition_and_exchange(n, center):
    arrays = sides(n, seed=7)

    def fit(changed):
        return SEA(0.95, center=center).fit(activations(changed), dtype=torch.float64)

    plain, h, rng = fit(arrays), probes(), np.random.default_rng(0)
    order = rng.permutation(n)
    close(matrix(fit([side[order] for side in arrays])), matrix(plain))
    assert np.linalg.norm(matrix(fit([arrays[0], np.roll(arrays[1], 1, axis=0), arrays[2]])) - matrix(plain)) > 0.1
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    close(
        fit([side @ rotation for side in arrays])[0](torch.tensor(h @ rotation)),
        plain[0](torch.tensor(h)).numpy() @ rotation,
    )
    for scale in (1e-4, 1e5):
        close(
            fit([scale * side for side in arrays])[0](torch.tensor(scale * h)),
            scale * plain[0](torch.tensor(h)).numpy(),
        )
    close(matrix(fit([np.tile(side, (3, 1)) for side in arrays])), matrix(plain))
    swapped = SEA(0.95, center=center).fit(activations(arrays).swapped(), dtype=torch.float64)
    close(matrix(swapped), -matrix(plain))
    reversed_ = SEA(0.95, center=center, projections="reversed").fit(activations(arrays), dtype=torch.float64)
    close(matrix(reversed_), matrix(swapped))
    assert same_editors(fit(arrays), plain)
