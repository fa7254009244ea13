import pytest
import torch

from sea_lens import Activations, Editor, EditorCard, fit_sea, random_editor
from sea_lens.analysis.controls import RandomDirectionEdit
from sea_lens.edits import LowRankEdit
from sea_lens.errors import InputError, ModelMismatchError

STRENGTHS = [0.0, 0.5, 1.0, 2.0, -1.0]
D_MODEL, LAYERS = 32, range(3)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fit(centre=False, restore_norm=True, model=None, dtype=torch.float64, scale=1.0):
    """An editor with different positive and negative ranks, on activations that share a mean."""
    mean = 2 * normal(D_MODEL, seed=9)
    neutral, positive, negative = (
        {layer: scale * (normal(40, D_MODEL, seed=10 * role + layer) + mean) for layer in LAYERS} for role in range(3)
    )
    activations = Activations.from_tensors(neutral=neutral, positive=positive, negative=negative, model=model)
    return fit_sea(activations, ranks=(3, 2), centre=centre, merge="norm" if restore_norm else "sum", dtype=dtype)


def length(rows):
    return torch.linalg.vector_norm(rows, dim=-1)


@pytest.fixture(scope="module")
def editor():
    return fit(centre=True)


# --- norm-matched, token by token ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("restore_norm", [True, False])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_token_moves_as_far_and_ends_as_long_as_under_the_fitted_edit(
    dtype, tolerance, centre, restore_norm, strength
):
    fitted = fit(centre, restore_norm).scaled(strength)
    control = random_editor(fitted, seed=0)
    h = (normal(5, 7, D_MODEL, seed=50) + 2 * normal(D_MODEL, seed=9)).to(dtype)
    for layer in LAYERS:
        real, random = fitted[layer](h), control[layer](h)
        distance = length(real - h)
        assert distance.min() > 0.1 or strength == 0
        torch.testing.assert_close(length(random - h), distance, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(length(random), length(real), rtol=tolerance, atol=tolerance)
        if restore_norm:
            torch.testing.assert_close(length(random), length(h), rtol=tolerance, atol=tolerance)
        # With as many directions out of 32 as these, chance overlap is small: the control does something else.
        assert strength == 0 or (length(random - real) / distance).median() > 0.5


def test_what_the_edit_does_along_the_token_is_kept(editor):
    h = normal(9, D_MODEL, seed=51)
    for layer in LAYERS:
        real, random = editor[layer](h), random_editor(editor, 0)[layer](h)
        torch.testing.assert_close((random * h).sum(-1), (real * h).sum(-1), rtol=1e-10, atol=1e-10)


def test_tokens_of_zeros_stay_finite(editor):
    for view in (editor, fit(centre=True, restore_norm=False), fit()):
        control = random_editor(view, seed=0)
        zero = torch.zeros(1, D_MODEL, dtype=torch.float64)
        assert control[0](zero).isfinite().all()
        torch.testing.assert_close(length(control[0](zero)), length(view[0](zero)), rtol=1e-10, atol=1e-10)


# --- random directions -----------------------------------------------------------------------------------------------


def test_it_writes_to_a_random_subspace_of_the_same_rank(editor):
    control = random_editor(editor, seed=3)
    h = normal(60, D_MODEL, seed=52)
    for layer in LAYERS:
        edit, fitted = control[layer], editor[layer]
        assert isinstance(edit, RandomDirectionEdit)
        assert edit.rank == fitted.rank == 5
        assert (edit.d_model, edit.strength) == (D_MODEL, fitted.strength)
        torch.testing.assert_close(edit.directions.T @ edit.directions, torch.eye(5, dtype=torch.float64))
        # The move is a sum of the token itself and of what is written to the directions.
        rows, moves = torch.nn.functional.normalize(h, dim=-1), edit(h) - h
        outside = torch.eye(D_MODEL, dtype=torch.float64) - edit.directions @ edit.directions.T
        rest, along = moves @ outside, torch.nn.functional.normalize(rows @ outside, dim=-1)
        torch.testing.assert_close(rest, (rest * along).sum(-1, keepdim=True) * along, rtol=0, atol=1e-10)


def test_the_fitted_directions_are_not_reproduced(editor):
    """The principal angles between random 5-dimensional subspaces of 32 dimensions: no cosine is near 1."""
    for seed in range(5):
        control = random_editor(editor, seed)
        for layer in LAYERS:
            cosines = torch.linalg.svdvals(editor[layer].directions.T @ control[layer].directions)
            assert cosines.max() < 0.9
            assert cosines.mean() < 0.6


def test_seeds_and_layers_differ_and_one_seed_is_bit_identical(editor):
    h = normal(8, D_MODEL, seed=53)
    first, again, other = random_editor(editor, 0), random_editor(editor, 0), random_editor(editor, 1)
    for layer in LAYERS:
        assert torch.equal(first[layer].directions, again[layer].directions)
        assert torch.equal(first[layer](h), again[layer](h))
        assert (first[layer].directions - other[layer].directions).abs().max() > 0.1
    assert (first[0].directions - first[1].directions).abs().max() > 0.1


def test_torchs_own_randomness_is_left_alone(editor):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_editor(editor, 5)
    assert torch.equal(torch.rand(3), expected)


# --- an editor like another ------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is(editor):
    control = random_editor(editor.scaled(0.5), seed=7)
    assert control.card.method == "random control of sea"
    assert control.card.hyper_parameters["seed"] == 7
    assert control.card.hyper_parameters["ranks"] == [3, 2]
    assert control.layers == editor.layers
    assert "random directions, otherwise as rank 5" in repr(control)
    assert "strength 0.5" in repr(control)


def test_positions_and_layer_views_carry_over(editor):
    control = random_editor(editor.at_positions(2).last_layers(2), seed=0)
    assert control.positions == 2
    assert control.layers == [1, 2]


def test_scaling_a_control_is_the_control_of_the_scaled_editor(editor):
    h = normal(6, D_MODEL, seed=54)
    for strength in STRENGTHS:
        scaled, of_scaled = random_editor(editor, 0).scaled(strength), random_editor(editor.scaled(strength), 0)
        assert torch.equal(scaled[1](h), of_scaled[1](h))


def test_identity_editors_stay_identities(editor):
    h = normal(4, D_MODEL, seed=55, dtype=torch.float32)
    empty = LowRankEdit(torch.zeros(D_MODEL, 0), torch.zeros(0))
    for identity in (editor.scaled(0.0), Editor({0: empty, 1: empty}, EditorCard("by hand", {}))):
        control = random_editor(identity, seed=0)
        assert control.is_identity
        assert control[0](h) is h
    assert not random_editor(editor, seed=0).is_identity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept(editor, dtype):
    h = normal(4, D_MODEL, seed=56).to(dtype)
    edited = random_editor(editor, 0)[0](h)
    assert edited.dtype == dtype
    distance = length((editor[0](h) - h).double())
    torch.testing.assert_close(length((edited - h).double()), distance, rtol=0.02, atol=0)


def test_batched_equals_single(editor):
    h, edit = normal(3, 4, D_MODEL, seed=57), random_editor(editor, 0)[1]
    together = edit(h)
    for i in range(3):
        torch.testing.assert_close(edit(h[i]), together[i], rtol=1e-12, atol=1e-12)
        for j in range(4):
            torch.testing.assert_close(edit(h[i, j]), together[i, j], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_attached_to_a_model_every_layer_moves_as_far_as_under_the_editor(llama, seed):
    editor = fit(centre=True, model=llama, dtype=torch.float32, scale=0.3)
    control, tokens, before, after = random_editor(editor, seed), torch.arange(2, 14)[None], {}, {}

    def keep_in(found):
        def keep(tensor, hook):
            found[hook.layer()] = tensor.clone()

        return [(f"blocks.{layer}.hook_resid_post", keep) for layer in LAYERS]

    with torch.no_grad():
        plain = llama(tokens, use_cache=False)
        fitted = llama.run_with_hooks(tokens, fwd_hooks=editor.fwd_hooks(), use_cache=False)
        with llama.hooks(fwd_hooks=keep_in(before)), control.attached(llama), llama.hooks(fwd_hooks=keep_in(after)):
            edited = llama(tokens, use_cache=False)
        again = llama(tokens, use_cache=False)
    for layer in LAYERS:
        h = before[layer]
        torch.testing.assert_close(length(after[layer] - h), length(editor[layer](h) - h), rtol=1e-4, atol=1e-4)
    assert (edited - plain).abs().max() > 0.01
    assert (edited - fitted).abs().max() > 0.01
    assert torch.equal(again, plain)


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_a_control_is_not_saved(editor, tmp_path):
    with pytest.raises(InputError, match=r"RandomDirectionEdit, which is not saved\. Save the editor it was made from"):
        random_editor(editor, 0).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "editor.safetensors").exists()


def test_a_control_of_a_control_is_refused(editor):
    with pytest.raises(InputError, match=r"made of linear edits, and layer 0 holds a RandomDirectionEdit"):
        random_editor(random_editor(editor, 0), 1)


def test_another_width_is_refused(editor, llama):
    with pytest.raises(ModelMismatchError, match="made for d_model 32"):
        random_editor(editor, 0)[0](torch.zeros(2, 16))
    narrow = Editor({0: LowRankEdit(torch.eye(16)[:, :1], torch.ones(1))}, EditorCard("by hand", {}))
    with pytest.raises(ModelMismatchError, match="for d_model 16"), random_editor(narrow, 0).attached(llama):
        pass
