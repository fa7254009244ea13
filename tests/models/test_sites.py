"""Sites: any hook point, read and written as [batch, pos, width]."""

import pytest
import torch
from conftest import N_LAYERS, build_bridge, make_editor

import sea_lens
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.sites import NAMES, Site, check_layers, named_layers


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_what_is_written_to_a_site_changes_the_logits_and_what_is_read_can_be_written_back(architecture):
    model, ids = build_bridge(architecture), torch.arange(2, 8)[None]
    plain = model(ids)
    for name in NAMES:
        site = Site(None if name == "unembed.hook_in" else 1, name)
        width, seen = site.width(model), []

        def edit(tensor, hook, change, site=site, seen=seen):
            seen.append(site.read(tensor).shape)
            return site.write(site.read(tensor) + change, tensor)

        for change, same in ((0.0, True), (torch.linspace(0, 1, width), False)):
            hooks = [(site.check(model), lambda tensor, hook, change=change: edit(tensor, hook, change))]
            assert torch.equal(model.run_with_hooks(ids, fwd_hooks=hooks), plain) == same
        assert seen[0] == (1, 6, width)


def test_heads_lie_side_by_side():
    tensor = torch.randn(2, 3, 4, 5)
    site = Site(0, "z")
    assert torch.equal(site.read(tensor)[..., 5:10], tensor[:, :, 1])
    assert torch.equal(site.write(site.read(tensor), tensor), tensor)


@pytest.mark.parametrize(
    ("given", "site"),
    [
        (3, Site(3, "resid_post")),
        ("blocks.3.hook_resid_post", Site(3)),
        ("blocks.3.hook_out", Site(3)),
        ("blocks.0.attn.hook_z", Site(0, "z")),
        ("blocks.2.mlp.hook_post", Site(2, "post")),
        ("unembed.hook_in", Site(None, "unembed.hook_in")),
    ],
)
def test_names_in_any_form_of_transformer_lens(given, site):
    assert Site.of(given) == site
    assert Site.of(site.hook_name) == site


@pytest.mark.usefixtures("without_type_checks")
def test_a_site_that_is_not_there_is_refused_with_those_that_are(llama):
    with pytest.raises(ModelMismatchError, match=r"resid_mid.*resid_post.*unembed"):
        Site(0, "nowhere").check(llama)
    with pytest.raises(ModelMismatchError, match="layers 0 to 2"):
        Site(N_LAYERS).check(llama)
    for wrong in (
        lambda: Site.of("resid_post"),
        lambda: Site(None),
        lambda: Site(1, "unembed.hook_in"),
        lambda: Site.of(1.5),
    ):
        with pytest.raises(InputError):
            wrong()


def test_a_number_per_pair_of_tokens_is_no_activation(llama):
    two = build_bridge("llama", num_attention_heads=2, num_key_value_heads=2, head_dim=16)  # as many heads as tokens
    for model, name in ((llama, "attn.hook_pattern"), (two, "attn.hook_attn_scores")):
        with pytest.raises(ModelMismatchError, match="an activation per token is needed"):
            Site(0, name).width(model)
    with pytest.raises(InputError, match="a number per pair of tokens"):
        sea_lens.Editor({"blocks.0.attn.hook_pattern": make_editor()[0]})


def test_sites_sort_as_a_pass_comes_to_them():
    sites = [Site(layer, name) for layer in (0, 1) for name in NAMES[:-1]] + [Site(None, NAMES[-1])]
    shuffled = sites[1::2] + sites[::2]
    assert sorted(shuffled) == sites


def test_layers_count_from_either_end_and_a_huge_span_is_refused_at_once():
    assert check_layers([-1, 0], 3) == [0, 2]
    with pytest.raises(ModelMismatchError):
        check_layers([3], 3)
    with pytest.raises(ModelMismatchError):
        named_layers("0-99999999999", 3)
