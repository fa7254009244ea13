import pytest
import torch

import sea_lens as sl
from sea_lens.editing.sparse import SparseEdit
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.sae.sae import SAE

D, M, K = 32, 48, 6


def random_sae(activation="jumprelu", normalization="none", width=D, n_features=M, subtracts=True, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return SAE(
        torch.randn(width, n_features, generator=generator) / width**0.5,
        torch.randn(n_features, generator=generator) / 8,
        torch.randn(n_features, width, generator=generator) / width**0.5,
        torch.randn(width, generator=generator) / 4,
        activation,
        torch.rand(n_features, generator=generator) / 2 if activation == "jumprelu" else None,
        K if activation in ("topk", "groupmax") else None,
        subtracts,
        normalization,
        "blocks.1.hook_resid_post",
        **options,
    )


KINDS = [
    ("relu", "none"),
    ("jumprelu", "none"),
    ("jumprelu", "constant_norm_rescale"),
    ("relu", "layer_norm"),
    ("topk", "none"),
    ("topk", "layer_norm"),
    ("groupmax", "none"),
]
FEATURES = torch.tensor([2, 3, 11, 40])
VECTOR = torch.tensor([1.5, -0.75, 0.25, -2.0])


def edit_of(sae, how="shift"):
    return SparseEdit.of(sae, FEATURES, VECTOR, how)


def whole_change(sae, x, strength):
    """`decode(activation(f + s v)) - decode(f)` with all of the SAE, its normalization taken back, in float64."""
    vector = torch.zeros(M, dtype=torch.float64).index_copy(0, FEATURES, VECTOR.double())
    codes = sae.encode(x)
    shifted = codes + strength * vector
    if sae.activation == "relu":
        after = shifted.relu()
    elif sae.activation == "jumprelu":
        after = shifted.relu() * (shifted > sae.threshold.double())
    elif sae.activation == "topk":
        after = shifted.relu() * (shifted >= shifted.topk(K, dim=-1).values[..., -1:])
    else:
        groups = shifted.view(*shifted.shape[:-1], K, -1)
        after = (groups.relu() * (groups == groups.max(-1, keepdim=True).values)).flatten(-2)
    return sae.decode(after, x) - sae.decode(codes, x)


@pytest.mark.parametrize(("activation", "normalization"), KINDS)
def test_slices_of_an_sae_edit_as_all_of_it_does(activation, normalization):
    sae = random_sae(activation, normalization)
    edit = edit_of(sae)
    assert edit.sae.n_features == (M if sae.k is not None else 4)
    x = 3 * torch.randn(50, D, dtype=torch.float64)
    for strength in (1.0, -0.5, 3.0):
        change = whole_change(sae, x, strength)
        assert float(change.abs().max()) > 0.1
        torch.testing.assert_close(edit.scaled(strength)(x), x + change, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("activation", "normalization"), KINDS)
@pytest.mark.parametrize("how", ["shift", "add", "clamp"])
def test_strength_zero_is_the_identity_and_rows_dtypes_and_shapes_do_not_matter(activation, normalization, how):
    edit = edit_of(random_sae(activation, normalization), how)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        h = (3 * torch.randn(4, 5, D)).to(dtype)
        assert edit.scaled(0.0)(h) is h
        assert edit.scaled(0.0).is_identity
        edited = edit(h)
        assert (edited.dtype, edited.shape) == (dtype, h.shape)
        torch.testing.assert_close(
            edit(h[1, 2]), edited[1, 2], atol=1e-2 if dtype != torch.float32 else 1e-5, rtol=1e-2
        )
        assert torch.equal(edit(h), edited)
        full = edit(h.float())
        torch.testing.assert_close(edited.float(), full.to(dtype).float(), atol=0, rtol=0)  # computed in float32
    assert bool(edit(torch.zeros(2, D)).isfinite().all())
    h = torch.randn(3, D, requires_grad=True)
    edit(h).sum().backward()
    assert bool(h.grad.isfinite().all())
    with torch.inference_mode():
        edit(torch.randn(2, D).bfloat16())
    edit(h).sum().backward()


def test_a_token_whose_codes_do_not_change_comes_back_bit_for_bit():
    sae = random_sae("jumprelu")
    edit = SparseEdit.of(sae, torch.tensor([5]), torch.tensor([-1.0]))
    h = (3 * torch.randn(200, D)).bfloat16()
    off = sae.encode(h)[:, 5] == 0
    assert 10 < int(off.sum()) < 190
    edited = edit(h)
    assert torch.equal(edited[off], h[off])  # suppressing what is off does nothing
    assert bool((edited[~off] != h[~off]).any(1).all())


def test_the_jumprelu_case_where_an_addition_is_lost_and_a_feature_is_deleted():
    eye = torch.eye(2)
    sae = SAE(eye, torch.zeros(2), eye, torch.zeros(2), "jumprelu", torch.full((2,), 1.5))
    edit = SparseEdit.of(sae, torch.tensor([0, 1]), torch.tensor([0.75, -1.5]))
    assert torch.equal(edit(torch.tensor([0.0, 2.0])), torch.tensor([0.0, 0.0]))
    # Twice is not two times: at strength 2 the first one is still not above its threshold, at 3 it is.
    assert torch.equal(edit.scaled(2.0)(torch.tensor([0.0, 2.0])), torch.tensor([0.0, 0.0]))
    assert torch.equal(edit.scaled(3.0)(torch.tensor([0.0, 2.0])), torch.tensor([2.25, 0.0]))


def test_under_top_k_an_addition_pushes_others_out():
    eye = torch.eye(3)
    sae = SAE(eye, torch.zeros(3), eye, torch.zeros(3), "topk", k=2)
    edit = SparseEdit.of(sae, torch.tensor([0]), torch.tensor([5.0]))
    assert torch.equal(edit(torch.tensor([0.5, 3.0, 2.0])), torch.tensor([5.5, 3.0, 0.0]))


@pytest.mark.parametrize(("activation", "normalization"), KINDS)
def test_a_feature_is_steered_and_clamped(activation, normalization):
    sae = random_sae(activation, normalization)
    x, row = 3 * torch.randn(30, D, dtype=torch.float64), sae.decoder[7].double()
    codes, scale = sae.codes_and_scale(x)
    scale = torch.ones(30, 1).double() if scale is None else scale
    feature = sl.SAEFeature(sae, 7)
    steered, clamped = feature.steer(2.5), feature.clamp(1.5)
    torch.testing.assert_close(steered[1](x), x + 2.5 * row * scale, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(steered.scaled(-2.0)[1](x), x - 5 * row * scale, atol=1e-9, rtol=1e-9)
    expected = x + (1.5 - codes[:, 7:8]) * row * scale
    torch.testing.assert_close(clamped[1](x), expected, atol=1e-9, rtol=1e-9)
    assert not feature.clamp(0.0).is_identity
    assert steered[1].sae.n_features == 1
    assert str(steered.where) == "all but the first token and massive ones"
    assert "adds 2.5 to feature 7 of 48" in repr(steered)
    assert "clamps to 1.5 feature 7" in repr(clamped)


@pytest.mark.parametrize("how", ["shift", "add", "clamp"])
@pytest.mark.parametrize(("activation", "normalization"), [KINDS[2], KINDS[5]])
def test_an_editor_is_saved_and_loaded_to_the_bit_without_the_sae(activation, normalization, how, tmp_path):
    sae = random_sae(activation, normalization)
    edit = SparseEdit.of(sae, FEATURES, VECTOR, how, torch.rand(2, 4)).scaled(0.7)
    editor = sl.Editor({1: edit})
    editor.save_pretrained(tmp_path)
    loaded = sl.Editor.from_pretrained(tmp_path)
    h = torch.randn(9, D).bfloat16()
    assert torch.equal(loaded[1](h), editor[1](h))
    assert (loaded.fingerprint, repr(loaded), loaded[1].sae.identity) == (
        editor.fingerprint,
        repr(editor),
        sae.identity,
    )
    assert torch.equal(loaded[1].frequencies, edit.frequencies)
    feature = sl.SAEFeature(sae, 3).clamp(2.0)
    feature.save_pretrained(tmp_path / "feature")
    assert sl.Editor.from_pretrained(tmp_path / "feature").card == feature.card


@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_padding_cache_and_batches_do_not_matter(llama, activation):
    model = llama
    editor = sl.Editor({1: edit_of(random_sae(activation)).scaled(3.0)}).at_positions("not first")
    prompts = ["The sea is", "A much longer prompt about the lens", "x"]
    together = sl.generate(model, prompts, editor, max_new_tokens=4, batch_size=3)
    assert together == [sl.generate(model, [one], editor, max_new_tokens=4, batch_size=1)[0] for one in prompts]
    assert together != sl.generate(model, prompts, max_new_tokens=4, batch_size=3)
    text = torch.randint(2, 258, (1, 9))
    with editor.attached(model), torch.no_grad():
        whole = model(text)
        padded = torch.cat([torch.full((1, 4), 1), text], 1)
        mask = torch.tensor([[0] * 4 + [1] * 9])
        left = model(padded, attention_mask=mask)[:, 4:]
    torch.testing.assert_close(left, whole, atol=2e-4, rtol=1e-4)


def test_directions_and_gains_are_the_decoders_rows_with_their_signs(llama):
    sae = random_sae("topk")
    edit = edit_of(sae)
    rows = sae.decoder[FEATURES]
    torch.testing.assert_close(edit.directions.T * edit.gains[:, None], rows * VECTOR[:, None])
    found = sl.read_directions(llama, sl.Editor({1: edit}), 1, k=2)
    assert found.oriented
    assert found.table["kind"].tolist() == ["promoted"] * 2 + ["suppressed"] * 2
    activations = sl.Activations.from_tensors(positive={1: -torch.ones(3, D)}, negative={1: torch.zeros(3, D)})
    again = sl.read_directions(llama, sl.Editor({1: edit}), 1, k=2, activations=activations)
    assert again.table["raises"].tolist() == found.table["raises"].tolist()  # no sign is turned


def test_two_editors_follow_each_other_and_are_controlled():
    one, other = (sl.Editor({1: edit_of(random_sae(seed=seed))}) for seed in (0, 1))
    x = 3 * torch.randn(20, D)
    torch.testing.assert_close((one + other)[1](x), other[1](one[1](x)))
    control = sl.random_editor_like(one, seed=0)[1]
    moved, random = ((edit(x) - x).norm(dim=1) for edit in (one[1], control))
    torch.testing.assert_close(random, moved, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("without_type_checks")
def test_what_does_not_fit_is_refused(llama):
    sae = random_sae()
    with pytest.raises(ModelMismatchError, match="made for width 32, and the activation's last dimension is 8"):
        edit_of(sae)(torch.zeros(2, 8))
    with pytest.raises(ModelMismatchError, match="This SAE is for width 32, and the activation's last dimension is 8"):
        sae.encode(torch.zeros(2, 8))
    wide = sl.SAEFeature(random_sae(width=40), 0).steer(1.0)
    with pytest.raises(ModelMismatchError, match="for d_model 40"):
        wide.check(llama)
    for features, vector, why in (
        ([3, 2], [1.0, 1.0], "ascending, each once"),
        ([2, 2], [1.0, 1.0], "ascending, each once"),
        ([48], [1.0], "has features 0 to 47"),
        ([], [], "needs one feature at least"),
        ([1], [float("nan")], "must be finite"),
        ([1], [1.0, 2.0], "one number per edited feature"),
    ):
        with pytest.raises(InputError, match=why):
            SparseEdit.of(sae, torch.tensor(features, dtype=torch.long), torch.tensor(vector))
    with pytest.raises(InputError, match="has only 2 of its 48 features"):
        SparseEdit.of(sae.at_features(torch.tensor([1, 2])), FEATURES, VECTOR)
    with pytest.raises(InputError, match="features 0 to 47, and 48 was asked for"):
        sl.SAEFeature(sae, 48)
    nowhere = SAE(sae.encoder, sae.encoder_bias, sae.decoder, sae.decoder_bias)
    with pytest.raises(InputError, match="Give site to load_sae"):
        sl.SAEFeature(nowhere, 1)
    for change, why in (
        ({"decoder": sae.encoder}, r"its decoder is \[48, 32\]; it is \[32, 48\]"),
        ({"threshold": None}, "has a threshold per feature"),
        ({"k": 3}, "has a k"),
        ({"activation": "topk", "threshold": None, "k": 49}, "k is from 1 to 48"),
        ({"activation": "groupmax", "threshold": None, "k": 7}, "a divisor of it"),
    ):
        fields = {
            name: getattr(sae, name)
            for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "k")
        }
        with pytest.raises(InputError, match=why):
            SAE(**{"activation": "jumprelu", **fields, **change})


def test_an_sae_of_attention_heads_edits_them_side_by_side(llama):
    sae = random_sae("jumprelu")
    sae = SAE(
        **{name: getattr(sae, name) for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")},
        site="blocks.1.attn.hook_z",
    )
    editor, seen = sl.SAEFeature(sae, 3).steer(2.0), {}
    tokens = torch.arange(2, 9)[None]
    with (
        editor.attached(llama),
        torch.no_grad(),
        llama.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: seen.update(z=z.clone()))]),
    ):
        llama(tokens)
    with (
        torch.no_grad(),
        llama.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: seen.update(plain=z.clone()))]),
    ):
        llama(tokens)
    moved = (seen["z"] - seen["plain"]).reshape(1, 7, D)
    torch.testing.assert_close(moved[:, 1:], (2.0 * sae.decoder[3]).expand(1, 6, D), atol=1e-5, rtol=1e-5)
    assert not moved[:, 0].any()
