"""Hooks that are set by our own table of names act as those that a bridge sets."""

import pytest
import torch
from conftest import build_bridge

from sea_lens.models.points import hooked, points_of
from sea_lens.models.sites import NAMES, Site

TOKENS = torch.arange(2 * 8).reshape(2, 8) % 250


def hooks_on(model):
    return [(name, len(point.fwd_hooks), len(point._forward_hooks)) for name, point in model.hook_dict.items()]


def adding(value, seen=None):
    def add(tensor, hook):
        if seen is not None:
            seen.append((value, hook.name))
        return tensor + value

    return add


@torch.no_grad()
def test_hooks_act_as_a_bridges_own(bridge):
    before = hooks_on(bridge)
    assert dict(points_of(bridge)) == bridge.hook_dict
    for name in (Site(1, name).hook_name for name in NAMES if "unembed" not in name):
        if name not in bridge.hook_dict:
            continue
        ours, theirs = [], []
        with bridge.hooks(fwd_hooks=[(name, adding(0.5, theirs))]):
            wanted = bridge(TOKENS, use_cache=False)
            inside = hooks_on(bridge)
        with hooked(bridge, [(name, adding(0.5, ours))]):
            assert hooks_on(bridge) == inside
            torch.testing.assert_close(bridge(TOKENS, use_cache=False), wanted, rtol=0, atol=0)
        assert ours == theirs
        assert hooks_on(bridge) == before


def test_blocks_nest_and_leave_nothing_behind(llama):
    before, level, seen = hooks_on(llama), llama.context_level, []
    name, same = "blocks.1.hook_resid_post", "blocks.1.hook_out"
    with hooked(llama, [(name, adding(1, seen))]):
        with llama.hooks(fwd_hooks=[(same, adding(2, seen))]), hooked(llama, [(same, adding(3, seen))] * 2):
            assert llama.context_level == level + 3
            llama(TOKENS)
        llama(TOKENS)
    with pytest.raises(IndexError), hooked(llama, [(name, adding(1))]):
        llama(TOKENS + 10**6)
    assert [value for value, _ in seen] == [1, 2, 3, 3, 1]
    assert (hooks_on(llama), llama.context_level) == (before, level)


def test_a_bridge_says_what_is_wrong(llama):
    before = hooks_on(llama)
    for name, error in (("blocks.1.hook_resid_pots", KeyError), ("blocks.1.hook_mlp_in", ValueError)):
        with pytest.raises(error), hooked(llama, [("blocks.0.hook_resid_post", adding(1)), (name, adding(1))]):
            pass
    assert hooks_on(llama) == before


def test_the_table_is_made_again_where_names_change():
    model = build_bridge("llama")
    table = points_of(model)
    assert dict(points_of(model)) == dict(table)
    model.enable_compatibility_mode()
    assert dict(points_of(model)) == model.hook_dict
    seen = []
    with hooked(model, [("blocks.1.hook_resid_post", adding(0.0, seen))]):
        model(TOKENS)
    assert len(seen) == 1
