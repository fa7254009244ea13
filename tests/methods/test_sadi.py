"""SADI against its published rule, on planted elements of each kind and inside a tiny model."""

import numpy as np
import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")


def planted(gaps, n=200, width=32, site="resid_post", model=None):
    """Sides that differ by a gap at some coordinates of some layers, some upwards and some downwards."""
    sides = {role: {layer: RNG.normal(0, 1, (n, width)) for layer in (0, 1)} for role in ("positive", "negative")}
    for (layer, coordinate), gap in gaps.items():
        sides["positive"][layer][:, coordinate] += gap
    tensors = {role: {layer: torch.tensor(rows) for layer, rows in side.items()} for role, side in sides.items()}
    return sl.Activations.from_tensors(**tensors, site=site, model=model), sides


@pytest.mark.parametrize("site", ["resid_post", "mlp.hook_post"])
def test_the_coordinates_of_largest_absolute_difference_are_multiplied(site):
    gaps = {(0, 3): -4.0, (1, 30): 3.0, (1, 7): -2.0}
    data, sides = planted(gaps, site=site)
    editor = sl.SADI(n_elements=3, delta=5.0).fit(data).scaled(0.5)
    found = np.concatenate([sides["positive"][layer].mean(0) - sides["negative"][layer].mean(0) for layer in (0, 1)])
    mask = np.zeros(64)
    mask[np.argsort(-np.abs(found))[:3]] = 1
    assert {divmod(index, 32) for index in mask.nonzero()[0]} == set(gaps)
    h = RNG.normal(0, 2, (40, 64))
    expected = h + 0.5 * 5.0 * (h * mask)
    for layer in (0, 1):
        columns = slice(32 * layer, 32 * layer + 32)
        edited = editor[layer](torch.tensor(h[:, columns]))
        np.testing.assert_allclose(edited, expected[:, columns], rtol=1e-12)
        assert np.array_equal(edited[:, mask[columns] == 0], h[:, columns][:, mask[columns] == 0])
    assert set(editor.card.reports[sl.Site(1, site)].numbers) == {"coordinate 7", "coordinate 30"}


def test_heads_are_ranked_by_the_length_of_their_difference_and_multiplied_whole():
    apart = {
        (0, 8): 3.0,
        (0, 9): -3.0,
    }  # head 1 of width 8: its coordinates move apart, and their average does not move
    data, _ = planted({**apart, (1, 24): 1.5}, site="attn.hook_z")
    editor = sl.SADI(n_elements=2, delta=1.0, d_head=8).fit(data)
    h = torch.randn(5, 32)
    mask = torch.zeros(2, 32)
    mask[0, 8:16] = mask[1, 24:32] = 1
    for layer in (0, 1):
        torch.testing.assert_close(editor[layer](h), h + h * mask[layer])
    assert sl.SADI(n_elements=1, d_head=8).fit(data).layers == [0]  # a site without a chosen head is not edited
    coordinates = sl.SADI(n_elements=2, elements="coordinates").fit(data)
    assert coordinates.layers == [0]
    assert coordinates[0].changed.nonzero().flatten().tolist() == [8, 9]


def test_swapped_sides_choose_the_same_elements_and_a_turned_basis_others():
    data, _ = planted({(0, 3): -4.0, (1, 30): 3.0})
    editor = sl.SADI(n_elements=2).fit(data)
    assert sl.refit(editor, data.swapped()).fingerprint == editor.fingerprint  # |D| has no sign: a' needs none
    turn = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q
    turned = sl.Activations.from_tensors(
        **{role: {layer: data[role][layer] @ turn for layer in (0, 1)} for role in ("positive", "negative")}
    )
    h = torch.randn(9, 32, dtype=torch.float64)
    again = sl.SADI(n_elements=2).fit(turned)
    assert not all(torch.allclose(again[layer](h @ turn), editor[layer](h) @ turn) for layer in again.layers)


def test_on_a_model_a_heads_edit_is_a_multiple_of_what_it_writes(llama, tmp_path):
    data, _ = planted({(1, 9): 4.0}, site="attn.hook_z", model=llama)
    editor = sl.SADI(n_elements=1, delta=2.0).fit(data)  # heads' width is the model's
    editor.save_pretrained(tmp_path)
    assert sl.Editor.from_pretrained(tmp_path).fingerprint == editor.fingerprint
    tokens, weight = torch.arange(40, 49)[None], llama.original_model.model.layers[1].self_attn.o_proj.weight
    _, cache = llama.run_with_cache(tokens)
    written = cache["blocks.1.attn.hook_z"][:, :, 1] @ weight[:, 8:16].T
    added = [("blocks.1.hook_attn_out", lambda tensor, hook: tensor + 2 * written)]
    with torch.no_grad():
        with editor.attached(llama):
            edited = llama(tokens, use_cache=False)
        with llama.hooks(fwd_hooks=added):
            expected = llama(tokens, use_cache=False)
    torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_fitted_is_refused():
    data, _ = planted({(0, 3): 4.0}, site="attn.hook_z")
    for settings, words in (
        ({}, "has no known attention heads"),
        ({"d_head": 5}, "do not divide the width 32"),
    ):
        with pytest.raises(InputError, match=words):
            sl.SADI(**settings).fit(data)
    with pytest.warns(sl.SeaLensWarning, match="65 elements were to be edited, and there are 64: all of them are"):
        assert sl.SADI(65, elements="coordinates").fit(data)[1].rank == 32
    with pytest.raises(InputError, match="n_elements must be"):
        sl.SADI(n_elements=0)
    same = sl.Activations.from_tensors(positive={0: torch.ones(4, 3)}, negative={0: torch.ones(4, 3)})
    with pytest.raises(InputError, match="no element tells them apart"):
        sl.SADI(n_elements=1).fit(same)
