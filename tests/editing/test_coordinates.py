"""Coordinates are set to what they should be, and nothing else changes by a bit."""

import pytest
import torch
from conftest import build_bridge

import sea_lens as sl
from sea_lens.errors import InputError

H = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)) * 100


def setting(**changes):
    return sl.SetCoordinates(8, torch.tensor([2, 5]), torch.tensor([7.0, -0.1]), **changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_are_set_exactly_and_all_else_stays(dtype):
    h = H.to(dtype)
    edited = setting()(h)
    assert edited.dtype == dtype
    wanted = h.clone()
    wanted[..., 2], wanted[..., 5] = 7.0, torch.tensor(-0.1).to(dtype)
    assert torch.equal(edited, wanted)
    assert not torch.equal(h, edited)  # the activation itself is as it was


def test_strength_and_what_is_kept():
    edit = setting(keep=0.5)
    wanted = H.clone()
    wanted[..., [2, 5]] = 0.5 * H[..., [2, 5]] + torch.tensor([7.0, -0.1])
    torch.testing.assert_close(edit(H), wanted)
    torch.testing.assert_close(edit.scaled(0.25)(H), H + 0.25 * (wanted - H))
    assert torch.equal(edit.scaled(0.0)(H), H)
    assert edit.scaled(0.0).is_identity
    assert torch.equal(sl.SetCoordinates(8, torch.tensor([1]), torch.zeros(1), keep=1.0)(H), H)
    h = H.clone().requires_grad_()
    edit(h).sum().backward()
    assert h.grad[0, 0].tolist() == [1, 1, 0.5, 1, 1, 0.5, 1, 1]


def test_gates_choose_tokens_by_their_own_coordinates():
    edit = setting(gates=torch.tensor([0, 1]), above=torch.tensor([50.0, 80.0]))
    met = (H[..., 0].abs() > 50) | (H[..., 1].abs() > 80)
    assert 0 < met.sum() < met.numel()
    assert torch.equal(edit(H), torch.where(met[..., None], setting()(H), H))


def test_an_editor_of_it_is_saved_and_acts_where_it_should(tmp_path):
    model = build_bridge("llama")
    edit = sl.SetCoordinates.to_zero(model.cfg.d_model, [3, 4])
    editor = sl.Editor({1: edit}).at_positions([0])
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    seen = []
    tokens = torch.arange(6)[None] + 7
    with again.attached(model), model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda z, hook: seen.append(z))]):
        model(tokens)
    _, plain = model.run_with_cache(tokens)
    wanted = plain["blocks.1.hook_resid_post"].clone()
    wanted[0, 0, [3, 4]] = 0
    assert torch.equal(seen[0], wanted)
    assert "sets coordinates to 3: 0, 4: 0" in repr(again)


@pytest.mark.parametrize(
    ("coordinates", "values", "changes", "words"),
    [
        ([2, 2], [0.0, 0.0], {}, "different numbers from 0 to 7"),
        ([8], [0.0], {}, "different numbers from 0 to 7"),
        ([], [], {}, "at least one"),
        ([1], [0.0, 1.0], {}, "one finite value per coordinate"),
        ([1], [float("nan")], {}, "one finite value per coordinate"),
        ([1], [0.0], {"gates": torch.tensor([1])}, "go together"),
        ([1], [0.0], {"gates": torch.tensor([1]), "above": torch.zeros(2)}, "one limit"),
        ([1], [0.0], {"gates": torch.tensor([1]), "above": torch.tensor([torch.nan])}, "one is NaN"),
        ([1], [0.0], {"gates": torch.tensor([1.0]), "above": torch.zeros(1)}, "different numbers"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_set_is_refused(coordinates, values, changes, words):
    with pytest.raises(InputError, match=words):
        sl.SetCoordinates(8, torch.tensor(coordinates, dtype=torch.long), torch.tensor(values), **changes)
