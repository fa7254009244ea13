import json
import math
import pickle

import numpy as np
import pytest
import torch
from sae import layouts
from sae.layouts import D, K, M, json_file, random_sae, saelens
from safetensors.torch import save_file

import sea_lens as sl
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.sae.load import find_sae

X = 3 * torch.randn(40, D, generator=torch.Generator().manual_seed(7))


def oracle(t, kind, x=X):
    """Codes by the definition, in float64, with the bias subtracted."""
    t = {name: tensor.double() for name, tensor in t.items()}
    before = (x.double() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    if kind == "jumprelu":
        return torch.where(before > t["threshold"], before.relu(), 0.0)
    if kind == "topk":
        least = before.topk(K, dim=-1).values[..., -1:]
        return torch.where(before >= least, before.relu(), 0.0)
    return before.relu()


def everything():
    for kind, writers in (
        ("jumprelu", layouts.JUMPRELU),
        ("one", layouts.ONE_THRESHOLD),
        ("relu", layouts.RELU),
        ("topk", layouts.TOP_K),
    ):
        for write in writers:
            yield pytest.param(kind, write, id=write.__name__)


@pytest.mark.parametrize(("kind", "write"), everything())
def test_one_sae_has_equal_codes_in_every_layout(kind, write, tmp_path):
    tensors = random_sae()
    tensors = layouts.one_threshold(tensors) if kind == "one" else tensors
    sae = sl.load_sae(
        write(tmp_path, tensors), mean_norm=layouts.MEAN_NORM if write is layouts.scaled_saelens else None
    )
    assert (sae.width, sae.n_features) == (D, M)
    assert {name: tuple(tensor.shape) for name, tensor in sae._tensors.items() if name != "threshold"} == {
        "encoder": (D, M),
        "encoder_bias": (M,),
        "decoder": (M, D),
        "decoder_bias": (D,),
    }
    expected = oracle(tensors, "jumprelu" if kind == "one" else kind)
    assert 0.1 < (expected > 0).double().mean() < 0.7
    codes = sae.encode(X)
    assert torch.equal(codes > 0, expected > 0)
    torch.testing.assert_close(codes.double(), expected, atol=2e-5, rtol=1e-5)
    # Llama Scope's rows are of unit length in units of scaled activations.
    rows = tensors["W_dec"].double() * (layouts.MEAN_NORM / D**0.5 if write is layouts.llama_scope else 1.0)
    decoded = expected @ rows + tensors["b_dec"].double()
    torch.testing.assert_close(sae.decode(codes).double(), decoded, atol=2e-5, rtol=1e-5)
    assert sae.site == "blocks.3.hook_resid_post"
    assert find_sae(sae.identity) is sae
    torch.testing.assert_close(sae.encode(X.view(5, 8, D)), codes.view(5, 8, M))


def test_an_orthonormal_dictionary_gives_back_what_has_positive_codes(tmp_path):
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1))).Q
    tensors = {
        "W_enc": basis,
        "b_enc": torch.zeros(D),
        "W_dec": basis.T,
        "b_dec": torch.randn(D),
        "threshold": torch.zeros(D),
    }
    x = tensors["b_dec"] + torch.rand(9, D) @ basis.T
    for write in (layouts.standard_saelens, layouts.jumprelu_saelens, layouts.sparsify, layouts.matryoshka_dictionary):
        if write is layouts.matryoshka_dictionary:
            continue  # its threshold is not zero
        sae = sl.load_sae(write(tmp_path, tensors), k=D if write is layouts.sparsify else None)
        torch.testing.assert_close(sae.decode(sae.encode(x)), x, atol=1e-5, rtol=1e-5)
        assert sae.measure(x).explained_variance > 1 - 1e-9


@pytest.mark.parametrize("write", [layouts.jumprelu_saelens, layouts.gated_saelens, layouts.gemma_scope])
def test_what_is_exactly_at_the_threshold_is_off(write, tmp_path):
    eye = torch.eye(D)
    tensors = {
        "W_enc": eye,
        "b_enc": torch.zeros(D),
        "W_dec": eye,
        "b_dec": torch.zeros(D),
        "threshold": torch.full((D,), 1.5),
    }
    if write is layouts.gated_saelens:
        gated = {"W_enc": eye, "W_dec": eye, "b_dec": torch.zeros(D), "r_mag": torch.zeros(D), "b_mag": torch.zeros(D)}
        folder = saelens(tmp_path, {**gated, "b_gate": torch.full((D,), -1.5)}, "gated")
    else:
        folder = write(tmp_path, tensors)
    x = torch.full((D,), 1.5)
    x[0] = math.nextafter(1.5, 2) if x.dtype == torch.float64 else 1.5 + 2**-22
    assert (sl.load_sae(folder).encode(x) > 0).tolist() == [True] + [False] * (D - 1)


def test_the_bias_tells_whether_it_is_subtracted(tmp_path):
    tensors = layouts.without_threshold(random_sae())
    one, other = (
        sl.load_sae(saelens(tmp_path / str(flag), tensors, apply_b_dec_to_input=flag)).encode(X)
        for flag in (True, False)
    )
    assert not torch.allclose(one, other, atol=0.1)
    torch.testing.assert_close(other, (X @ tensors["W_enc"] + tensors["b_enc"]).relu())


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_normalizations_by_token(normalization, tmp_path):
    tensors = layouts.without_threshold(random_sae())
    sae = sl.load_sae(saelens(tmp_path, tensors, normalize_activations=normalization))
    x, t = X.double(), {name: tensor.double() for name, tensor in tensors.items()}
    if normalization == "constant_norm_rescale":
        given, factor, offset = x * D**0.5 / x.norm(dim=1, keepdim=True), x.norm(dim=1, keepdim=True) / D**0.5, 0.0
    else:
        offset = x.mean(1, keepdim=True)
        factor = (x - offset).std(1, keepdim=True)
        given = (x - offset) / (factor + 1e-5)
    codes = ((given - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    torch.testing.assert_close(sae.encode(x), codes, atol=1e-6, rtol=1e-6)
    decoded = (codes @ t["W_dec"] + t["b_dec"]) * factor + offset
    torch.testing.assert_close(sae.decode(codes, x), decoded, atol=1e-5, rtol=1e-5)
    same = sae.encode(2 * X)
    exact = normalization == "constant_norm_rescale"
    torch.testing.assert_close(same, sae.encode(X), atol=0 if exact else 1e-4, rtol=0 if exact else 1e-4)
    assert bool(sae.encode(torch.zeros(2, D)).isfinite().all())
    with pytest.raises(InputError, match=r"decoding needs the activations too: decode\(codes, x\)"):
        sae.decode(same)


def test_groups_of_sparsify_keep_one_feature_each(tmp_path):
    folder = layouts.sparsify(tmp_path, random_sae())
    json_file(folder / "cfg.json", {"d_in": D, "k": K, "activation": "groupmax"})
    sae = sl.load_sae(folder)
    groups = sae.encode(X).view(len(X), K, M // K)
    assert int((groups > 0).sum(-1).max()) == 1
    relu = oracle(random_sae(), "relu").view(len(X), K, M // K)
    torch.testing.assert_close(groups.sum(-1).double(), relu.max(-1).values, atol=2e-5, rtol=1e-5)
    with pytest.raises(InputError, match="SAELens has no groupmax SAEs"):
        sae.save_pretrained(tmp_path / "saved")


def test_an_embedding_sae_of_gemma_scope_is_scaled_by_the_root_of_its_width(tmp_path):
    tensors = layouts.folded(random_sae())
    folder = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    sae = sl.load_sae(folder)
    assert sae.site == "blocks.0.hook_resid_pre"
    plain = sl.load_sae(layouts.gemma_scope(tmp_path / "plain", random_sae()))
    torch.testing.assert_close(sae.encode(X * D**0.5), plain.encode(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        sae.decode(plain.encode(X)), plain.decode(plain.encode(X)) * D**0.5, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "write", [layouts.gated_saelens, layouts.top_k_by_norm, layouts.scaled_saelens, layouts.sparsify]
)
def test_what_is_saved_in_saelens_layout_reads_back(write, dtype, tmp_path):
    norm = layouts.MEAN_NORM if write is layouts.scaled_saelens else None
    sae = sl.load_sae(write(tmp_path, random_sae()), mean_norm=norm)
    sae.save_pretrained(tmp_path / "saved", dtype)
    again = sl.load_sae(tmp_path / "saved")
    same = {"atol": 0, "rtol": 0} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.01}
    torch.testing.assert_close(again.encode(X), sae.encode(X), **same)
    assert (again.site, again.activation, again.k, again.subtracts_bias) == (
        sae.site,
        sae.activation,
        sae.k,
        sae.subtracts_bias,
    )
    if dtype == torch.float32:
        assert again.identity.digest == sae.identity.digest


# --- refused ---------------------------------------------------------------------------------------------------------------


def refused(folder, **options):
    with pytest.raises((InputError, FileFormatError)) as caught:
        sl.load_sae(folder, **options)
    message = str(caught.value)
    assert message.count(". ") <= 2
    return message


def test_saes_that_cannot_be_read_exactly_are_refused_in_a_sentence(tmp_path):
    t, count = layouts.without_threshold(random_sae()), iter(range(100))

    def told(kind="standard", tensors=t, **config):
        return refused(saelens(tmp_path / str(next(count)), tensors, kind, **config))

    assert "it is a 'transcoder'" in told("transcoder")
    assert "a 'temporal'" in told("temporal")
    assert "whose statistics are not in its files" in told(normalize_activations="covariance_whitening")
    assert "Give mean_norm" in told(normalize_activations="expected_average_only_in")
    assert "one attention head alone" in told(hook_head_index=2)
    assert "activation function is 'tanh-relu'" in told(activation_fn="tanh-relu")
    assert "scaling_factor per feature other than 1" in told(tensors={**t, "scaling_factor": torch.full((M,), 2.0)})
    assert "writes blocks.4.hook_mlp_out, which is a transcoder" in told(hook_name_out="blocks.4.hook_mlp_out")
    assert "do not say its k" in told("topk")
    unset = {**t, "topk_threshold": torch.tensor(0.0)}
    assert "its threshold was never set in training" in told("batchtopk", tensors=unset)
    assert "holds no threshold" in told("jumprelu").replace("threshold or log_threshold", "threshold")
    assert "they do not go together" in told(tensors={**t, "W_dec": t["W_enc"]})


@pytest.mark.usefixtures("without_type_checks")
def test_what_says_nothing_of_an_sae_or_is_no_activation_of_its_is_refused(tmp_path):
    folder = saelens(tmp_path / "standard", layouts.without_threshold(random_sae()), "standard")
    assert "k is of top-k SAEs, and this one is a relu" in refused(folder, k=3)
    assert "mean_norm says nothing of it" in refused(folder, mean_norm=5.0)
    assert "leads out of it" in refused(tmp_path, inside="../standard")
    sae = sl.load_sae(folder)
    for given in ([1.0] * D, torch.zeros(()), torch.zeros(2, D + 1)):
        with pytest.raises(ValueError, match=r"Activations are a tensor|last dimension is"):
            sae.encode(given)
    for given in ([1.0] * M, torch.zeros(2, M + 1)):
        with pytest.raises(ModelMismatchError, match=f"This SAE has {M} features here"):
            sae.decode(given)
    for given in (torch.zeros(0, D), torch.full((2, D), torch.nan)):
        with pytest.raises(InputError, match="one activation at least, all of finite numbers"):
            sae.measure(given)


def test_others_that_cannot_be_read_exactly_are_refused_too(tmp_path):
    t = random_sae()
    sparsify = layouts.sparsify(tmp_path, t)
    json_file(sparsify / "cfg.json", {"k": K, "transcode": True})
    assert "it is a transcoder" in refused(sparsify)
    dead = layouts.batch_top_k_dictionary(tmp_path, t)
    tensors = torch.load(dead / "ae.pt", weights_only=True)
    torch.save({**tensors, "threshold": torch.tensor(-1.0)}, dead / "ae.pt")
    assert "its threshold was never set" in refused(dead)
    (dead / "config.json").unlink()
    assert "no config.json says which this is" in refused(dead)
    json_file(dead / "config.json", {"trainer": {"dict_class": "CrossCoder"}})
    assert "its class is 'CrossCoder'" in refused(dead)
    llama = layouts.llama_scope(tmp_path, t)
    config = json.loads((llama / "hyperparams.json").read_text())
    for change, why in (
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "it is a transcoder"),
        ({"act_fn": "topk"}, "its activation function is 'topk'"),
        ({"norm_activation": "token-wise"}, "normalized 'token-wise'"),
        ({"use_glu_encoder": True}, "a gated linear unit"),
        ({"dataset_average_activation_norm": {}}, "Give mean_norm"),
        ({"jump_relu_threshold": None}, "has no jump_relu_threshold"),
    ):
        json_file(llama / "hyperparams.json", config | change)
        assert why in refused(llama)
    json_file(llama / "hyperparams.json", config)
    long = layouts.linear({**t, "W_dec": 2 * t["W_dec"]}, **{"decoder.bias": t["b_dec"]})
    save_file(layouts.apart(long), llama / "checkpoints" / "final.safetensors")
    assert "not of unit length" in refused(llama)
    gemma = layouts.gemma_scope_2(tmp_path, t)
    skip = {name.replace("W_", "w_"): tensor for name, tensor in t.items()}
    save_file(layouts.apart({**skip, "affine_skip_connection": torch.eye(D)}), gemma / "params.safetensors")
    assert "it is a transcoder" in refused(gemma)
    qwen = layouts.qwen_scope(tmp_path, t)
    assert "Give k" in refused(qwen.rename(tmp_path / "layer3.sae.pt"))
    assert sl.load_sae(tmp_path / "layer3.sae.pt", k=K).k == K


class Runs:
    def __reduce__(self):
        return print, ("code ran",)


def test_no_code_of_a_file_runs(tmp_path, capsys):
    folder = tmp_path / "layer_3"
    folder.mkdir()
    np.savez(folder / "params.npz", W_enc=np.array([Runs()], dtype=object))
    assert "more than arrays of numbers" in refused(folder)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps({"encoder.weight": Runs()}))
    assert "could run code" in refused(tmp_path / "ae.pt")
    torch.save({"encoder.weight": Runs()}, tmp_path / "sae-l3.pt")
    assert "could run code" in refused(tmp_path / "sae-l3.pt")
    assert capsys.readouterr().out == ""


def test_what_is_not_there_or_damaged_is_said(tmp_path):
    assert "the Hugging Face hub cannot be asked for it" in refused("nobody/no-such-sae", inside="layer_3")
    assert "There is no folder a/b/c. Give the folder of an SAE" in refused("a/b/c", inside="d")
    (tmp_path / "empty").mkdir()
    assert "one of these files is expected: sae_weights.safetensors, params.npz" in refused(tmp_path / "empty")
    folder = saelens(tmp_path / "damaged", layouts.without_threshold(random_sae()))
    whole = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(whole[:100])
    assert "truncated" in refused(folder)
    (folder / "cfg.json").write_text("[1]")
    assert "holds a list" in refused(folder)
    (folder / "cfg.json").unlink()
    assert "has no cfg.json" in refused(folder)
    for name in ("one.pt", "two.pt"):
        torch.save({"weights": torch.ones(2)}, tmp_path / "empty" / name)
    assert "holds 2 files of weights (one.pt, two.pt, ...): name one" in refused(tmp_path / "empty")
    assert "not one of the layouts that are read: it holds weights" in refused(tmp_path / "empty" / "one.pt")
    bad = random_sae()
    bad["W_enc"][0, 0] = torch.nan
    assert "its encoder holds others" in refused(saelens(tmp_path / "nan", bad, "jumprelu"))


def test_a_repository_in_the_hubs_cache_is_read_offline(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / ("0" * 40)
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    folder = snapshot / "layer_3" / "width_16k"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in layouts.folded(random_sae()).items()})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    sae = sl.load_sae("google/gemma-scope-2b-pt-res", "layer_3/width_16k")
    assert (sae.site, sae.identity.name, sae.identity.inside, sae.identity.model) == (
        "blocks.3.hook_resid_post",
        "google/gemma-scope-2b-pt-res",
        "layer_3/width_16k",
        "google/gemma-2-2b",
    )
    assert torch.equal(oracle(random_sae(), "jumprelu") > 0, sae.encode(X) > 0)


def test_a_slice_keeps_codes_and_identity(tmp_path):
    sae = sl.load_sae(layouts.jumprelu_saelens(tmp_path, random_sae()))
    kept = sae.at_features(torch.tensor([1, 5]))
    torch.testing.assert_close(kept.encode(X), sae.encode(X)[:, [1, 5]])
    assert kept.identity == sae.identity
    assert repr(kept).startswith(f"SAE(2 of {sae.identity}, jumprelu, width {D}")
    with pytest.raises(InputError, match="compete"):
        sl.load_sae(layouts.sparsify(tmp_path, random_sae())).at_features(torch.tensor([1]))
