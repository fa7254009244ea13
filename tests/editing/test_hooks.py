"""What the hooks of an editor do in a pass: which tokens, found once, and in one graph where they are compiled."""

from dataclasses import replace

import pytest
import torch
from conftest import make_editor

from sea_lens.editing.hooks import EditHooks
from sea_lens.editing.sparing import NotMassive
from sea_lens.editing.where import From, OfBatch, PromptOnly
from sea_lens.models.passes import Pass, Passes

SITES = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
WHERE = {
    "all": None,
    "from 2": From(2),
    "prompt": PromptOnly(),
    "not first": NotMassive(True),
    "nothing massive": NotMassive(False, tuple((name, 1e6) for name in SITES)),
    "some massive": NotMassive(False, ((SITES[0], 20.0),)),
    "all massive": NotMassive(True, tuple((name, 1e-6) for name in SITES)),
    "a mask": OfBatch(torch.arange(18).reshape(3, 6) % 4 > 0),
}


def by_hand(editor, tensor):
    """The hooks' work on tensors of one pass without padding, one token at a time."""
    where, found = editor.where, []
    for site, edit in editor.edits.items():
        edited, norms = tensor.clone(), tensor.norm(dim=-1)
        for row, column in torch.cartesian_prod(torch.arange(3), torch.arange(6)).tolist():
            chosen = True
            if isinstance(where, From):
                chosen = column >= where.first
            if isinstance(where, OfBatch):
                chosen = bool(where.chosen[row, column])
            if isinstance(where, NotMassive):
                limit = dict(where.limits).get(site.hook_name, float("inf"))
                chosen = (column > 0 or not where.first) and float(norms[row, column]) <= limit
            if chosen:
                edited[row, column] = edit(tensor[row, column])
        found.append(edited)
    return found


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("graph", [False, True])
def test_hooks_edit_the_tokens_that_are_chosen_and_leave_their_input(where, graph):
    editor = replace(make_editor(), where=where)
    tensor = 4 * torch.randn(3, 6, editor.width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tensor[1, 4] *= 30
    given, before = (tensor.requires_grad_() if graph else tensor), tensor.detach().clone()
    hooks = EditHooks(editor)
    found = [hook(given, hook=None) for _, hook in hooks.hooks()]
    for one, wanted in zip(found, by_hand(editor, before), strict=True):
        torch.testing.assert_close(one.detach(), wanted, rtol=1e-12, atol=1e-12)
        changed = (wanted != before).any(-1)
        assert torch.equal(one[~changed], before[~changed])  # what is spared stays to the bit
        assert one.requires_grad == graph
    assert torch.equal(tensor, before)
    assert list(hooks.fired.values()) == [bool((wanted != before).any()) for wanted in by_hand(editor, before)]
    if graph:
        found[0].sum().backward()
        assert tensor.grad.isfinite().all()


def test_tokens_are_found_once_a_pass_and_anew_in_the_next():
    class Counted(From):
        masks = 0

        def mask(self, seen, decided):
            Counted.masks += 1
            return super().mask(seen, decided)

    passes = Passes()
    hooks = EditHooks(replace(make_editor(), where=Counted(2)), passes).hooks()
    tensor = torch.randn(3, 6, 32)
    for number, first in enumerate((0, 1, 0), start=1):
        columns = torch.arange(6) + first
        passes.current = Pass(columns.expand(3, 6), columns, first == 0, columns.new_full((3,), 6))
        for _, hook in hooks:
            edited = hook(tensor, hook=None)
            assert (edited != tensor).any(-1)[0].tolist() == (columns >= 2).tolist()
        assert Counted.masks == number


def test_a_mask_made_in_inference_mode_does_not_spoil_a_later_graph():
    hooks = EditHooks(replace(make_editor(), where=From(2))).hooks()
    tensor = torch.randn(3, 6, 32)
    with torch.inference_mode():
        hooks[0][1](tensor, hook=None)
    given = tensor.clone().requires_grad_()
    hooks[0][1](given, hook=None).sum().backward()
    assert given.grad.any()


@pytest.mark.parametrize("name", ["all", "some massive", "prompt"])
def test_hooks_compile_into_one_graph(name, without_type_checks):
    editor = replace(make_editor(), where=WHERE[name])
    tensor = torch.randn(3, 6, 32)
    hooks = EditHooks(editor).hooks()

    def run(tensor):
        for _, hook in hooks:
            tensor = hook(tensor, hook=None)
        return tensor

    with torch.no_grad():
        compiled = torch.compile(run, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(tensor), run(tensor))
