import numpy as np
import pytest
import torch
from conftest import low_rank
from scipy.stats import beta, kstest

from sea_lens import Activations, Editor, EditorCard, Tanh, fit_sea, random_editor_like
from sea_lens.editing.controls import RandomDirectionEdit, RandomRotation
from sea_lens.editing.where import From
from sea_lens.errors import ModelMismatchError
from sea_lens.methods.sea.published import PublishedEdit

STRENGTHS = [0.0, 0.5, 1.0, 2.0, -1.0]
D_MODEL, LAYERS = 32, range(3)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fit(center=False, restore_norm=True, model=None, dtype=torch.float64, scale=1.0, **options):
    """An editor with different positive and negative ranks, on activations that share a mean."""
    mean = 2 * normal(D_MODEL, seed=9)
    neutral, positive, negative = (
        {layer: scale * (normal(40, D_MODEL, seed=10 * role + layer) + mean) for layer in LAYERS} for role in range(3)
    )
    activations = Activations.from_tensors(neutral=neutral, positive=positive, negative=negative, model=model)
    return fit_sea(
        activations, ranks=(3, 2), center=center, merge="norm" if restore_norm else "sum", dtype=dtype, **options
    )


def length(rows):
    return torch.linalg.vector_norm(rows, dim=-1)


def rotation(d, seed):
    return RandomRotation.of(d, torch.Generator().manual_seed(seed))


def across(moves, rows):
    """Directions of moves, without what they do along the rows themselves."""
    along = torch.nn.functional.normalize(rows, dim=-1)
    return torch.nn.functional.normalize(moves - (moves * along).sum(-1, keepdim=True) * along, dim=-1)


def in_a_feature_space(merge_space="features", restore_norm=True):
    return fit(center=True, restore_norm=restore_norm, feature_map=Tanh(6.0), merge_space=merge_space)


def as_published():
    bases = [torch.linalg.qr(normal(D_MODEL, 4, seed=90 + i))[0] for i in range(2)]
    return Editor({layer: PublishedEdit(*bases) for layer in LAYERS}, EditorCard("by hand", {}))


KINDS = {
    "feature space": in_a_feature_space,
    "feature space, two parts": lambda: in_a_feature_space("activations"),
    "feature space, sum": lambda: in_a_feature_space(restore_norm=False),
    "positive alone": lambda: fit(center=True, projections="positive"),
    "sum at half strength": lambda: fit(center=True, restore_norm=False).scaled(0.5),
    "published": as_published,
    "control": lambda: random_editor_like(fit(center=True), seed=11),
    "control of the published": lambda: random_editor_like(as_published(), seed=11),
}


@pytest.fixture(scope="module")
def editor():
    return fit(center=True)


# --- random rotations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 31, 32, 33, 100, 257])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_rotation_is_an_orthogonal_matrix(d, seed):
    turn = rotation(d, seed)
    matrix = turn(torch.eye(d, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-12)
    x = normal(4, 3, d, seed=70)
    torch.testing.assert_close(turn(x), x @ matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turn(x.float()), (x @ matrix).float(), rtol=1e-5, atol=1e-5)
    assert turn(x.float()).dtype == torch.float32


@pytest.mark.parametrize("d", [4095, 4096])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_a_wide_rotation_keeps_norms_and_inner_products(d, dtype, tolerance):
    x = 100 * normal(6, d, seed=71).to(dtype) / d**0.5
    turned = rotation(d, 0)(x)
    assert turned.dtype == dtype
    products = (turned.double() @ turned.double().T) / 1e4
    torch.testing.assert_close(products, x.double() @ x.double().T / 1e4, rtol=0, atol=tolerance)


def test_seeds_and_draws_of_a_generator_turn_a_vector_to_nearly_orthogonal_directions():
    d = 4096
    generator = torch.Generator().manual_seed(0)
    turns = [rotation(d, seed) for seed in range(1, 9)] + [RandomRotation.of(d, generator) for _ in range(8)]
    for x in (torch.eye(d, dtype=torch.float64)[7], torch.ones(d, dtype=torch.float64) / d**0.5, normal(d) / d**0.5):
        turned = torch.stack([x, *(turn(x) for turn in turns)])
        cosines = torch.nn.functional.normalize(turned, dim=-1)
        cosines = (cosines @ cosines.T).fill_diagonal_(0).abs()
        assert cosines.max() < 5 / d**0.5


VECTORS = {
    "one coordinate": lambda d: torch.eye(d, dtype=torch.float64)[3],
    "constant": lambda d: torch.ones(d, dtype=torch.float64) / d**0.5,
    "alternating": lambda d: torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(d)[:d] / d**0.5,
    "random": lambda d: torch.nn.functional.normalize(normal(d, seed=72), dim=0),
    "massive": lambda d: torch.nn.functional.normalize(normal(d, seed=73) + 50 * torch.eye(d)[5], dim=0),
}


@pytest.mark.parametrize("d", [31, 32])
@pytest.mark.parametrize("vector", VECTORS)
def test_a_fixed_vector_is_turned_to_a_uniformly_random_direction(d, vector):
    """Its cosine with any fixed direction is that of a uniform direction: 2 Beta((d - 1) / 2, (d - 1) / 2) - 1."""
    n = 1500
    x = VECTORS[vector](d)
    turned = torch.stack([rotation(d, seed)(x) for seed in range(n)])
    assert length(turned.mean(0)) < 2 / n**0.5
    for probe, make in VECTORS.items():
        cosines = (turned @ make(d)).numpy()
        # Twice the usual statistic at the 5 % level: there are fifty of these.
        assert kstest((1 + cosines) / 2, beta((d - 1) / 2, (d - 1) / 2).cdf).statistic < 2 * 1.36 / n**0.5, probe
    covariance = turned.T @ turned / n * d
    assert np.abs(covariance - np.eye(d)).max() < 6 * (2 / n) ** 0.5
    spectrum = torch.linalg.eigvalsh(covariance)  # of n uniform directions: the law of Marchenko and Pastur
    assert spectrum.min() > (1 - (d / n) ** 0.5) ** 2 - 0.1
    assert spectrum.max() < (1 + (d / n) ** 0.5) ** 2 + 0.1


@pytest.mark.parametrize("d", [2, 3, 4, 7, 8])
def test_no_coordinate_is_favoured_at_narrow_widths_either(d):
    n = 1500
    turned = torch.stack([rotation(d, seed)(VECTORS["random"](d)) for seed in range(n)])
    one = torch.stack([rotation(d, seed)(torch.eye(d, dtype=torch.float64)[0]) for seed in range(n)])
    for rows in (turned, one):
        np.testing.assert_allclose(d * rows.square().mean(0), 1, atol=0.15)


def test_pairs_of_vectors_are_turned_together():
    """A rotation of all space: inner products stay, and a mean is turned to the mean of the turned."""
    x, turn = normal(9, D_MODEL, seed=74), rotation(D_MODEL, 5)
    torch.testing.assert_close(turn(x) @ turn(x).T, x @ x.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turn(x.mean(0)), turn(x).mean(0), rtol=1e-12, atol=1e-12)


# --- norm-matched, token by token ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("restore_norm", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_token_moves_as_far_and_ends_as_long_as_under_the_fitted_edit(
    dtype, tolerance, center, restore_norm, strength
):
    fitted = fit(center, restore_norm).scaled(strength)
    control = random_editor_like(fitted, seed=0)
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
        real, random = editor[layer](h), random_editor_like(editor, 0)[layer](h)
        torch.testing.assert_close((random * h).sum(-1), (real * h).sum(-1), rtol=1e-10, atol=1e-10)


def test_tokens_of_zeros_stay_finite(editor):
    for view in (editor, fit(center=True, restore_norm=False), fit()):
        control = random_editor_like(view, seed=0)
        zero = torch.zeros(1, D_MODEL, dtype=torch.float64)
        assert control[0](zero).isfinite().all()
        torch.testing.assert_close(length(control[0](zero)), length(view[0](zero)), rtol=1e-10, atol=1e-10)


# --- random directions -----------------------------------------------------------------------------------------------


def test_what_the_edit_does_across_the_token_is_turned_by_one_rotation(editor):
    control = random_editor_like(editor, seed=3)
    h = normal(60, D_MODEL, seed=52).numpy()
    for layer in LAYERS:
        edit, fitted = control[layer], editor[layer]
        assert isinstance(edit, RandomDirectionEdit)
        assert edit.rank == fitted.rank == 5
        assert (edit.width, edit.strength) == (D_MODEL, fitted.strength)
        matrix = edit.rotation(torch.eye(D_MODEL, dtype=torch.float64)).numpy()
        real, found = (one(torch.tensor(h)).numpy() for one in (fitted, edit))
        for row, moved, expected in zip(h, found, real, strict=True):
            unit = row / np.linalg.norm(row)
            beside = np.eye(D_MODEL) - np.outer(unit, unit)
            change = beside @ (expected - row)
            turned = beside @ (change @ matrix)
            kept = unit * (unit @ expected)
            oracle = kept + turned / np.linalg.norm(turned) * np.linalg.norm(change)
            np.testing.assert_allclose(moved, oracle, rtol=1e-9, atol=1e-9)


def test_the_fitted_directions_are_not_reproduced(editor):
    """Moves of the control are to those of the edit, and of other controls, as random directions of 31 dimensions are."""
    h, squares = normal(200, D_MODEL, seed=58), []
    for layer in LAYERS:
        edits = [editor[layer], *(random_editor_like(editor, seed)[layer] for seed in range(5))]
        moves = [across(edit(h) - h, h) for edit in edits]
        for index, one in enumerate(moves):
            for other in moves[:index]:
                cosines = (one * other).sum(-1)
                assert cosines.abs().max() < 0.9
                squares.append(float(cosines.square().mean()))
    assert 0.5 / 31 < sum(squares) / len(squares) < 2 / 31


def test_moves_of_the_control_keep_to_few_directions_as_those_of_the_edit_do(editor):
    """What tokens share, a mean's direction among it, they share under the control: one rotation turns all of them."""
    h = normal(200, D_MODEL, seed=58) + 2 * normal(D_MODEL, seed=9)
    for layer in LAYERS:
        energies = [
            torch.linalg.svdvals(edit(h) - h).square() for edit in (editor[layer], random_editor_like(editor, 0)[layer])
        ]
        shares = [float(energy[:6].sum() / energy.sum()) for energy in energies]
        assert shares[1] > 0.8 * shares[0] > 0.5


def test_seeds_and_layers_differ_and_one_seed_is_bit_identical(editor):
    h = normal(8, D_MODEL, seed=53)
    first, again, other = random_editor_like(editor, 0), random_editor_like(editor, 0), random_editor_like(editor, 1)
    turned = []
    for layer in LAYERS:
        assert torch.equal(first[layer](h), again[layer](h))
        assert (first[layer](h) - other[layer](h)).abs().max() > 0.1
        turned += [control[layer].rotation(h) for control in (first, other)]
        assert torch.equal(turned[-2], again[layer].rotation(h))
    for index, one in enumerate(turned):
        for earlier in turned[:index]:
            assert torch.cosine_similarity(one, earlier).abs().mean() < 0.4


def test_one_seed_is_one_control_whatever_the_layers_strengths_and_positions(editor):
    h = normal(8, D_MODEL, seed=53)
    of_view = random_editor_like(editor.first_layers(2).at_positions(3), 0)
    assert torch.equal(of_view[1](h), random_editor_like(editor, 0)[1](h))


def test_torchs_own_randomness_is_left_alone(editor):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_editor_like(editor, 5)
    assert torch.equal(torch.rand(3), expected)


# --- of any edit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_controls_of_any_kind_of_edit_move_as_far_and_end_as_long(kind, dtype, tolerance):
    fitted = KINDS[kind]()
    control = random_editor_like(fitted, seed=4)
    h = (normal(3, 7, D_MODEL, seed=50) + 2 * normal(D_MODEL, seed=9)).to(dtype)
    for layer in LAYERS:
        real, random = fitted[layer](h), control[layer](h)
        distance = length(real - h)
        assert distance.min() > 0.1
        assert random.dtype == dtype
        torch.testing.assert_close(length(random - h), distance, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(length(random), length(real), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close((random * h).sum(-1), (real * h).sum(-1), rtol=tolerance, atol=100 * tolerance)
        assert (across(random - h, h) * across(real - h, h)).sum(-1).abs().mean() < 0.4
        assert (control[layer].rank, control[layer].width) == (fitted[layer].rank, D_MODEL)
        assert control[layer].summary == f"random directions, otherwise as {fitted[layer].summary}"
    assert torch.equal(random, random_editor_like(fitted, seed=4)[2](h))
    assert control.scaled(0.0).is_identity
    assert torch.equal(control.scaled(0.5)[0](h), random_editor_like(fitted.scaled(0.5), 4)[0](h))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precisions_are_edited_in_float32_whatever_the_edit(kind, dtype):
    control, h = random_editor_like(KINDS[kind](), seed=4)[1], normal(6, D_MODEL, seed=59).to(dtype)
    assert control(h).dtype == dtype
    assert torch.equal(control(h), control(h.float()).to(dtype))


def test_a_control_of_a_control_with_its_own_seed_is_another(editor):
    h, control = normal(20, D_MODEL, seed=58), random_editor_like(editor, 0)
    twice = random_editor_like(control, 0)[1]
    for other in (editor[1], control[1]):
        assert torch.cosine_similarity(across(twice(h) - h, h), across(other(h) - h, h)).abs().mean() < 0.4


@pytest.mark.parametrize("d", [2, 3, 5])
def test_narrow_activations_move_as_far(d):
    edit = low_rank(torch.eye(d, dtype=torch.float64)[:, :1], torch.ones(1, dtype=torch.float64))
    h = normal(50, d, seed=75)
    for seed in range(5):
        control = random_editor_like(Editor({0: edit}, EditorCard("by hand", {})), seed)[0]
        torch.testing.assert_close(length(control(h) - h), length(edit(h) - h), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(length(control(h)), length(h), rtol=1e-9, atol=1e-9)


# --- an editor like another ------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is(editor):
    control = random_editor_like(editor.scaled(0.5), seed=7)
    assert control.card.method == "random control of sea"
    assert control.card.settings["seed"] == 7
    assert control.card.settings["ranks"] == (3, 2)
    assert control.layers == editor.layers
    assert "random directions, otherwise as rank 5" in repr(control)
    assert "strength 0.5" in repr(control)


def test_positions_and_layer_views_carry_over(editor):
    control = random_editor_like(editor.at_positions(2).last_layers(2), seed=0)
    assert control.where == From(2)
    assert control.layers == [1, 2]


def test_scaling_a_control_is_the_control_of_the_scaled_editor(editor):
    h = normal(6, D_MODEL, seed=54)
    for strength in STRENGTHS:
        scaled, of_scaled = (
            random_editor_like(editor, 0).scaled(strength),
            random_editor_like(editor.scaled(strength), 0),
        )
        assert torch.equal(scaled[1](h), of_scaled[1](h))


def test_identity_editors_stay_identities(editor):
    h = normal(4, D_MODEL, seed=55, dtype=torch.float32)
    empty = low_rank(torch.zeros(D_MODEL, 0), torch.zeros(0))
    for identity in (editor.scaled(0.0), Editor({0: empty, 1: empty}, EditorCard("by hand", {}))):
        control = random_editor_like(identity, seed=0)
        assert control.is_identity
        assert control[0](h) is h
    assert not random_editor_like(editor, seed=0).is_identity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept(editor, dtype):
    h = normal(4, D_MODEL, seed=56).to(dtype)
    edited = random_editor_like(editor, 0)[0](h)
    assert edited.dtype == dtype
    distance = length((editor[0](h) - h).double())
    torch.testing.assert_close(length((edited - h).double()), distance, rtol=0.02, atol=0)


def test_batched_equals_single(editor):
    h, edit = normal(3, 4, D_MODEL, seed=57), random_editor_like(editor, 0)[1]
    together = edit(h)
    for i in range(3):
        torch.testing.assert_close(edit(h[i]), together[i], rtol=1e-12, atol=1e-12)
        for j in range(4):
            torch.testing.assert_close(edit(h[i, j]), together[i, j], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_attached_to_a_model_every_layer_moves_as_far_as_under_the_editor(llama, seed):
    editor = fit(center=True, model=llama, dtype=torch.float32, scale=0.3)
    control, tokens, before, after = random_editor_like(editor, seed), torch.arange(2, 14)[None], {}, {}

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


def test_a_control_is_saved_and_read_back_to_the_bit(editor, tmp_path):
    control = random_editor_like(editor, 0)
    control.save_pretrained(tmp_path)
    loaded, h = Editor.from_pretrained(tmp_path), normal(4, D_MODEL, seed=55)
    assert all(torch.equal(loaded[layer](h), control[layer](h)) for layer in LAYERS)


def test_another_width_is_refused(editor, llama):
    with pytest.raises(ModelMismatchError, match="made for width 32"):
        random_editor_like(editor, 0)[0](torch.zeros(2, 16))
    narrow = Editor({0: low_rank(torch.eye(16)[:, :1], torch.ones(1))}, EditorCard("by hand", {}))
    with pytest.raises(ModelMismatchError, match="for d_model 16"), random_editor_like(narrow, 0).attached(llama):
        pass
