import pytest
import torch
from methods.oracles import layers_of

from sea_lens import Activations, Editor, MeanDifference, Site, refit
from sea_lens.errors import InputError


def test_the_shift_is_the_difference_of_means_in_float64():
    data = layers_of(0, 3, n=50)
    for layer in (0, 3):
        expected = data.positive[layer].double().mean(0) - data.negative[layer].double().mean(0)
        h = torch.randn(7, 16, dtype=torch.float64)
        for normalize in (False, True):
            editor = MeanDifference(normalize).fit(data)
            wanted = expected / expected.norm() if normalize else expected
            torch.testing.assert_close(editor.scaled(-2.0)[layer](h), h - 2 * wanted, atol=1e-6, rtol=1e-6)
            assert editor.card.reports[Site(layer)].displacement > 0
        torch.testing.assert_close(refit(editor, data.swapped())[layer](h), h - wanted, atol=1e-6, rtol=1e-6)


def test_an_offset_and_neutral_activations_do_not_matter():
    data = layers_of(2)
    without = Activations.from_tensors(positive={2: data.positive[2] + 1e4}, negative={2: data.negative[2] + 1e4})
    one, other = (MeanDifference().fit(given)[2](torch.zeros(16)) for given in (data, without))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="needs positive, negative activations, and there are no negative ones"):
        MeanDifference().fit(Activations({"positive": data["positive"]}))


def test_it_is_saved_loaded_and_fitted_again(tmp_path):
    data = layers_of(0, 3)
    editor = MeanDifference(normalize=True).fit(data).scaled(3.0)
    editor.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    assert loaded.fingerprint == editor.fingerprint == refit(loaded, data).fingerprint
