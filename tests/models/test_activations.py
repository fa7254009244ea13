import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sea_lens import Activations
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.bridge import ModelDescription


def tensors(seed, n=5, layers=(0, 2)):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(n, 4, generator=generator) for layer in layers}


def example(**changes):
    return Activations.from_tensors(
        **{"neutral": tensors(0), "positive": tensors(1), "negative": tensors(2), **changes}
    )


def equal(one, other):
    return one.layers == other.layers and all(
        torch.equal(one[role][layer], other[role][layer]) and one[role][layer].dtype == other[role][layer].dtype
        for role in ("neutral", "positive", "negative")
        for layer in one.layers
    )


def test_from_tensors_knows_its_shape_and_copies(llama):
    positive = tensors(1, layers=(2, 0))
    activations = example(positive=positive, site="mlp_out", model=llama)
    assert (activations.layers, activations.n, activations.d_model) == ([0, 2], 5, 4)
    assert list(activations.positive) == [0, 2]
    assert (activations.site, activations.model) == ("mlp_out", ModelDescription("tiny-llama", 3, 32, "raw"))
    positive[0].zero_()
    assert activations.positive[0].abs().sum() > 0
    assert "5 demonstrations, mlp_out of layers [0, 2], d_model 4" in repr(activations)


def test_from_tensors_cuts_the_autograd_graph():
    positive = {layer: tensor.requires_grad_() for layer, tensor in tensors(1).items()}
    assert not any(tensor.requires_grad for tensor in example(positive=positive).positive.values())


def test_activations_cannot_be_changed():
    activations = example()
    with pytest.raises(TypeError):
        activations.neutral[0] = torch.zeros(5, 4)
    with pytest.raises(AttributeError):
        activations.site = "mlp_out"


@pytest.mark.usefixtures("without_type_checks")
def test_a_tensor_of_another_rank_is_refused():
    roles = {role: {0: torch.zeros(5, 2, 4)} for role in ("neutral", "positive", "negative")}
    with pytest.raises(InputError, match=r"must be \[n, d_model\]"):
        Activations.from_tensors(**roles)


@pytest.mark.usefixtures("without_type_checks")
def test_roles_with_unequal_counts_are_refused():
    with pytest.raises(InputError, match=r"positive layer 0': \(4, 4\)"):
        example(positive=tensors(1, n=4))
    with pytest.raises(InputError, match="one n and one d_model"):
        example(positive={0: torch.zeros(5, 4), 2: torch.zeros(5, 3)})


def test_roles_with_other_layers_are_refused():
    with pytest.raises(InputError, match=r"same layers.*'negative': \[0, 1\]"):
        example(negative=tensors(2, layers=(0, 1)))


def test_empty_activations_are_refused():
    with pytest.raises(InputError, match="n is 0"):
        example(neutral=tensors(0, n=0), positive=tensors(0, n=0), negative=tensors(0, n=0))
    with pytest.raises(InputError, match="same layers, at least one"):
        example(neutral={}, positive={}, negative={})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("role", ["neutral", "positive", "negative"])
def test_nan_and_infinity_are_refused_by_role_layer_and_row(role, value):
    bad = tensors(3)
    bad[2][1, 3] = bad[2][4, 0] = value
    with pytest.raises(InputError, match=rf"{role} activations of layer 2 .* in 2 of 5 rows: \[1, 4\]"):
        example(**{role: bad})


def test_swapped_exchanges_positive_and_negative():
    activations = example()
    swapped = activations.swapped()
    assert swapped.positive[2] is activations.negative[2]
    assert swapped.negative[0] is activations.positive[0]
    assert swapped.neutral[0] is activations.neutral[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saving_and_loading_is_bit_identical(tmp_path, llama, dtype):
    roles = {
        role: {layer: tensor.to(dtype) for layer, tensor in tensors(i).items()}
        for i, role in enumerate(("neutral", "positive", "negative"))
    }
    original = Activations(**roles, site="mlp_out", token=-1, model=ModelDescription.of(llama), demonstrations="abc")
    path = tmp_path / "deeper" / "activations.safetensors"
    original.save(path)
    loaded = Activations.load(path)
    assert equal(loaded, original)
    facts = (loaded.site, loaded.token, loaded.model, loaded.demonstrations)
    assert facts == ("mlp_out", -1, original.model, "abc")
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("base", [torch.randn(4, 10).T[::2], torch.randn(5, 4)], ids=["a view", "contiguous"])
def test_tensors_that_share_memory_can_be_saved(tmp_path, base):
    Activations({0: base, 1: base}, {0: base, 1: base}, {0: base, 1: base + 1}).save(tmp_path / "a")
    loaded = Activations.load(tmp_path / "a")
    assert all(torch.equal(loaded[role][0], base) for role in ("neutral", "positive", "negative"))
    assert torch.equal(loaded.negative[1], base + 1)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
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
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        Activations.load(path)
    save_file({"neutral.0": torch.zeros(2, 2)}, path)
    with pytest.raises(FileFormatError, match="not an activations file of sea_lens"):
        Activations.load(path)


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["neutral.0", "positive.0", "negative.0"], None),
        (["neutral.0", "positive.0", "negative.0"], {"site": "resid_post"}),
        (["neutral.0", "positive.0", "negative.0"], []),
        (["neutral.0", "positive.0"], {"site": "resid_post", "token": "last", "model": None, "demonstrations": None}),
        (["loud.0"], {"site": "resid_post", "token": "last", "model": None, "demonstrations": None}),
        (["neutral"], {"site": "resid_post", "token": "last", "model": None, "demonstrations": None}),
    ],
)
def test_a_file_of_our_format_with_other_contents_is_refused(tmp_path, names, facts):
    metadata = {"sea_lens.models.activations/1": "" if facts is None else json.dumps(facts)}
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "a", metadata)
    with pytest.raises(FileFormatError, match="is damaged"):
        Activations.load(tmp_path / "a")


def test_a_folder_without_a_finished_collection_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"no finished collection.*goes on where it stopped"):
        Activations.load(tmp_path)


# --- controls and edits -----------------------------------------------------------------------------------------------


def test_shuffled_exchanges_the_same_random_half_at_every_layer():
    activations = example(**{role: tensors(i, n=400) for i, role in enumerate(("neutral", "positive", "negative"))})
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


def test_the_editor_is_kept_and_shown(tmp_path):
    edited = replace(example(), editor="sea 0123")
    edited.save(tmp_path / "a")
    copies = [
        Activations.load(tmp_path / "a"),
        pickle.loads(pickle.dumps(edited)),
        edited.swapped(),
        edited.shuffled(0),
    ]
    assert [copy.editor for copy in copies] == ["sea 0123"] * 4
    assert "from tensors edited by sea 0123)" in repr(edited)
    assert "edited" not in repr(example())


def test_files_that_know_of_no_editors_are_read(tmp_path):
    facts = {"site": "resid_post", "token": "last", "model": None, "demonstrations": None}
    roles = {f"{role}.0": torch.ones(2, 2) for role in ("neutral", "positive", "negative")}
    save_file(roles, tmp_path / "a", {"sea_lens.models.activations/1": json.dumps(facts)})
    assert Activations.load(tmp_path / "a").editor is None
