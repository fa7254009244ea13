"""Activations: sides by site, checked when made, saved and read back."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sea_lens import Activations, Site
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.models.activations import FORMAT, FORMAT_OF_0_1, ROLES, BySite
from sea_lens.models.bridge import ModelInfo

PLAIN = {"token": "last", "model": None, "demonstrations": None}


def tensors(seed, n=5, layers=(0, 2), width=4):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(n, width, generator=generator) for layer in layers}


def example(**changes):
    return Activations.from_tensors(**{role: tensors(seed) for seed, role in enumerate(ROLES)} | changes)


def equal(one, other):
    return (one.sites, one.roles) == (other.sites, other.roles) and all(
        torch.equal(one[role][site], other[role][site]) and one[role][site].dtype == other[role][site].dtype
        for role in one.roles
        for site in one.sites
    )


def test_from_tensors_knows_its_sites_and_copies(llama):
    positive = tensors(1, layers=(2, 0))
    activations = example(positive=positive, site="mlp_out", model=llama)
    assert (activations.layers, activations.n, activations.width) == ([0, 2], 5, 4)
    assert list(activations.positive) == activations.sites == [Site(0, "mlp_out"), Site(2, "mlp_out")]
    assert activations.model == ModelInfo("tiny-llama", 3, 32, "raw", 4)
    kept = activations.positive[0].clone()
    positive[0].zero_()
    for key in (0, "blocks.0.hook_mlp_out", Site(0, "mlp_out")):
        assert torch.equal(activations.positive[key], kept)
        assert key in activations.positive
    assert 1 not in activations.positive
    assert "5 demonstrations, neutral, positive, negative, mlp_out of layers [0, 2], width 4" in repr(activations)
    grown = {layer: tensor.requires_grad_() for layer, tensor in tensors(1).items()}
    assert not any(tensor.requires_grad for tensor in example(positive=grown).positive.values())


def test_sites_of_other_widths_lie_side_by_side():
    wide = {"blocks.0.attn.hook_z": torch.ones(5, 8), "unembed.hook_in": torch.ones(5, 4)}
    sides = {role: {**wide, "blocks.0.hook_resid_post": torch.zeros(5, 4)} for role in ROLES}
    activations = Activations.from_tensors(**sides)
    assert list(map(str, activations.sites)) == ["blocks.0.attn.hook_z", "blocks.0.hook_resid_post", "unembed.hook_in"]
    with pytest.raises(InputError, match="several sites of layer 0"):
        activations.positive[0]
    assert activations.at_sites(["blocks.0.hook_resid_post"]).positive[0].shape == (5, 4)
    with pytest.raises(ModelMismatchError, match=r"This collection has no layer 1; it has layers \[0\]"):
        activations.at_sites([1])


def test_neutral_activations_may_be_missing(tmp_path):
    activations = Activations.from_tensors(positive=tensors(1), negative=tensors(2))
    assert activations.roles == ["positive", "negative"]
    with pytest.raises(InputError, match="no neutral activations; there are positive, negative"):
        _ = activations.neutral
    activations.save(tmp_path / "a")
    assert equal(Activations.load(tmp_path / "a"), activations)
    assert equal(activations.swapped().swapped(), activations)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neutral": {0: torch.zeros(5, 2, 4), 2: torch.zeros(5, 2, 4)}}, r"must be \[n, width\]"),
        ({"positive": tensors(1, n=4)}, r"one n and one width.*\(4, 4\) first at positive blocks\.0"),
        ({"positive": {0: torch.zeros(5, 4), 2: torch.zeros(5, 3)}}, "one n and one width"),
        (
            {role: {k: torch.zeros(5, k) for k in range(4, 34)} for role in ROLES},
            r"are (\([^)]*\) first at [^,]*(, )?){4}\.$",
        ),
        ({"negative": tensors(2, layers=(0, 1))}, "same layers.*positive layers 0,2; negative layers 0-1"),
        ({role: tensors(0, n=0) for role in ROLES}, "at least one"),
        ({"neutral": {}, "positive": {}, "negative": {}}, "same layers, at least one"),
        ({"positive": torch.zeros(5, 4)}, "positive must be a mapping .* of tensors, and a tensor of "),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        example(**changes)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("role", ROLES)
def test_nan_and_infinity_are_refused_by_role_layer_and_row(role, value):
    bad = tensors(3)
    bad[2][1, 3] = bad[2][4, 0] = value
    with pytest.raises(InputError, match=rf"{role} activations of layer 2 .* in 2 of 5 rows: \[1, 4\]"):
        example(**{role: bad})


# --- controls --------------------------------------------------------------------------------------------------------


def test_swapped_exchanges_positive_and_negative():
    activations = example()
    swapped = activations.swapped()
    assert swapped.positive[2] is activations.negative[2]
    assert swapped.negative[0] is activations.positive[0]
    assert swapped.neutral[0] is activations.neutral[0]


def test_shuffled_exchanges_the_same_random_half_at_every_layer():
    activations = example(**{role: tensors(seed, n=400) for seed, role in enumerate(ROLES)})
    shuffled = activations.shuffled(0)
    exchanged = [(shuffled.positive[layer] == activations.negative[layer]).all(1) for layer in activations.layers]
    assert torch.equal(*exchanged)
    assert 160 < exchanged[0].sum() < 240  # four standard deviations about a half
    for layer in activations.layers:
        assert torch.equal(shuffled.neutral[layer], activations.neutral[layer])
        kept = ~exchanged[0]
        for role, other in (("positive", "negative"), ("negative", "positive")):
            assert torch.equal(shuffled[role][layer][kept], activations[role][layer][kept])
            assert torch.equal(shuffled[role][layer][exchanged[0]], activations[other][layer][exchanged[0]])


def test_shuffling_is_told_by_its_seed_and_undone_by_itself():
    activations = replace(example(), demonstrations="abc")
    shuffled = activations.shuffled(3)
    assert (shuffled.demonstrations, example().shuffled(3).demonstrations) == ("abc shuffled 3", None)
    assert equal(shuffled, activations.shuffled(3))
    assert equal(shuffled.shuffled(3), activations)
    assert shuffled.shuffled(3).demonstrations == "abc"
    assert shuffled.shuffled(4).demonstrations == "abc shuffled 3 shuffled 4"
    assert not all(equal(activations.shuffled(seed), shuffled) for seed in range(10))


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saving_and_loading_is_bit_identical(tmp_path, llama, dtype):
    sides = {
        role: BySite({Site(layer, "mlp_out"): tensor.to(dtype) for layer, tensor in tensors(seed).items()})
        for seed, role in enumerate(ROLES)
    }
    original = Activations(sides, -1, ModelInfo.of(llama), "abc", editor="sea 0123")
    path = tmp_path / "deeper" / "activations.safetensors"
    original.save(path)
    for copy in (Activations.load(path), pickle.loads(pickle.dumps(original))):
        assert equal(copy, original)
        assert (copy.token, copy.model, copy.demonstrations, copy.editor) == (-1, original.model, "abc", "sea 0123")
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert "from tiny-llama edited by sea 0123)" in repr(original)
    assert (original.swapped().editor, original.shuffled(0).editor) == ("sea 0123", "sea 0123")


@pytest.mark.parametrize("base", [torch.randn(4, 10).T[::2], torch.randn(5, 4)], ids=["a view", "contiguous"])
def test_tensors_that_share_memory_can_be_saved(tmp_path, base):
    same = BySite({0: base, 1: base})
    Activations({"neutral": same, "positive": same, "negative": BySite({0: base, 1: base + 1})}).save(tmp_path / "a")
    loaded = Activations.load(tmp_path / "a")
    assert all(torch.equal(loaded[role][0], base) for role in ROLES)
    assert torch.equal(loaded.negative[1], base + 1)


@pytest.mark.parametrize("keep", [0, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    example().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match="truncated or not a safetensors file"):
        Activations.load(path)


def test_files_that_are_not_ours_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileFormatError, match="missing"):
        Activations.load(path)
    save_file({"neutral.0": torch.zeros(2, 2)}, path)
    with pytest.raises(FileFormatError, match="not an activations file of sea_lens"):
        Activations.load(path)
    with pytest.raises(FileFormatError, match=r"no finished collection.*goes on where it stopped"):
        Activations.load(tmp_path)


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["neutral/blocks.0.hook_resid_post"], ""),
        (["neutral/blocks.0.hook_resid_post"], json.dumps({"token": "last"})),
        (["neutral/blocks.0.hook_resid_post"], "[]"),
        (["neutral/blocks.0.hook_resid_post"], "[" * 100_000),
        (["loud/blocks.0.hook_resid_post"], json.dumps(PLAIN)),
        (["neutral/nowhere"], json.dumps(PLAIN)),
        (["neutral"], json.dumps(PLAIN)),
        (["neutral/blocks.0.hook_resid_post", "positive/blocks.1.hook_resid_post"], json.dumps(PLAIN)),
    ],
)
def test_a_file_of_our_format_with_other_contents_is_refused(tmp_path, names, facts):
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "a", {FORMAT: facts})
    with pytest.raises(FileFormatError, match="is damaged"):
        Activations.load(tmp_path / "a")


def test_files_of_0_1_are_read(tmp_path):
    """They named layers only, knew of no editors at first, and held all three sides."""
    roles = {f"{role}.{layer}": torch.full((2, 2), float(layer)) for role in ROLES for layer in (0, 1)}
    save_file(roles, tmp_path / "a", {FORMAT_OF_0_1: json.dumps({**PLAIN, "site": "mlp_out"})})
    found = Activations.load(tmp_path / "a")
    assert found.sites == [Site(0, "mlp_out"), Site(1, "mlp_out")]
    assert torch.equal(found.negative[1], torch.ones(2, 2))
    assert found.editor is None
