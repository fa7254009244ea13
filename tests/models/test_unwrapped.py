"""Passes without idle wrappers give the same numbers to the bit, and leave the model as it was."""

import torch
from conftest import make_editor

import sea_lens as sl
from sea_lens.models.unwrapped import forward, unwrapped

TOKENS = torch.arange(2 * 20).reshape(2, 20) % 250


def modules_of(model):
    return [(name, id(module)) for name, module in model.original_model.named_modules()]


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.original_model.modules())


@torch.no_grad()
def test_results_are_those_of_the_whole_bridge_to_the_bit(bridge):
    wanted = bridge(TOKENS, use_cache=False)  # TransformerLens sets hooks of its own in the first pass
    before = modules_of(bridge), hooks_on(bridge)
    torch.testing.assert_close(forward(bridge, TOKENS, use_cache=False), wanted, rtol=0, atol=0)
    with unwrapped(bridge):
        inside = bridge.blocks[1].original_component.children()
        assert any(not hasattr(module, "hook_out") for module in inside)
    assert (modules_of(bridge), hooks_on(bridge)) == before
    with make_editor().attached(bridge):
        edited = bridge(TOKENS, use_cache=False)
        torch.testing.assert_close(forward(bridge, TOKENS, use_cache=False), edited, rtol=0, atol=0)
    assert not torch.equal(edited, wanted)


@torch.no_grad()
def test_every_hook_point_still_sees_what_it_sees_in_the_whole_bridge(bridge):
    _, wanted = bridge.run_with_cache(TOKENS)
    for name in ("resid_pre", "attn_out", "attn.hook_z", "mlp_out", "mlp.hook_post", "resid_post", "ln2.hook_scale"):
        name = sl.Site(1, name).hook_name
        if name in bridge.hook_dict and name in wanted:
            found = []
            with bridge.hooks(fwd_hooks=[(name, lambda tensor, hook, found=found: found.append(tensor.clone()))]):
                forward(bridge, TOKENS, use_cache=False)
            torch.testing.assert_close(found[0], wanted[name], rtol=0, atol=0)
    # What torch itself hooks is seen, too, and everything is as it was after an error.
    before, seen = modules_of(bridge), []
    handle = bridge.blocks[1].mlp.register_forward_pre_hook(lambda module, args: seen.append(args))
    forward(bridge, TOKENS, use_cache=False)
    handle.remove()
    assert len(seen) == 1
    try:
        with unwrapped(bridge):
            raise KeyError
    except KeyError:
        assert modules_of(bridge) == before


@torch.no_grad()
def test_hooks_see_no_pass_of_the_trial(llama):
    from conftest import build_bridge

    model, seen = build_bridge("llama"), []
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda tensor, hook: seen.append(tensor.shape))]):
        forward(model, TOKENS, use_cache=False)
    assert seen == [(2, 20, model.cfg.d_model)]
