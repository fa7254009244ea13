"""One decomposition for many sizes, and the same fit on other activations: against single fits, bit for bit."""

import dataclasses
import warnings

import pytest
import torch
from test_sea import ROLES, activations, probes, sides

from sea_lens import Activations, Editor, fit_sea
from sea_lens.errors import InputError
from sea_lens.methods.sea.feature_space import FeatureSpaceEdit, Tanh
from sea_lens.methods.sea.sea import Ranks, SEARule, refit_sea

RULES = [
    {},
    {"center": True, "spectrum": "singular_values", "merge": "sum"},
    {"projections": "reversed", "merge": "average"},
    {"feature_map": Tanh(3.0), "center": True},
    {"feature_map": Tanh(30.0), "feature_unit": 0.2, "merge_space": "activations", "projections": "reversed"},
]


def layers_of(*layers: int, n: int = 20, first_seed: int = 0) -> Activations:
    found = {layer: sides(n, seed=first_seed + layer) for layer in layers}
    return Activations.from_tensors(
        **{role: {k: torch.tensor(v[i]) for k, v in found.items()} for i, role in enumerate(ROLES)}
    )


def tensors(edit):
    parts = edit.parts if isinstance(edit, FeatureSpaceEdit) else (edit,)
    found = [tensor for part in parts for tensor in (part.directions, part.eigenvalues, part.shift)]
    return [tensor for tensor in found if tensor is not None]


def same(one: Editor, other: Editor) -> bool:
    """Bit for bit, dtypes and cards included; and what stands beside the tensors, by what edits do."""
    h = torch.tensor(probes())
    return (one.layers, one.card, one.positions) == (other.layers, other.card, other.positions) and all(
        torch.equal(one[layer](h), other[layer](h))
        and all(
            torch.equal(a, b) and a.dtype == b.dtype
            for a, b in zip(tensors(one[layer]), tensors(other[layer]), strict=True)
        )
        for layer in one.layers
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
def test_many_sizes_at_once_are_single_fits_bit_for_bit(rule):
    data = layers_of(0, 3, 4)
    sizes = [0.9, (0.95, 0.6), Ranks(2), Ranks((3, 1)), 0.9]
    editors = SEARule(**rule).fit(data, sizes, layers=[4, 0], dtype=torch.float64, progress=False)
    assert len(editors) == len(sizes)
    for size, editor in zip(sizes, editors, strict=True):
        chosen = {"ranks": size.numbers} if isinstance(size, Ranks) else {"explained_variance": size}
        assert same(editor, fit_sea(data, **chosen, **rule, layers=[0, 4], dtype=torch.float64))
    assert not same(editors[0], editors[1])
    assert not same(editors[2], editors[3])


def test_many_sizes_at_once_are_fitted_in_silence():
    neutral, positive, _ = sides(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (editor,) = SEARule().fit(activations([neutral, positive, positive]), [0.9], progress=False)
    assert editor.is_identity


def test_ranks_are_for_both_subspaces_or_a_pair():
    assert (Ranks(3).pair, Ranks((4, 1)).pair) == ((3, 3), (4, 1))
    for size, found in ((Ranks(3), (3, 3)), (Ranks((4, 1)), (4, 1))):
        (editor,) = SEARule().fit(activations(sides(20)), [size], progress=False)
        facts = editor.card.layers[0]
        assert (facts["rank_positive"], facts["rank_negative"]) == found


@pytest.mark.parametrize("size", [{"explained_variance": (0.95, 0.8)}, {"ranks": (3, 1)}])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
def test_refitting_is_the_same_fit_on_other_activations(rule, size):
    data, other = layers_of(0, 3, 4), layers_of(0, 3, 4, n=30, first_seed=50)
    editor = fit_sea(data, **size, **rule)
    assert same(refit_sea(editor, data), editor)
    assert same(refit_sea(editor, other), fit_sea(other, **size, **rule))
    assert same(refit_sea(editor, data.swapped()), fit_sea(data.swapped(), **size, **rule))
    assert not same(refit_sea(editor, other), editor)


@pytest.mark.parametrize("feature_map", [None, Tanh(3.0)])
@pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
def test_refitting_keeps_layers_strengths_and_positions(feature_map, tmp_path):
    data = layers_of(0, 3, 4)
    fitted = fit_sea(data, 0.9, center=True, feature_map=feature_map)
    edits = {0: fitted[0].scaled(0.5), 4: fitted[4].scaled(-2.0)}
    view = dataclasses.replace(fitted, edits=edits).at_positions(3)
    again = refit_sea(view, data)
    assert (again.layers, again.positions) == ([0, 4], 3)
    assert [again[layer].strength for layer in (0, 4)] == [0.5, -2.0]
    h = torch.tensor(probes())
    assert all(torch.equal(again[layer](h), view[layer](h)) for layer in (0, 4))
    view.save_pretrained(tmp_path)
    assert same(refit_sea(Editor.from_pretrained(tmp_path), data), again)


def test_refitting_keeps_the_dtype():
    editor = fit_sea(layers_of(0), 0.9, dtype=torch.float64)
    assert same(refit_sea(editor, layers_of(0)), editor)


def test_only_editors_of_sea_are_refitted_and_only_on_their_layers():
    editor = fit_sea(layers_of(0, 3), 0.9)
    with pytest.raises(InputError, match=r"Layers \[3\] were asked for; activations are there of \[0, 4\]"):
        refit_sea(editor, layers_of(0, 4))
    other = dataclasses.replace(editor, card=dataclasses.replace(editor.card, method="by hand"))
    with pytest.raises(InputError, match="Only editors of fit_sea can be fitted again, and this one is of 'by hand'"):
        refit_sea(other, layers_of(0, 3))
