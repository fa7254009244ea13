"""Linear SEA against an oracle written from the paper's equations: full SVDs and dense projectors, in numpy."""

import warnings

import numpy as np
import pytest
import torch

from sea_lens import Activations, fit_sea
from sea_lens.errors import InputError, SeaLensWarning

D = 16
ROLES = ("neutral", "positive", "negative")


def sides(n: int, d: int = D, seed: int = 0) -> list[np.ndarray]:
    """Neutral, positive and negative rows with a spectrum that decays, a mean, and much in common."""
    rng = np.random.default_rng(seed)
    decay = 0.8 ** np.arange(d)
    common = rng.standard_normal((n, d)) * decay
    mean = 0.3 * rng.standard_normal(d)
    return [mean + common + rng.standard_normal((n, d)) * decay for _ in ROLES]


def activations(arrays: list[np.ndarray], layer: int = 0) -> Activations:
    roles = zip(ROLES, arrays, strict=True)
    return Activations.from_tensors(**{role: {layer: torch.tensor(array)} for role, array in roles})


def oracle_projectors(arrays, shares=(0.9, 0.9), ranks=None, spectrum="squared", center=False):
    """`P+`, `P-` and the subspaces' ranks."""
    h, n = arrays[0], len(arrays[0])
    projectors = []
    for side in (1, 2):
        g = arrays[side]
        omega = (h - h.mean(0)).T @ (g - g.mean(0)) / n if center else h.T @ g / n
        u, s, _ = np.linalg.svd(omega, full_matrices=True)
        weights = s**2 if spectrum == "squared" else s
        k = 1
        while weights[:k].sum() < shares[side - 1] * weights.sum():
            k += 1
        k = k if ranks is None else ranks[side - 1]
        projectors.append((u[:, :k] @ u[:, :k].T, k))
    (keep, k_positive), (drop, k_negative) = projectors
    return keep, np.eye(h.shape[1]) - drop, (k_positive, k_negative)


def oracle_edit(keep, remove, x, mean=0.0):
    """The paper's merge, one token at a time; around the neutral mean when centered."""
    edited = []
    for h in x:
        merged = mean + keep @ (h - mean) + remove @ (h - mean)
        edited.append(np.linalg.norm(h) * merged / np.linalg.norm(merged))
    return np.array(edited)


def matrix(editor, layer: int = 0) -> np.ndarray:
    edit = editor[layer]
    return ((edit.directions * edit.eigenvalues) @ edit.directions.T).numpy()


def probes(d: int = D) -> np.ndarray:
    return np.random.default_rng(99).standard_normal((25, d)) * 3


def close(found, expected, tolerance=1e-8):
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


# --- against the oracle ----------------------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"spectrum": "singular_values"},
    {"explained_variance": (0.95, 0.6)},
    {"explained_variance": 0.999},
    {"ranks": 2},
    {"ranks": (1, 4)},
    {"ranks": (5, 2), "explained_variance": 0.3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [6, 15, 16, 17, 60])
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
    editor = fit_sea(activations(arrays), center=center, dtype=torch.float64, **settings)
    facts = editor.card.layers[0]
    assert (facts["rank_positive"], facts["rank_negative"]) == found_ranks
    close(np.eye(D) + matrix(editor), keep + remove)
    h, mean = probes(), arrays[0].mean(0) if center else 0.0
    expected = oracle_edit(keep, remove, h, mean)
    assert np.linalg.norm(expected - h) > 0.01 * np.linalg.norm(h)
    close(editor[0](torch.tensor(h)).numpy(), expected)
    moved = np.linalg.norm(oracle_edit(keep, remove, arrays[0], mean) - arrays[0], axis=1)
    assert facts["displacement"] == pytest.approx((moved / np.linalg.norm(arrays[0], axis=1)).mean(), rel=1e-8)


@pytest.mark.parametrize("n", [10, 200])
@pytest.mark.parametrize("d", [48, 128])
def test_the_compact_edit_in_float32_equals_the_dense_merge(n, d):
    arrays = sides(n, d, seed=n)
    keep, remove, _ = oracle_projectors(arrays, (0.99, 0.99))
    edit = fit_sea(activations(arrays), 0.99)[0]
    assert edit.directions.dtype == torch.float32
    h = probes(d).astype(np.float32)
    edited = edit(torch.tensor(h))
    assert edited.dtype == torch.float32
    close(edited.double().numpy(), oracle_edit(keep, remove, h.astype(float)), 1e-5)


@pytest.mark.parametrize("center", [False, True])
def test_strength_and_norm_by_hand(center):
    arrays = sides(40)
    keep, remove, _ = oracle_projectors(arrays, center=center)
    difference, mean = keep + remove - np.eye(D), arrays[0].mean(0) if center else np.zeros(D)
    h = probes()
    for alpha in (-1.0, 0.25, 1.0, 2.0):
        expected = h + alpha * (h - mean) @ difference.T
        editor = fit_sea(activations(arrays), 0.9, center=center, merge="sum", dtype=torch.float64)
        close(editor.scaled(alpha)[0](torch.tensor(h)).numpy(), expected)
        expected *= np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(expected, axis=1, keepdims=True)
        editor = fit_sea(activations(arrays), 0.9, center=center, dtype=torch.float64)
        close(editor.scaled(alpha)[0](torch.tensor(h)).numpy(), expected)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("merge", ["norm", "sum", "average"])
@pytest.mark.parametrize("projections", ["both", "positive", "negative", "reversed"])
def test_the_papers_ablations_equal_their_dense_form(projections, merge, center):
    arrays = sides(40)
    keep, remove, _ = oracle_projectors(arrays, (0.95, 0.8), center=center)
    mean = arrays[0].mean(0) if center else np.zeros(D)
    reversed_keep, reversed_remove = np.eye(D) - remove, np.eye(D) - keep
    total = {
        "both": keep + remove,
        "positive": keep,
        "negative": remove,
        "reversed": reversed_keep + reversed_remove,
    }[projections]
    if merge == "average" and projections in ("both", "reversed"):
        total = total / 2
    h = probes()
    expected = mean + (h - mean) @ total.T
    if merge == "norm":
        expected *= np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(expected, axis=1, keepdims=True)
    options = {"projections": projections, "merge": merge, "center": center, "dtype": torch.float64}
    editor = fit_sea(activations(arrays), (0.95, 0.8), **options)
    close(editor[0](torch.tensor(h)).numpy(), expected)
    assert torch.equal(editor.scaled(0.0)[0](torch.tensor(h)), torch.tensor(h))
    half = h + 0.5 * (mean + (h - mean) @ total.T - h)
    if merge == "norm":
        half *= np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(half, axis=1, keepdims=True)
    close(editor.scaled(0.5)[0](torch.tensor(h)).numpy(), half)


def test_reversed_projections_are_the_swapped_fit():
    both = activations(sides(40))
    reversed_ = fit_sea(both, (0.95, 0.8), projections="reversed", dtype=torch.float64)
    swapped = fit_sea(both.swapped(), (0.8, 0.95), dtype=torch.float64)
    close(matrix(reversed_), matrix(swapped))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("projections", "both, positive, negative, reversed"),
        ("merge", "norm, sum, average"),
        ("merge_space", "features, activations"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_an_unknown_variant_is_refused(name, known):
    with pytest.raises(InputError, match=f"^{name} is one of {known}, and 'neither' was given"):
        fit_sea(activations(sides(20)), **{name: "neither"})


def test_layers_are_fitted_each_on_its_own():
    layers = {layer: sides(20, seed=layer) for layer in (5, 2, 9)}
    every = Activations.from_tensors(
        **{role: {k: torch.tensor(v[i]) for k, v in layers.items()} for i, role in enumerate(ROLES)}
    )
    editor = fit_sea(every, 0.9)
    assert editor.layers == [2, 5, 9]
    for layer, arrays in layers.items():
        alone = fit_sea(activations(arrays, layer), 0.9)
        assert torch.equal(editor[layer].directions, alone[layer].directions)
    assert fit_sea(every, 0.9, layers=[9, 2, 9]).layers == [2, 9]
    for wrong in ([3], []):
        with pytest.raises(InputError, match=r"activations are there of \[2, 5, 9\]"):
            fit_sea(every, 0.9, layers=wrong)


# --- edits of nothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [6, 40])
def test_positive_equal_to_negative_is_exactly_the_identity(n, center):
    neutral, positive, _ = sides(n)
    with pytest.warns(SeaLensWarning, match=r"edits nothing: .*projectors cancel.*check\(\)") as caught:
        editor = fit_sea(activations([neutral, positive, positive.copy()]), 0.9, center=center)
    assert ("try center=True. Otherwise raise explained_variance" in str(caught[0].message)) is not center
    assert ("). Raise explained_variance" in str(caught[0].message)) is center
    h = torch.tensor(probes()).float()
    assert editor.is_identity
    assert torch.equal(editor[0](h), h)


def test_a_dominant_mean_edits_next_to_nothing_until_it_is_centered():
    rng = np.random.default_rng(0)
    mean = 20 * rng.standard_normal(D)
    data = activations([mean + rng.standard_normal((50, D)) for _ in ROLES])
    with pytest.warns(SeaLensWarning, match=r"edits (next to )?nothing.*\(1, 1\).*try center=True") as caught:
        editor = fit_sea(data, 0.998)
    assert len(caught) == 1
    assert (editor.card.layers[0]["rank_positive"], editor.card.layers[0]["rank_negative"]) == (1, 1)
    assert editor.card.layers[0]["displacement"] < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeaLensWarning)
        centered = fit_sea(data, 0.998, center=True)
    assert centered[0].eigenvalues.abs().max() > 0.5


def test_one_layer_that_edits_is_enough_for_silence():
    neutral, positive, negative = sides(30)
    roles = {"neutral": [neutral] * 2, "positive": [positive] * 2, "negative": [positive, negative]}
    data = Activations.from_tensors(
        **{role: {layer: torch.tensor(rows) for layer, rows in enumerate(both)} for role, both in roles.items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeaLensWarning)
        editor = fit_sea(data, 0.9)
    assert [editor[layer].is_identity for layer in (0, 1)] == [True, False]


def test_rows_that_are_all_the_same_cannot_be_centered():
    data = activations([np.tile(side[:1], (6, 1)) for side in sides(6)])
    with pytest.raises(InputError, match="all rows are the same"):
        fit_sea(data, 0.9, center=True)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan"), (0.9, 0.0), (float("nan"), 0.9)])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match="explained_variance must lie in"):
        fit_sea(activations(sides(20)), share)


@pytest.mark.parametrize(("n", "center", "most"), [(6, False, 6), (6, True, 5), (40, False, D)])
def test_a_rank_beyond_the_demonstrations_is_refused(n, center, most):
    data = activations(sides(n))
    fit_sea(data, ranks=(most, 1), center=center)
    for ranks in (most + 1, (1, most + 1), (0, 1)):
        with pytest.raises(InputError, match=f"support 1 to {most} "):
            fit_sea(data, ranks=ranks, center=center)


# --- what the fit must not depend on, and how it must follow ---------------------------------------------------------


@pytest.fixture(params=[(6, False), (6, True), (50, False), (50, True)], ids=lambda p: f"n={p[0]}, center={p[1]}")
def case(request):
    n, center = request.param
    arrays = sides(n, seed=7)

    def fit(changed=None, **options):
        changed = arrays if changed is None else changed
        return fit_sea(activations(changed), 0.95, center=center, dtype=torch.float64, **options)

    return arrays, fit


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_demonstrations_does_not_matter(case, seed):
    arrays, fit = case
    order = np.random.default_rng(seed).permutation(len(arrays[0]))
    close(matrix(fit([side[order] for side in arrays])), matrix(fit()))
    assert np.linalg.norm(matrix(fit([arrays[0], np.roll(arrays[1], 1, axis=0), arrays[2]])) - matrix(fit())) > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_edit_turns_with_the_space(case, seed):
    arrays, fit = case
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]
    turned, h = fit([side @ rotation for side in arrays]), probes()
    close(matrix(turned), rotation.T @ matrix(fit()) @ rotation)
    close(turned[0](torch.tensor(h @ rotation)), fit()[0](torch.tensor(h)).numpy() @ rotation)


@pytest.mark.parametrize("scale", [1e-4, 3.0, 1e5])
def test_the_scale_of_activations_does_not_matter(case, scale):
    arrays, fit = case
    scaled, plain = fit([scale * side for side in arrays]), fit()
    close(scaled[0].eigenvalues.numpy(), plain[0].eigenvalues.numpy())
    close(scaled[0].directions.numpy() ** 2, plain[0].directions.numpy() ** 2)
    close(matrix(scaled), matrix(plain))
    h = probes()
    close(scaled[0](torch.tensor(scale * h)).numpy(), scale * plain[0](torch.tensor(h)).numpy())


@pytest.mark.parametrize("times", [2, 5])
def test_repeating_every_demonstration_changes_nothing(case, times):
    arrays, fit = case
    close(matrix(fit([np.tile(side, (times, 1)) for side in arrays])), matrix(fit()))


def test_swapping_positive_and_negative_negates_the_eigenvalues(case):
    arrays, fit = case
    swapped = fit_sea(
        activations(arrays).swapped(), 0.95, center=fit().card.hyper_parameters["center"], dtype=torch.float64
    )
    close(swapped[0].eigenvalues.flip(0).numpy(), -fit()[0].eigenvalues.numpy())
    close(matrix(swapped), -matrix(fit()))


def test_two_fits_are_bit_identical_and_leave_the_activations_alone(case):
    arrays, fit = case
    first, second = fit()[0], fit()[0]
    assert torch.equal(first.directions, second.directions)
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    assert (first.shift is None) == (second.shift is None)
    assert first.shift is None or torch.equal(first.shift, second.shift)
    data = activations(arrays)
    fit_sea(data, 0.95, center=True)
    assert all(np.array_equal(data[role][0], side) for role, side in zip(ROLES, arrays, strict=True))


def test_the_card_says_how_it_was_fitted():
    card = fit_sea(activations(sides(20), layer=3), (0.9, 0.8), center=True, spectrum="singular_values").card
    assert (card.method, card.site, card.token, card.n_demonstrations) == ("sea", "resid_post", "last", 20)
    assert card.hyper_parameters == {
        "explained_variance": [0.9, 0.8],
        "ranks": None,
        "spectrum": "singular_values",
        "center": True,
        "projections": "both",
        "merge": "norm",
    }
    by_rank = fit_sea(activations(sides(20)), ranks=(1, 2)).card
    assert (by_rank.hyper_parameters["explained_variance"], by_rank.hyper_parameters["ranks"]) == (None, [1, 2])


@pytest.mark.usefixtures("without_type_checks")
def test_pairs_may_be_lists_as_cards_hold_them():
    both = activations(sides(40))
    pair = fit_sea(both, ranks=(2, 3))
    again = fit_sea(both, ranks=pair.card.hyper_parameters["ranks"])
    close(matrix(again), matrix(pair))


@pytest.mark.usefixtures("without_type_checks")
def test_wrong_pairs_and_spectra_are_refused():
    both = activations(sides(40))
    with pytest.raises(InputError, match="A pair"):
        fit_sea(both, ranks=(1, 2, 3))
    with pytest.raises(InputError, match="spectrum is one of squared, singular_values"):
        fit_sea(both, 0.9, spectrum="square")
