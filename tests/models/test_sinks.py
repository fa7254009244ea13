"""Attention sinks, on a model that is built to have them: found, spared by every method's editor, and kept on disk."""

import pytest
import torch
from conftest import EMBEDDED, build_bridge

import sea_lens as sl
from sea_lens.editing.sparing import NotMassive, in_common, parts_of
from sea_lens.editing.where import Both, From, PromptOnly
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.sinks import MASSIVE, N_TEXTS, find_sinks
from sea_lens.models.tokens import token_ids


@pytest.fixture(scope="module")
def model():
    """The beginning token and the digit 7 have embeddings fifty times as long as all others."""
    model = build_bridge("llama")
    rows = model.original_model.get_input_embeddings().weight
    with torch.no_grad():
        rows.copy_(torch.nn.functional.normalize(rows, dim=1))
        for token in (0, *model.tokenizer("7", add_special_tokens=False)["input_ids"]):
            rows[token] *= 400
    return model


@pytest.fixture(scope="module")
def activations(model):
    prompts = [f"{i} Where is it? 7 or so." for i in range(9)]
    answers = [[f" {i}{name}" for i in range(9)] for name in ("here", "there", "nowhere")]
    return sl.collect_activations(model, sl.Demonstrations.from_lists(prompts, *answers), progress=False)


def norms(model, text, hooks=()):
    """[layers, pos], and where the text holds a 7."""
    ids = token_ids(model, text)[: model.cfg.n_ctx]
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        _, cache = model.run_with_cache(torch.tensor([ids]))
    return torch.stack([cache[f"blocks.{layer}.hook_resid_post"][0] for layer in range(3)])


def test_sinks_are_tokens_of_many_times_the_median_norm(model):
    found = find_sinks(model)
    rest = [norms(model, text)[:, 1:].norm(dim=-1) for text in sl.neutral_texts(model)[:N_TEXTS]]
    assert found.first
    for layer in range(3):
        limit = MASSIVE * torch.cat([each[layer] for each in rest]).median()
        assert found.limits[f"blocks.{layer}.hook_resid_post"] == pytest.approx(float(limit), rel=1e-5)
    assert find_sinks(build_bridge("llama")) is None


def test_the_embedded_models_have_none():
    assert [find_sinks(load()[0]) for load in EMBEDDED.values()] == [None] * len(EMBEDDED)


METHODS = [sl.SEA(0.5, center=True), sl.MeanDifference(), sl.LEACE()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_editors_spare_sinks_and_edit_all_else(model, activations, method):
    editor = method.fit(activations).at_layers([1])
    text = "1 Is it 7, or 8?"
    ids = token_ids(model, text)
    seven = ids.index(model.tokenizer("7", add_special_tokens=False)["input_ids"][0])
    plain, edited = norms(model, text), norms(model, text, editor.fwd_hooks(model))
    moved = (plain[1] != edited[1]).any(-1)
    assert "all but the first token and massive ones" in repr(editor)
    assert moved.nonzero().flatten().tolist() == [place for place in range(len(ids)) if place not in (0, seven)]
    everywhere = norms(model, text, editor.at_positions("all").fwd_hooks(model))
    assert (plain[1] != everywhere[1]).any(-1).all()


def test_sparing_goes_with_chosen_positions_and_controls(model, activations):
    editor = sl.MeanDifference().fit(activations)
    late = editor.at_positions(4)
    assert parts_of(late.where) == (From(4), editor.where)
    assert parts_of(late.at_positions("prompt").where) == (PromptOnly(), editor.where)
    assert late.at_positions("all").where is None
    assert sl.random_editor_like(late, 0).where == late.where
    assert sl.refit(late, activations.swapped()).where == late.where
    text, places = "1 Is it 7, or 8?", range(4)
    plain, edited = norms(model, text), norms(model, text, late.fwd_hooks(model))
    assert torch.equal(plain[0, places], edited[0, places])
    assert not torch.equal(plain[0, 5:], edited[0, 5:])


def test_added_editors_spare_what_either_does(model, activations):
    one, other = sl.MeanDifference().fit(activations), sl.LEACE().fit(activations)
    assert (one + other).where == one.where
    assert (one + sl.Editor(dict(other.edits))).where == one.where
    lower = NotMassive(False, tuple((name, limit / 2) for name, limit in one.where.limits))
    assert in_common(one.where, lower) == NotMassive(True, lower.limits)
    assert parts_of(in_common(Both(From(2), one.where), From(2))) == (From(2), one.where)
    with pytest.raises(InputError, match="different positions"):
        one.at_positions(3) + other


def test_what_is_spared_is_kept_on_disk_and_in_streams(model, activations, tmp_path):
    activations.save(tmp_path / "a.safetensors")
    assert sl.Activations.load(tmp_path / "a.safetensors").sinks == activations.sinks
    editor = sl.SEA(0.9).fit(activations).at_positions(1)
    editor.save_pretrained(tmp_path / "editor")
    assert sl.Editor.from_pretrained(tmp_path / "editor").fingerprint == editor.fingerprint
    fitter = sl.SEAFitter().update(activations)
    fitter.save(tmp_path / "fitter")
    assert sl.SEAFitter.load(tmp_path / "fitter").fit(sl.SEA(0.9)).where == sl.SEA(0.9).fit(activations).where


def test_they_do_not_depend_on_the_batch(model, activations):
    prompts = [f"{i} Where is it? 7 or so." for i in range(9)]
    answers = [[f" {i}{name}" for i in range(9)] for name in ("here", "there", "nowhere")]
    rows = sl.Demonstrations.from_lists(prompts, *answers)
    assert sl.collect_activations(model, rows, [1], batch_size=2, progress=False).sinks == activations.sinks


def test_a_fit_on_sinks_themselves_is_warned_about(model):
    prompts = [f"{i} Where is it?" for i in range(9)]
    rows = sl.Demonstrations.from_lists(prompts, [" 7"] * 5 + [" b"] * 4, [" c"] * 9)
    activations = sl.collect_activations(model, rows, [1, 2], progress=False)
    with pytest.warns(SeaLensWarning, match=r"5 of 18 activations are those of attention sinks, at layers 1-2"):
        sl.MeanDifference().fit(activations)


def test_editors_on_the_model_have_no_part_in_what_is_found(model, activations):
    other = build_bridge("llama")
    with sl.Editor({0: sl.AffineEdit.of_shift(torch.full((32,), 1e3))}).attached(other):
        assert find_sinks(other) is None
        other(torch.tensor([[0, 5]]))
