"""What every kind of edit holds: bits at strength 0, one rounding, tokens by themselves, gradients, one graph, files."""

import pytest
import torch
from conftest import low_rank

import sea_lens as sl
from sea_lens.editing.edits import SequenceEdit
from sea_lens.editing.nearest import NearestEdit
from sea_lens.editing.one_sided import OneSidedEdit
from sea_lens.errors import ModelMismatchError
from sea_lens.methods.sea.feature_space import FeatureSpaceEdit, Tanh

D = 12


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SYMMETRIC = low_rank(torch.linalg.qr(normal(D, 2))[0], torch.tensor([0.9, -0.9]), restore_norm=False)
EDITS = {
    "affine": SYMMETRIC,
    "feature space": FeatureSpaceEdit(Tanh(2.0), (SYMMETRIC,)),
    "set coordinates": sl.SetCoordinates(D, torch.tensor([2, 5]), torch.tensor([7.0, -0.1]), keep=0.5),
    "coordinates": sl.CoordinateEdit(1 + normal(D) / 4, normal(D, seed=1), -2 * torch.ones(D), 2 * torch.ones(D)),
    "coordinates everywhere": sl.CoordinateEdit(1 + normal(D) / 4, torch.zeros(D)),
    "angular": sl.AngularEdit.of(normal(D, seed=3), normal(D, seed=4), 100.0),
    "adaptive angular": sl.AngularEdit.of(normal(D, seed=3), normal(D, seed=4), -30.0, adaptive=True),
    "one-sided": OneSidedEdit(sl.AffineEdit(normal(D, 1, seed=5), normal(D, 1, seed=6), normal(D, seed=7))),
    "nearest": NearestEdit(torch.zeros(1, D), torch.tensor([10.0]), (SYMMETRIC,)),
}
EDITS["sequence"] = SequenceEdit((EDITS["coordinates"], EDITS["angular"], SYMMETRIC))
H = 3 * normal(4, 6, D, seed=2)


@pytest.fixture(params=EDITS, name="edit")
def each_edit(request):
    return EDITS[request.param]


def test_strength_zero_is_the_identity_to_the_bit_and_strengths_multiply(edit):
    strange = H.clone()
    strange[0, 0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40])
    still = edit.scaled(0.0)
    assert still.is_identity
    assert not edit.is_identity
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        h = strange.to(dtype)
        assert torch.equal(still(h).view(torch.uint8), h.view(torch.uint8))
    assert not torch.equal(edit(H), H)
    torch.testing.assert_close(edit.scaled(0.5).scaled(4.0)(H), edit.scaled(2.0)(H), rtol=0, atol=0)
    assert "changes nothing" not in edit.summary


def test_dtypes_are_kept_rounded_once_and_what_is_given_is_not_written_to(edit):
    for dtype in (torch.float16, torch.bfloat16):
        h = H.to(dtype)
        before = h.clone()
        assert torch.equal(edit(h), edit(h.float()).to(dtype))
        assert torch.equal(h, before)
    torch.testing.assert_close(edit(H).double(), edit(H.double()), rtol=1e-4, atol=1e-4)


def test_a_tokens_edit_is_its_own_and_takes_any_leading_shape(edit):
    whole = edit(H)
    louder = H.clone()
    louder[:, 1:] *= 1000
    torch.testing.assert_close(edit(louder)[:, 0], whole[:, 0])
    torch.testing.assert_close(edit(H[2, 3]), whole[2, 3])
    torch.testing.assert_close(edit(H[1:2, :1]), whole[1:2, :1])
    for shape in ((0, D), (2, 0, D), (2, 1, 3, 2, D)):
        assert edit(torch.zeros(shape)).shape == shape
    with pytest.raises(ModelMismatchError, match=f"for width {D}"):
        edit(torch.zeros(2, D + 1))


def test_gradients_flow_and_it_compiles_into_one_graph(edit, without_type_checks):
    h = H[:1, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(edit, h)
    if isinstance(edit, SequenceEdit):  # which holds what else is tried nowhere
        compiled = torch.compile(lambda h: edit(h), backend="eager", fullgraph=True)
        with torch.no_grad():
            assert torch.equal(compiled(H), edit(H))


def test_it_is_saved_and_loaded_to_the_bit(edit, tmp_path):
    editor = sl.Editor({1: edit.scaled(0.7)})
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    assert torch.equal(again[1](H), editor[1](H))
