import dataclasses

import numpy as np
import pytest
import torch
from conftest import low_rank

from sea_lens.editing.affine import AffineEdit, in_sequence
from sea_lens.editing.edits import displacement, with_norms_of
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.methods.sea.feature_space import ELU, FeatureSpaceEdit, Identity, SquaredExponential, Tanh

D, RANK = 12, 5


def make_edit(seed: int = 0, shift: bool = False, dtype: torch.dtype = torch.float64, **options) -> AffineEdit:
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((D, RANK)))[0]
    eigenvalues = np.sort(rng.uniform(-1, 1, RANK))[::-1].copy()
    constant = torch.tensor(rng.standard_normal(D), dtype=dtype) if shift else None
    return low_rank(torch.tensor(directions, dtype=dtype), torch.tensor(eigenvalues, dtype=dtype), constant, **options)


def tokens(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((*shape, D)) * 3, dtype=dtype)


def by_hand(edit: AffineEdit, h: torch.Tensor) -> np.ndarray:
    """One token at a time, with the dense matrix."""
    w, lam = edit.right.double().numpy(), edit.eigenvalues.double().numpy()
    matrix = np.eye(D) + edit.strength * ((edit.keep - 1) * np.eye(D) + w @ np.diag(lam) @ w.T)
    constant = 0 if edit.shift is None else edit.strength * edit.shift.double().numpy()
    rows = []
    for row in h.double().reshape(-1, D).numpy():
        edited = matrix @ row + constant
        rows.append(edited * np.linalg.norm(row) / np.linalg.norm(edited) if edit.restore_norm else edited)
    return np.reshape(rows, h.shape)


@pytest.mark.parametrize("strength", [1.0, 0.3, -0.5, 2.0])
@pytest.mark.parametrize("restore_norm", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_an_edit_is_its_formula(shift, restore_norm, strength):
    edit, h = make_edit(shift=shift, restore_norm=restore_norm, strength=strength), tokens(4, 3)
    np.testing.assert_allclose(edit(h), by_hand(edit, h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 3, 2), (0,), (2, 0)])
def test_any_leading_shape(shape):
    edit, h = make_edit(shift=True), tokens(*shape)
    assert edit(h).shape == h.shape
    np.testing.assert_allclose(edit(h), by_hand(edit, h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-6), (torch.float64, 1e-13)],
)
@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_dtypes_are_kept_and_computed_with_enough_digits(stored, dtype, tolerance):
    edit, h = make_edit(shift=True).cast(stored), tokens(50, dtype=dtype)
    edited = edit(h)
    assert edited.dtype == dtype
    expected = by_hand(edit, h)
    error = np.linalg.norm(edited.double().numpy() - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < tolerance  # one rounding at the end, not several on the way


def test_half_precision_is_rounded_once():
    edit, h = make_edit(), tokens(200, dtype=torch.bfloat16)
    assert torch.equal(edit(h), edit(h.float()).bfloat16())


def test_the_activation_given_is_not_written_to():
    edit, h = make_edit(shift=True), tokens(3, 4)
    before = h.clone()
    assert not torch.equal(edit(h), h)
    assert torch.equal(h, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_token_keeps_its_own_norm(dtype):
    h = tokens(2, 5, dtype=dtype) * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1e4], dtype=dtype)[:, None]
    for edit in (make_edit(), make_edit(shift=True), make_edit(strength=4.0)):
        np.testing.assert_allclose(edit(h).norm(dim=-1), h.norm(dim=-1), rtol=1e-5)
    loose = make_edit(restore_norm=False)(h).norm(dim=-1)
    assert not np.allclose(loose, h.norm(dim=-1), rtol=1e-2)


def test_a_tokens_edit_does_not_depend_on_other_tokens():
    edit, h = make_edit(shift=True), tokens(3, 6)
    batched = edit(h)
    for row in range(3):
        np.testing.assert_allclose(batched[row], edit(h[row]), rtol=1e-13)
        for position in range(6):
            np.testing.assert_allclose(batched[row, position], edit(h[row, position]), rtol=1e-13, atol=1e-13)
    louder = h.clone()
    louder[:, 1:] *= 1000
    np.testing.assert_allclose(edit(louder)[:, 0], batched[:, 0], rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_vectors_stay_zero(dtype):
    h = tokens(3, dtype=dtype)
    h[1] = 0
    for edit in (make_edit(), make_edit(shift=True), make_edit(strength=-3.0)):
        assert torch.equal(edit(h)[1], h[1])
        assert edit(h).isfinite().all()
        assert edit(h)[0].any()


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_a_token_that_the_edit_cancels_altogether_stays_finite(size):
    axis = torch.eye(D)[:, :1]
    h = size * axis.T
    assert torch.equal(low_rank(axis, torch.tensor([-1.0]))(h), torch.zeros(1, D))


def test_scaling_by_zero_is_the_identity_bit_for_bit():
    h = tokens(4, 5, dtype=torch.bfloat16)
    h[0, 0, 0] = float("nan")
    for edit in (make_edit(), make_edit(shift=True), make_edit(shift=True, strength=3.0)):
        assert edit.scaled(0.0).is_identity
        assert not edit.is_identity
        assert torch.equal(edit.scaled(0.0)(h).view(torch.int16), h.view(torch.int16))


def test_an_edit_of_rank_zero_is_the_identity_unless_it_shifts():
    nothing = low_rank(torch.zeros(D, 0), torch.zeros(0))
    h = tokens(6)
    assert nothing.is_identity
    assert torch.equal(nothing(h), h)
    shift = torch.arange(D, dtype=torch.float64)
    shifted = low_rank(torch.zeros(D, 0), torch.zeros(0), shift, strength=2.0, restore_norm=False)
    bare = low_rank(torch.zeros(D, 0), torch.zeros(0), restore_norm=False)
    assert torch.equal(in_sequence(bare, shifted)(torch.zeros(D)), shifted(torch.zeros(D)))
    assert not shifted.is_identity
    np.testing.assert_allclose(shifted(h), h + 2 * shift, rtol=1e-12)


def test_scaling_multiplies_and_shares_tensors():
    edit, h = make_edit(shift=True), tokens(5)
    edit(h)  # an edit that has run must not pass its strength on
    assert edit.scaled(0.5).scaled(-3.0).strength == -1.5
    assert torch.equal(edit.scaled(0.5).scaled(4.0)(h), edit.scaled(2.0)(h))
    assert torch.equal(edit.scaled(1.0)(h), edit(h))
    assert edit.strength == 1.0
    assert edit.scaled(2.0).right is edit.right
    np.testing.assert_allclose(edit.scaled(2.0)(h), by_hand(edit.scaled(2.0), h), rtol=1e-12)


def test_casting_rounds_tensors_only():
    edit = make_edit(shift=True, strength=0.7, restore_norm=False).cast(torch.float32)
    assert {edit.right.dtype, edit.eigenvalues.dtype, edit.shift.dtype} == {torch.float32}
    assert (edit.strength, edit.restore_norm) == (0.7, False)
    assert make_edit().cast(torch.float32).shift is None
    np.testing.assert_allclose(edit.right, make_edit().right, atol=1e-7)


def test_displacement_is_the_mean_move_relative_to_the_norm():
    edit, h = make_edit(shift=True), tokens(9, dtype=torch.float32)
    moved = np.linalg.norm(by_hand(edit, h) - h.double().numpy(), axis=1) / np.linalg.norm(h.double().numpy(), axis=1)
    assert displacement(edit, h) == pytest.approx(moved.mean(), rel=1e-9)
    assert displacement(edit.scaled(0.0), h) == 0
    assert displacement(edit, torch.zeros(3, D)) == 0


@pytest.mark.parametrize("width", [1, D - 1, D + 1])
def test_another_width_is_refused(width):
    with pytest.raises(ModelMismatchError, match=f"for width {D}, and the activation's last dimension is {width}"):
        make_edit()(torch.zeros(2, width))


@pytest.mark.parametrize("name", ["left", "right", "shift"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_refused(name, value):
    edit = make_edit(shift=True)
    tensor = getattr(edit, name).clone()
    tensor.view(-1)[2] = value
    with pytest.raises(InputError, match="must be finite"):
        dataclasses.replace(edit, **{name: tensor})


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -1e39])
def test_a_strength_that_is_not_finite_is_refused(strength):
    with pytest.raises(InputError, match="a finite number"):
        make_edit().scaled(strength)


def test_edits_never_change():
    edit = make_edit()
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.strength = 2.0
    assert (edit.width, edit.rank) == (D, RANK)


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_norms_are_those_given_along_a_dimension(dim):
    x, edited = tokens(4, 3), tokens(4, 3, seed=2) * 1e3
    restored = with_norms_of(x, edited, dim).numpy()
    np.testing.assert_allclose(np.linalg.norm(restored, axis=dim), np.linalg.norm(x, axis=dim), rtol=1e-13)
    share = restored / edited.numpy()
    np.testing.assert_allclose(share, np.broadcast_to(share.max(axis=dim, keepdims=True), share.shape), rtol=1e-12)
    assert (share > 0).all()
    np.testing.assert_allclose(with_norms_of(x, edited), with_norms_of(x, edited, -1), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_nothing_and_of_next_to_nothing_stay_finite(dtype):
    x, edited = tokens(4, dtype=dtype), tokens(4, seed=2, dtype=dtype)
    edited[0], x[1] = 0, 0
    x[2], edited[3] = x[2] * 1e-15, edited[3] * 1e-15
    restored = with_norms_of(x, edited)
    assert torch.equal(restored[:2], torch.zeros(2, D, dtype=dtype))
    np.testing.assert_allclose(restored.norm(dim=-1)[2:], x.norm(dim=-1)[2:], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_a_single_token_are_those_of_one_among_others_to_the_bit(dtype):
    x, edited = tokens(200, dtype=dtype), tokens(200, seed=2, dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    edited[0], x[1], x[2], edited[3] = 0, 0, x[2] * 1e-15, edited[3] * tiny
    x[4, 0], edited[5, 1], x[6, 0] = float("nan"), float("inf"), float("-inf")
    batched = with_norms_of(x, edited)
    for row in range(200):
        single = with_norms_of(x[row : row + 1], edited[row : row + 1].clone(), in_place=True)
        torch.testing.assert_close(single[0], batched[row], rtol=0, atol=0, equal_nan=True)


# --- in feature space ------------------------------------------------------------------------------------------------

BY_HAND = {
    "tanh": (Tanh(1.5), lambda x: np.tanh(x / 1.5), lambda y: 1.5 * np.arctanh(y)),
    "elu": (
        ELU(2.0),
        lambda x: np.where(x > 0, x, 2 * np.expm1(np.minimum(x, 0))),
        lambda y: np.where(y > 0, y, np.log(np.minimum(y, 0) / 2 + 1)),
    ),
    "squared exponential": (
        SquaredExponential(2.0),
        lambda x: np.sign(x) * (1 - np.exp(-(x**2) / 8)),
        lambda y: np.sign(y) * np.sqrt(-8 * np.log(1 - np.abs(y))),
    ),
    "identity": (Identity(), lambda x: x, lambda y: y),
}
NOTHING = low_rank(torch.zeros(D, 0), torch.zeros(0), restore_norm=False)
DROPS_ALL = dataclasses.replace(NOTHING, keep=0.0)
SEVERAL = {
    "one part": ((0, 1.0, True),),
    "two parts": ((0, 0.0, False), (1, 1.0, True)),
}


def in_features(name="tanh", parts="two parts", **options) -> FeatureSpaceEdit:
    linear = tuple(make_edit(seed, shift, keep=kept, restore_norm=False) for seed, kept, shift in SEVERAL[parts])
    return FeatureSpaceEdit(BY_HAND[name][0], linear, **options)


def in_features_by_hand(edit: FeatureSpaceEdit, name: str, h: torch.Tensor) -> np.ndarray:
    """One token at a time, with dense matrices and the map's formulas."""
    (feature_map, forward, inverse), rows = BY_HAND[name], []
    ends = np.array(feature_map.domain)
    for row in h.double().reshape(-1, D).numpy():
        features = forward(np.clip(row / edit.unit, *ends))
        total = np.zeros(D)
        for part in edit.parts:
            w, lam = part.right.double().numpy(), part.eigenvalues.double().numpy()
            edited = (part.keep * np.eye(D) + w @ np.diag(lam) @ w.T) @ features
            if part.shift is not None:
                edited = edited + part.shift.double().numpy()
            total += inverse(np.clip(edited, *forward(ends)))
        moved = row + edit.strength * edit.unit * (edit.weight * total - inverse(features))
        rows.append(moved * np.linalg.norm(row) / np.linalg.norm(moved) if edit.restore_norm else moved)
    return np.reshape(rows, h.shape)


@pytest.mark.parametrize("restore_norm", [True, False])
@pytest.mark.parametrize("parts", SEVERAL)
@pytest.mark.parametrize("name", BY_HAND)
def test_a_feature_space_edit_is_its_formula(name, parts, restore_norm):
    h = tokens(4, 3)
    for unit, weight, strength in ((1.0, 1.0, 1.0), (2.5, 1.0, 0.3), (0.4, 0.5, 1.0), (3.0, 0.5, -1.5)):
        edit = in_features(name, parts, unit=unit, weight=weight, strength=strength, restore_norm=restore_norm)
        expected = in_features_by_hand(edit, name, h)
        np.testing.assert_allclose(edit(h), expected, rtol=1e-9, atol=1e-9)
        assert np.linalg.norm(expected - h.numpy()) > 0.1 * np.linalg.norm(h.numpy())


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 3, 2), (0,), (2, 0)])
def test_any_leading_shape_in_feature_space(shape):
    edit, h = in_features(unit=2.0), tokens(*shape)
    assert edit(h).shape == h.shape
    np.testing.assert_allclose(edit(h), in_features_by_hand(edit, "tanh", h), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", BY_HAND)
def test_feature_space_edits_keep_the_dtype_and_round_once(name, dtype):
    edit, h = in_features(name), tokens(50, dtype=dtype)
    before = h.clone()
    assert edit(h).dtype == dtype
    assert torch.equal(edit(h), edit(h.double()).to(dtype))
    assert torch.equal(h, before)


def test_each_token_is_edited_by_itself_in_feature_space_and_keeps_its_norm():
    edit, h = in_features(unit=3.0), tokens(3, 6) * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1e4, 0.0]).double()[:, None]
    batched = edit(h)
    np.testing.assert_allclose(batched.norm(dim=-1), h.norm(dim=-1), rtol=1e-12)
    for row in range(3):
        for position in range(6):
            np.testing.assert_allclose(batched[row, position], edit(h[row, position]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BY_HAND)
def test_strength_zero_is_the_identity_bit_for_bit_in_feature_space(name):
    edit, h = in_features(name, strength=3.0), tokens(4, 5, dtype=torch.bfloat16)
    h[0, 0, 0], h[1] = float("nan"), h[1] * 1e4
    assert (edit.is_identity, edit.scaled(0.0).is_identity) == (False, True)
    assert torch.equal(edit.scaled(0.0)(h).view(torch.int16), h.view(torch.int16))


def test_only_one_part_that_does_nothing_is_provably_the_identity():
    assert FeatureSpaceEdit(Tanh(), (NOTHING,)).is_identity
    assert not FeatureSpaceEdit(Tanh(), (NOTHING,), weight=0.5).is_identity
    assert not FeatureSpaceEdit(Tanh(), (DROPS_ALL,)).is_identity
    assert not FeatureSpaceEdit(Tanh(), (NOTHING, NOTHING), weight=0.5).is_identity


@pytest.mark.parametrize("restore_norm", [True, False])
@pytest.mark.parametrize("parts", [(NOTHING,), (NOTHING, DROPS_ALL)], ids=["one part", "two parts"])
@pytest.mark.parametrize("feature_map", [entry[0] for entry in BY_HAND.values()], ids=str)
def test_parts_that_do_nothing_leave_massive_activations_as_they_were(feature_map, parts, restore_norm):
    h = tokens(40)
    h[:, 3], h[:, 5], h[7] = 3000.0, -3000.0, 1e-3
    edited = FeatureSpaceEdit(feature_map, parts, unit=0.7, restore_norm=restore_norm)(h)
    if restore_norm:
        np.testing.assert_allclose(edited, h, rtol=1e-14)
    else:
        assert torch.equal(edited, h)


@pytest.mark.parametrize("parts", SEVERAL)
@pytest.mark.parametrize("name", ["tanh", "squared exponential"])
def test_what_lies_outside_the_domain_is_edited_as_if_at_its_end(name, parts):
    edit, h = in_features(name, parts, unit=2.0, restore_norm=False), tokens(30)
    h[:, 3], h[:, 5] = 3000.0, -3000.0
    low, high = (2 * end for end in edit.feature_map.domain)
    at_the_end = h.clamp(low, high)
    np.testing.assert_allclose(edit(h) - h, edit(at_the_end) - at_the_end, rtol=1e-9, atol=1e-9)
    assert (edit(h) - h).abs().max() > 0.1


@pytest.mark.parametrize("restore_norm", [True, False])
def test_massive_activations_survive_tanh(restore_norm):
    part = make_edit(3, shift=True, restore_norm=False)
    edit, h = FeatureSpaceEdit(Tanh(1.0), (part,), restore_norm=restore_norm), tokens(200)
    h[:, 3], h[:, 5] = 3000.0, -3000.0
    low, high = Tanh(1.0).domain
    moved = (edit(h) - h).abs()
    assert 1 < moved[:, [3, 5]].max() <= high - low + 1e-9
    assert restore_norm or moved.max() <= high - low + 1e-9


def test_clamped_counts_activations_outside_the_domain():
    for unit in (1.0, 0.2):
        edit, h = in_features(unit=unit), tokens(10, 8).clamp(-0.5, 0.5)
        low, high = (unit * end for end in edit.feature_map.domain)
        h[0, 0, :5], h[3, 1, 2], h[9, 7, 11] = 1.001 * high, 3000.0, 1.001 * low
        h[5, 5, 0], h[5, 5, 1] = low, high  # its ends are inside
        assert edit.clamped(h)[0] == 7 / h.numel()
        assert edit.clamped(h[5, 5])[0] == 0


def test_clamped_counts_edited_features_outside_the_range():
    h = tokens(10, 8).clamp(-0.5, 0.5)
    pushed = torch.zeros(D, dtype=torch.float64)
    pushed[[2, 7]] = torch.tensor([5.0, -5.0]).double()
    pushes = dataclasses.replace(NOTHING, shift=pushed)
    assert FeatureSpaceEdit(Tanh(), (NOTHING, DROPS_ALL)).clamped(1e6 * h) == (1, 0)
    assert FeatureSpaceEdit(Tanh(), (pushes,)).clamped(h) == (0, 2 / D)
    assert FeatureSpaceEdit(Tanh(), (NOTHING, pushes)).clamped(h) == (0, 1 / D)
    assert FeatureSpaceEdit(ELU(), (pushes,)).clamped(h) == (0, 1 / D)  # no upper limit
    assert FeatureSpaceEdit(Identity(), (pushes,)).clamped(1e6 * h) == (0, 0)


def test_scaling_and_casting_in_feature_space():
    edit, h = in_features(unit=2.0, weight=0.5, restore_norm=False), tokens(5)
    edit(h)
    assert edit.scaled(0.5).scaled(-3.0).strength == -1.5
    assert torch.equal(edit.scaled(0.5).scaled(4.0)(h), edit.scaled(2.0)(h))
    assert edit.scaled(2.0).parts[0].right is edit.parts[0].right
    cast = edit.scaled(0.7).cast(torch.float32)
    assert {part.right.dtype for part in cast.parts} == {torch.float32}
    assert (cast.unit, cast.weight, cast.strength, cast.restore_norm) == (2.0, 0.5, 0.7, False)
    np.testing.assert_allclose(cast(h), edit.scaled(0.7)(h), rtol=1e-4, atol=1e-5)
    assert (edit.width, edit.rank) == (D, 2 * RANK)
    assert displacement(edit, h) == pytest.approx(
        (np.linalg.norm(in_features_by_hand(edit, "tanh", h) - h.numpy(), axis=1) / h.norm(dim=1).numpy()).mean()
    )


@pytest.mark.parametrize("width", [1, D - 1, D + 1])
def test_another_width_is_refused_in_feature_space(width):
    with pytest.raises(ModelMismatchError, match=f"for width {D}, and the activation's last dimension is {width}"):
        in_features()(torch.zeros(2, width))


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (make_edit(),),
        (NOTHING, make_edit()),
        (NOTHING, low_rank(torch.zeros(3, 0), torch.zeros(0), restore_norm=False)),
    ],
    ids=["none", "norms restored", "the second's norms restored", "two widths"],
)
def test_parts_that_do_not_fit_together_are_refused(parts):
    with pytest.raises(InputError, match="parts of one width, made with restore_norm=False"):
        FeatureSpaceEdit(Tanh(), parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("unit", "weight", "strength") for value in (float("nan"), float("inf"))]
    + [("unit", 0.0), ("unit", -2.0)],
)
def test_impossible_numbers_in_feature_space_are_refused(name, value):
    with pytest.raises(InputError, match=f"edit's {name} must be finite, and a unit above zero; {value} was given"):
        in_features(**{name: value})


# --- as part of a graph, and compiled --------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("restore_norm", [True, False])
def test_gradients_flow_through_an_edit(restore_norm, shift):
    edit, h = make_edit(shift=shift, restore_norm=restore_norm, strength=0.7), tokens(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(edit, h)
    with torch.no_grad():
        np.testing.assert_allclose(edit(h), by_hand(edit, h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("restore_norm", [True, False])
def test_an_edit_compiles_into_one_graph(restore_norm, without_type_checks):
    edit, h = make_edit(shift=True, restore_norm=restore_norm), tokens(2, 3)
    with torch.no_grad():
        for _ in range(2):  # before its tensors are placed, and after
            compiled = torch.compile(lambda h: edit(h), backend="eager", fullgraph=True)
            assert torch.equal(compiled(h), edit(h))
            assert torch.equal(compiled(h[:1, :1]), edit(h[:1, :1]))
