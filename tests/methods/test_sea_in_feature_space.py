"""SEA in a feature space against an oracle in numpy: maps by their formulas, full SVDs, dense projectors."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from test_sea import ROLES, activations, close, oracle_projectors, probes, sides

from sea_lens import Activations, fit_sea
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.sea.feature_space import ELU, Identity, SquaredExponential, Tanh

D = 15  # odd, like the numbers of demonstrations, so that every median is one of the numbers


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
    """The edit of `fit_sea` in feature space, with dense matrices."""

    def __init__(self, arrays, name, unit, center, merge_space, projections, merge, **sizes):
        feature_map, self.forward, self.inverse = MAPS[name]
        self.unit, self.merge, self.ends = unit, merge, np.array(feature_map.domain)
        phi = [self.features(side) for side in arrays]
        keep, remove, self.ranks = oracle_projectors(phi, center=center, **sizes)
        if projections == "reversed":
            keep, remove = np.eye(D) - remove, np.eye(D) - keep
        self.mean = phi[0].mean(0) if center else np.zeros(D)
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
        for matrix, share in self.mapped_back:
            edited = share * self.mean + (features - self.mean) @ matrix.T
            total = total + self.inverse(np.clip(edited, *self.forward(self.ends)))
        change = self.unit * (self.weight * total - self.inverse(features))
        moved = h + strength * change
        if self.merge == "norm":
            moved = moved * np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(moved, axis=1, keepdims=True)
        return moved


def quiet_fit(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return fit_sea(*arguments, dtype=torch.float64, **options)


def variants():
    spaces, projections = ("features", "activations"), ("both", "positive", "negative", "reversed")
    for values in itertools.product(spaces, (False, True), projections, ("norm", "sum", "average")):
        options = dict(zip(("merge_space", "center", "projections", "merge"), values, strict=True))
        yield pytest.param(options, id="-".join(map(str, values)))


# --- against the oracle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", variants())
@pytest.mark.parametrize("name", MAPS)
def test_the_fit_in_feature_space_is_the_oracles(name, options):
    for n in (9, 41) if options["merge"] == "norm" else (41,):  # fewer and more than the width
        arrays = sides(n, D, seed=n)
        unit = float(np.median(np.abs(arrays[0])))
        oracle = Oracle(arrays, name, unit, shares=(0.95, 0.8), **options)
        editor = quiet_fit(activations(arrays), (0.95, 0.8), feature_map=MAPS[name][0], **options)
        h = probes(D)
        close(editor[0](torch.tensor(h)).numpy(), oracle(h))
        close(editor.scaled(0.5)[0](torch.tensor(h)).numpy(), oracle(h, 0.5))
        facts = editor.card.layers[0]
        assert (facts["rank_positive"], facts["rank_negative"]) == oracle.ranks
        assert facts["unit"] == pytest.approx(unit, rel=1e-12)
        moved = np.linalg.norm(oracle(arrays[0]) - arrays[0], axis=1) / np.linalg.norm(arrays[0], axis=1)
        assert facts["displacement"] == pytest.approx(moved.mean(), rel=1e-8)
        assert moved.mean() > 0.01


@pytest.mark.parametrize("merge_space", ["features", "activations"])
@pytest.mark.parametrize("unit", [0.3, 5.0])
@pytest.mark.parametrize("name", MAPS)
def test_a_unit_and_ranks_of_ones_own(name, unit, merge_space):
    arrays = sides(25, D)
    options = {"center": False, "merge_space": merge_space, "projections": "both", "merge": "sum"}
    editor = quiet_fit(
        activations(arrays), ranks=(2, 4), feature_map=MAPS[name][0], feature_unit=unit, spectrum="squared", **options
    )
    h = probes(D)
    close(editor[0](torch.tensor(h)).numpy(), Oracle(arrays, name, unit, ranks=(2, 4), **options)(h))
    assert editor.card.layers[0]["unit"] == unit


@pytest.mark.parametrize("options", variants())
def test_the_identity_map_is_the_linear_edit(options):
    both, h = activations(sides(31, D)), torch.tensor(probes(D))
    linear = quiet_fit(both, (0.95, 0.8), **options)
    mapped = quiet_fit(both, (0.95, 0.8), feature_map=Identity(), **options)
    close(mapped[0](h).numpy(), linear[0](h).numpy(), 1e-12)
    assert mapped.card.layers[0]["clamped_features"] == 0


@pytest.mark.parametrize("name", MAPS)
def test_where_projections_are_merged_matters_unless_there_is_only_one(name):
    both, h, (feature_map, _, _) = activations(sides(31, D)), torch.tensor(probes(D)), MAPS[name]
    for projections in ("both", "positive", "negative", "reversed"):
        found = [
            quiet_fit(both, 0.9, feature_map=feature_map, merge_space=space, projections=projections)[0](h)
            for space in ("features", "activations")
        ]
        apart = float((found[0] - found[1]).norm() / h.norm())
        assert (apart > 0.01) is (name != "identity" and projections in ("both", "reversed"))


def test_without_a_map_unit_and_merge_space_do_nothing():
    both = activations(sides(31, D))
    plain = fit_sea(both, 0.9, center=True)
    other = fit_sea(both, 0.9, center=True, merge_space="activations", feature_unit=7.0)
    assert torch.equal(plain[0].directions, other[0].directions)
    assert torch.equal(plain[0].shift, other[0].shift)
    assert plain.card == other.card


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge_space", ["features", "activations"])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_median_unit_makes_the_edit_follow_the_scale(name, merge_space, scale):
    arrays, h, options = sides(31, D), probes(D), {"feature_map": MAPS[name][0], "merge_space": merge_space}
    plain = quiet_fit(activations(arrays), 0.9, **options)
    scaled = quiet_fit(activations([scale * side for side in arrays]), 0.9, **options)
    close(scaled[0](torch.tensor(scale * h)).numpy(), scale * plain[0](torch.tensor(h)).numpy())
    assert scaled.card.layers[0]["unit"] == pytest.approx(scale * plain.card.layers[0]["unit"], rel=1e-12)
    assert scaled.card.layers[0]["clamped_activations"] == plain.card.layers[0]["clamped_activations"]
    fixed = quiet_fit(activations([scale * side for side in arrays]), 0.9, feature_unit=1.0, **options)
    apart = np.linalg.norm(fixed[0](torch.tensor(scale * h)) - scale * plain[0](torch.tensor(h)).numpy())
    assert (apart > 0.01 * scale * np.linalg.norm(h)) == (name != "identity")


def test_every_layer_has_its_own_median():
    layers = {layer: [10.0**layer * side for side in sides(21, D, seed=layer)] for layer in (0, 2)}
    every = Activations.from_tensors(
        **{role: {k: torch.tensor(v[i]) for k, v in layers.items()} for i, role in enumerate(ROLES)}
    )
    editor = quiet_fit(every, 0.9, feature_map=Tanh(3.0))
    for layer, arrays in layers.items():
        assert editor.card.layers[layer]["unit"] == pytest.approx(np.median(np.abs(arrays[0])), rel=1e-12)
        assert editor[layer].unit == editor.card.layers[layer]["unit"]


def test_activations_of_which_half_are_zero_have_no_median_unit():
    arrays = sides(20, D)
    arrays[0][:, : D // 2 + 1] = 0
    with pytest.raises(InputError, match=r"Half of the neutral activations of layer 3 are zero\. Give feature_unit"):
        fit_sea(activations(arrays, layer=3), 0.9, feature_map=Tanh())
    quiet_fit(activations(arrays, layer=3), 0.9, feature_map=Tanh(), feature_unit=1.0)
    quiet_fit(activations(arrays, layer=3), 0.9)  # the linear fit needs none


@pytest.mark.parametrize("unit", [0.0, -1.0, float("nan"), float("inf"), "mean", None])
@pytest.mark.usefixtures("without_type_checks")
def test_an_impossible_unit_is_refused(unit):
    with pytest.raises(InputError, match=f'feature_unit is "median" or a finite number above zero, and {unit!r} was'):
        fit_sea(activations(sides(20, D)), 0.9, feature_map=Tanh(), feature_unit=unit)


@pytest.mark.usefixtures("without_type_checks")
def test_maps_that_are_none_are_refused():
    class Unlike(Arcsinh):
        def inverse(self, features):
            return features

    for wrong, message in (("tanh", "A feature map is an object with a domain"), (Unlike(), "Unlike is not inverted")):
        with pytest.raises(InputError, match=message):
            fit_sea(activations(sides(20, D)), 0.9, feature_map=wrong)


# --- what is clamped -------------------------------------------------------------------------------------------------


def with_planted(n_planted: int, n: int = 40) -> list[np.ndarray]:
    """Small activations, of which some neutral ones lie outside any domain."""
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-1, 1, (n, D)) for _ in ROLES]
    arrays[0].reshape(-1)[rng.permutation(n * D)[:n_planted]] = 100 * rng.choice([-1, 1], n_planted)
    return arrays


def warnings_of(*arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        editor = fit_sea(*arguments, **options)
    return editor, [str(warning.message) for warning in caught if warning.category is SeaLensWarning]


@pytest.mark.parametrize(("n_planted", "warned"), [(0, False), (5, False), (6, False), (7, True), (60, True)])
def test_over_one_in_a_hundred_activations_outside_the_domain_are_warned_about(n_planted, warned):
    editor, messages = warnings_of(
        activations(with_planted(n_planted), layer=4), 0.5, feature_map=Tanh(), feature_unit=1.0
    )
    assert editor.card.layers[4]["clamped_activations"] == n_planted / (40 * D)
    outside = [message for message in messages if "outside the domain of the feature map" in message]
    assert len(outside) == warned
    assert not warned or f"layer 4 {n_planted / (40 * D):.1%}. Give the feature map a larger scale" in outside[0]


@pytest.mark.parametrize(("n_doubled", "warned"), [(1, False), (2, False), (3, True), (150, True)])
def test_over_one_in_a_hundred_edited_features_outside_the_range_are_warned_about(n_doubled, warned):
    """Only the first rows covary with positives and only the others with negatives: they are doubled, these removed."""
    first = np.arange(200)[:, None] < n_doubled
    neutral = np.where(first, 1.0, np.resize([1.0, -1.0], 16))
    data = activations([neutral, 1.0 * first * np.ones(16), 1.0 * ~first * np.ones(16)], layer=4)
    editor, messages = warnings_of(data, ranks=1, feature_map=Tanh(), feature_unit=1.0)
    facts = editor.card.layers[4]
    assert (facts["clamped_activations"], facts["clamped_features"]) == (0, n_doubled / 200)
    assert len(messages) == warned
    assert (
        not warned
        or f"where the feature map has no values, and come back as the nearest it has: layer 4 {n_doubled / 200:.1%}"
        in messages[0]
    )
