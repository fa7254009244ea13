import dataclasses

import numpy as np
import pytest
import torch

from sea_lens.edits import LowRankEdit
from sea_lens.errors import InputError, ModelMismatchError

D, RANK = 12, 5


def make_edit(seed: int = 0, shift: bool = False, dtype: torch.dtype = torch.float64, **options) -> LowRankEdit:
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((D, RANK)))[0]
    eigenvalues = np.sort(rng.uniform(-1, 1, RANK))[::-1].copy()
    constant = torch.tensor(rng.standard_normal(D), dtype=dtype) if shift else None
    return LowRankEdit(
        torch.tensor(directions, dtype=dtype), torch.tensor(eigenvalues, dtype=dtype), constant, **options
    )


def tokens(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((*shape, D)) * 3, dtype=dtype)


def by_hand(edit: LowRankEdit, h: torch.Tensor) -> np.ndarray:
    """One token at a time, with the dense matrix."""
    w, lam = edit.directions.double().numpy(), edit.eigenvalues.double().numpy()
    matrix = np.eye(D) + edit.strength * (w @ np.diag(lam) @ w.T)
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
    assert torch.equal(LowRankEdit(axis, torch.tensor([-1.0]))(h), torch.zeros(1, D))


def test_scaling_by_zero_is_the_identity_bit_for_bit():
    h = tokens(4, 5, dtype=torch.bfloat16)
    h[0, 0, 0] = float("nan")
    for edit in (make_edit(), make_edit(shift=True), make_edit(shift=True, strength=3.0)):
        assert edit.scaled(0.0).is_identity
        assert not edit.is_identity
        assert torch.equal(edit.scaled(0.0)(h).view(torch.int16), h.view(torch.int16))


def test_an_edit_of_rank_zero_is_the_identity_unless_it_shifts():
    nothing = LowRankEdit(torch.zeros(D, 0), torch.zeros(0))
    h = tokens(6)
    assert nothing.is_identity
    assert torch.equal(nothing(h), h)
    shift = torch.arange(D, dtype=torch.float64)
    shifted = LowRankEdit(torch.zeros(D, 0), torch.zeros(0), shift, strength=2.0, restore_norm=False)
    assert not shifted.is_identity
    np.testing.assert_allclose(shifted(h), h + 2 * shift, rtol=1e-12)


def test_scaling_multiplies_and_shares_tensors():
    edit, h = make_edit(shift=True), tokens(5)
    edit(h)  # an edit that has run must not pass its strength on
    assert edit.scaled(0.5).scaled(-3.0).strength == -1.5
    assert torch.equal(edit.scaled(0.5).scaled(4.0)(h), edit.scaled(2.0)(h))
    assert torch.equal(edit.scaled(1.0)(h), edit(h))
    assert edit.strength == 1.0
    assert edit.scaled(2.0).directions is edit.directions
    np.testing.assert_allclose(edit.scaled(2.0)(h), by_hand(edit.scaled(2.0), h), rtol=1e-12)


def test_casting_rounds_tensors_only():
    edit = make_edit(shift=True, strength=0.7, restore_norm=False).cast(torch.float32)
    assert {edit.directions.dtype, edit.eigenvalues.dtype, edit.shift.dtype} == {torch.float32}
    assert (edit.strength, edit.restore_norm) == (0.7, False)
    assert make_edit().cast(torch.float32).shift is None
    np.testing.assert_allclose(edit.directions, make_edit().directions, atol=1e-7)


def test_displacement_is_the_mean_move_relative_to_the_norm():
    edit, h = make_edit(shift=True), tokens(9, dtype=torch.float32)
    moved = np.linalg.norm(by_hand(edit, h) - h.double().numpy(), axis=1) / np.linalg.norm(h.double().numpy(), axis=1)
    assert edit.displacement(h) == pytest.approx(moved.mean(), rel=1e-9)
    assert edit.scaled(0.0).displacement(h) == 0


@pytest.mark.parametrize("width", [1, D - 1, D + 1])
def test_another_width_is_refused(width):
    with pytest.raises(ModelMismatchError, match=f"for d_model {D}, and the activation's last dimension is {width}"):
        make_edit()(torch.zeros(2, width))


@pytest.mark.parametrize("name", ["directions", "eigenvalues", "shift"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_refused(name, value):
    edit = make_edit(shift=True)
    tensor = getattr(edit, name).clone()
    tensor.view(-1)[2] = value
    with pytest.raises(InputError, match="must be finite"):
        dataclasses.replace(edit, **{name: tensor})


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(strength):
    with pytest.raises(InputError, match=f"strength must be a finite number, and it is {strength}"):
        make_edit().scaled(strength)


def test_edits_never_change():
    edit = make_edit()
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.strength = 2.0
    assert (edit.d_model, edit.rank) == (D, RANK)
