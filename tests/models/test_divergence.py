"""KL divergence to the unedited model, against float64 by hand."""

import math
import warnings
from statistics import fmean

import pytest
import torch
from conftest import make_editor

from sea_lens import SeaLensWarning, kl_to_unedited
from sea_lens.errors import InputError
from sea_lens.models import divergence
from sea_lens.models.divergence import UneditedPredictions

TEXTS = ["Q: what color is the sea? A:", "ab", "a text", "The sky is"]


@torch.no_grad()
def kl_by_hand(model, editor, text):
    """KL(unedited || edited) at every token of a text, one forward pass each, in float64."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[0, *ids] if model.cfg.default_prepend_bos else ids])
    logits = model(tokens, use_cache=False)[0]
    with model.hooks(fwd_hooks=editor.fwd_hooks(model)):
        edited = model(tokens, use_cache=False)[0]
    p, q = logits.double().log_softmax(-1), edited.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).tolist()


def test_kl_is_the_mean_over_the_tokens_of_all_texts_but_their_last(bridge):
    editor = make_editor()
    expected = fmean(kl for text in TEXTS for kl in kl_by_hand(bridge, editor, text)[:-1])
    assert expected > 0.01
    for batch_size in (1, 3, 16):
        assert kl_to_unedited(bridge, TEXTS, editor, batch_size=batch_size) == pytest.approx(expected, rel=1e-4)


def test_small_kls_are_exact_and_no_edit_costs_nothing(llama):
    for strength in (1e-2, 1e-4):
        small = make_editor(strength=strength)
        expected = fmean(kl for text in TEXTS for kl in kl_by_hand(llama, small, text)[:-1])
        assert kl_to_unedited(llama, TEXTS, small) == pytest.approx(expected, rel=0.05)
    assert kl_to_unedited(llama, TEXTS, make_editor(strength=0.0)) == 0.0


def test_a_token_that_the_unedited_model_rules_out_adds_nothing(llama):
    """As a logit of -inf does, which some models give tokens that they never say."""

    def rule_out(tensor, hook):
        tensor[..., 5:9] = -torch.inf
        return tensor

    with llama.hooks(fwd_hooks=[("unembed.hook_out", rule_out)]):
        found = kl_to_unedited(llama, TEXTS, make_editor())
    assert math.isfinite(found)
    assert found > 0.01


@pytest.mark.parametrize("batch_size", [1, 2])
def test_texts_too_short_for_an_editors_positions_count_as_they_are(llama, batch_size):
    editor = make_editor().at_positions(8)
    expected = [kl for text in TEXTS for kl in kl_by_hand(llama, editor, text)[:-1]]
    found = kl_to_unedited(llama, TEXTS, editor, batch_size=batch_size)
    assert found == pytest.approx(fmean(expected), rel=1e-4)
    assert found > 0
    with pytest.warns(SeaLensWarning, match="edits no token of these texts"):
        assert kl_to_unedited(llama, TEXTS, editor.at_positions(100)) == 0.0


def test_what_follows_the_last_token_does_not_count(llama):
    text, editor = "The sky is", make_editor()
    last = len(text)  # after the beginning token
    assert kl_by_hand(llama, editor, text)[last] > 1e-3
    assert kl_to_unedited(llama, [text], editor.at_positions(last)) == 0.0
    assert kl_to_unedited(llama, [text], editor.at_positions(last - 1)) > 1e-4


def test_impossible_texts_are_named(llama):
    editor = make_editor()
    for nothing in (["", ""], []):
        with pytest.raises(InputError, match="no text has two tokens"):
            kl_to_unedited(llama, nothing, editor)
    assert kl_to_unedited(llama, ["", *TEXTS], editor) == pytest.approx(kl_to_unedited(llama, TEXTS, editor), rel=1e-6)
    with pytest.raises(InputError, match=r"Neutral text 2 is 131 tokens long, but the model's context is 128"):
        kl_to_unedited(llama, ["", "short", "x" * 130], editor)
    with pytest.raises(InputError, match="batch_size"):
        kl_to_unedited(llama, TEXTS, editor, batch_size=0)


@pytest.mark.parametrize("kept", [0, 2**25])
def test_the_unedited_model_is_run_once_for_all_editors_where_its_states_fit(llama, monkeypatch, kept):
    monkeypatch.setattr(divergence, "STATES_AT_ONCE", kept)
    ran, states = [], UneditedPredictions._states
    monkeypatch.setattr(UneditedPredictions, "_states", lambda *given: ran.append(given[1]) or states(*given))
    editors = [make_editor(strength=strength) for strength in (0.1, 0.5, 1.0)]
    predictions = UneditedPredictions.of(llama, TEXTS, batch_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [predictions.kl_to(one) for one in editors]
    assert len(ran) == (4 if kept else 6) * len(set(ran))
    assert found == [kl_to_unedited(llama, TEXTS, one, batch_size=64) for one in editors]
