"""Editors in feature spaces keep every promise of linear ones: the tests of those are run again on them, by import."""

import math
import pickle
import warnings

import pytest
import torch
from conftest import ARCHITECTURES, build_bridge
from test_editor import (  # noqa: F401  # run here with this file's editors
    FALSE,
    THINGS,
    TRUE,
    attached_logits,
    generate,
    logits,
    no_hooks,
    row,
    test_an_edit_does_not_look_ahead,
    test_attached_equals_its_hooks_and_edits_by_hand,
    test_batches_and_padding_change_nothing,
    test_inference_mode_does_not_spoil_an_editor,
    test_nested_editors_compose,
    test_positions_before_the_first_are_spared,
    test_strength_zero_is_the_identity_bit_for_bit,
    test_the_model_is_bit_identical_afterwards,
)

from sea_lens import Activations, Demonstrations, Editor, collect_activations, fit_sea
from sea_lens.errors import FileFormatError, SeaLensWarning
from sea_lens.methods.sea.feature_space import ELU, FeatureSpaceEdit, Identity, SquaredExponential, Tanh

KINDS = {
    "identity": {"feature_map": Identity()},
    "squared exponential": {"feature_map": SquaredExponential(3.0)},
    "tanh": {"feature_map": Tanh(2.0), "center": True},
    "tanh, merged as activations": {"feature_map": Tanh(2.0), "merge_space": "activations"},
    "elu": {"feature_map": ELU(), "center": True, "feature_unit": 1.0},
}


class Arcsinh:
    """A user's own map."""

    domain = (-math.inf, math.inf)

    def __init__(self, scale=1.0):
        self.scale = scale

    def forward(self, x):
        return torch.asinh(x / self.scale)

    def inverse(self, features):
        return self.scale * torch.sinh(features)


def quiet_fit(activations, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return fit_sea(activations, 0.99, **options)


def random_activations(model):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(30, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    return Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=model)


@pytest.fixture(scope="module")
def collected(bridge):
    rows = Demonstrations.from_lists([f"The {t} is" for t in THINGS], TRUE, FALSE, [t[::-1] for t in THINGS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return collect_activations(bridge, rows, progress=False)


@pytest.fixture(scope="module", params=KINDS)
def editor(request, collected):
    """An editor of each kind, fitted on the architecture at hand."""
    fitted = quiet_fit(collected, **KINDS[request.param])
    assert all(isinstance(fitted[layer], FeatureSpaceEdit) and fitted[layer].rank > 0 for layer in range(3))
    return fitted


@pytest.fixture(scope="module", params=KINDS)
def llama_editor(request, llama):
    return quiet_fit(random_activations(llama), **KINDS[request.param])


# --- at work ---------------------------------------------------------------------------------------------------------


def test_the_kv_cache_changes_nothing_in_feature_space(bridge, editor):
    tokens = torch.cat([row(bridge, "one text"), row(bridge, "two text")])
    strong = editor.scaled(2.0).at_positions(2)
    edited = generate(bridge, tokens, strong)
    assert edited != generate(bridge, tokens)
    assert generate(bridge, tokens, strong, cached=False) == edited


def test_the_same_tokens_give_the_same_bits(bridge, editor):
    tokens = row(bridge)
    first = logits(bridge, tokens, editor)
    assert torch.equal(logits(bridge, tokens, editor), first)
    assert torch.equal(attached_logits(bridge, tokens, pickle.loads(pickle.dumps(editor))), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_models_dtype_is_kept(architecture, dtype):
    model, seen = build_bridge(architecture, dtype=dtype), []
    watch = [("blocks.1.hook_resid_post", lambda tensor, hook: seen.append(tensor.dtype))]
    for options in KINDS.values():
        fitted = quiet_fit(random_activations(model), **options)
        with torch.no_grad(), fitted.attached(model), model.hooks(fwd_hooks=watch):
            edited = model(row(model), use_cache=False)
        assert edited.dtype == dtype
        assert edited.isfinite().all()
    assert seen == [dtype] * len(KINDS)
    assert no_hooks(model)


def test_half_precision_is_near_full_precision(llama, llama_editor):
    exact = attached_logits(llama, row(llama), llama_editor)
    for dtype in (torch.float16, torch.bfloat16):
        half = build_bridge("llama", dtype=dtype)
        roughly = attached_logits(half, row(half), llama_editor).float()
        assert (roughly - exact).norm() < 0.05 * exact.norm()


# --- on disk ---------------------------------------------------------------------------------------------------------


def written_down(editor):
    """Everything there is to an editor, as plain values."""
    for layer, edit in editor.edits.items():
        yield layer, edit.feature_map, edit.unit, edit.weight, edit.strength, edit.restore_norm
        for part in edit.parts:
            yield part.strength, part.restore_norm, part.kept
            for tensor in (part.directions, part.eigenvalues, part.shift):
                yield None if tensor is None else (tensor.dtype, tensor.tolist())


@pytest.mark.parametrize("merge", ["norm", "sum", "average"])
@pytest.mark.parametrize("merge_space", ["features", "activations"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    "feature_map", [Identity(), SquaredExponential(1 / 3), Tanh(0.1 + 0.2), ELU(0.7)], ids=lambda m: type(m).__name__
)
def test_saving_and_loading_in_feature_space_is_bit_identical(llama, tmp_path, feature_map, center, merge_space, merge):
    options = {"feature_map": feature_map, "center": center, "merge_space": merge_space, "merge": merge}
    saved = quiet_fit(random_activations(llama), **options).scaled(1 / 3).at_positions(2)
    saved.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    assert list(written_down(loaded)) == list(written_down(saved))
    assert (loaded.card, loaded.positions, repr(loaded)) == (saved.card, 2, repr(saved))
    h = 3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(loaded[layer](h), saved[layer](h)) for layer in range(3))


def test_saving_and_loading_gives_the_same_bits_on_every_architecture(bridge, editor, tmp_path):
    editor.save_pretrained(tmp_path)
    loaded, tokens = Editor.from_pretrained(tmp_path), row(bridge)
    assert torch.equal(attached_logits(bridge, tokens, loaded), attached_logits(bridge, tokens, editor))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tensors_of_other_dtypes_are_saved_as_they_are(llama, tmp_path, dtype):
    saved = quiet_fit(random_activations(llama), feature_map=Tanh(2.0), merge_space="activations", dtype=dtype)
    saved.save_pretrained(tmp_path)
    assert list(written_down(Editor.from_pretrained(tmp_path))) == list(written_down(saved))
    assert saved[0].parts[1].directions.dtype == dtype


def test_an_editor_with_a_map_of_ones_own_is_loaded_with_the_map_only(llama, tmp_path):
    own = Arcsinh(2.0)
    saved = quiet_fit(random_activations(llama), feature_map=own, center=True)
    assert saved.card.hyper_parameters["feature_map"] == {"name": "Arcsinh"}
    saved.save_pretrained(tmp_path)
    for given in (None, Tanh(2.0)):
        with pytest.raises(FileFormatError, match=r"its maker's own, Arcsinh, .*feature_map=Arcsinh\(\.\.\.\)"):
            Editor.from_pretrained(tmp_path, feature_map=given)
    loaded = Editor.from_pretrained(tmp_path, feature_map=own)
    assert list(written_down(loaded)) == list(written_down(saved))
    assert torch.equal(attached_logits(llama, row(llama), loaded), attached_logits(llama, row(llama), saved))


def test_a_map_of_ones_own_with_the_name_of_ours_is_not_mistaken_for_it(llama, tmp_path):
    namesake = type("Tanh", (Arcsinh,), {})
    quiet_fit(random_activations(llama), feature_map=namesake()).save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="its maker's own, Tanh"):
        Editor.from_pretrained(tmp_path)


def test_a_map_given_for_an_editor_of_another_map_is_not_put_in_its_place(llama, tmp_path):
    saved = quiet_fit(random_activations(llama), feature_map=Tanh(2.0))
    saved.save_pretrained(tmp_path)
    try:
        loaded = Editor.from_pretrained(tmp_path, feature_map=Tanh(5.0))
    except FileFormatError:
        return
    assert list(written_down(loaded)) == list(written_down(saved))
