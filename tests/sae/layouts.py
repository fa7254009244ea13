"""One SAE written in each published layout, by hand: what the tests of the readers compare."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from safetensors.torch import save_file

D, M, K = 8, 12, 4
MEAN_NORM = 5.0


def random_sae(seed=0, subtracts=False):
    """Tensors of an SAE with float32 numbers that are exact in bfloat16, and unit decoder rows where asked for."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(M, D, generator=generator), dim=1)
    return {
        "W_enc": torch.randn(D, M, generator=generator),
        "b_enc": torch.randn(M, generator=generator) / 4,
        "W_dec": rows,
        "b_dec": torch.randn(D, generator=generator),
        "threshold": torch.rand(M, generator=generator),
    }


def json_file(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def apart(tensors):
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def saelens(folder, tensors, kind="standard", **config):
    json_file(
        folder / "cfg.json",
        {
            "architecture": kind,
            "d_in": D,
            "d_sae": M,
            "dtype": "float32",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "tiny", "sae_lens_version": "6.50.0"},
            **config,
        },
    )
    save_file(apart(tensors), folder / "sae_weights.safetensors")
    return folder


def folded(t):
    """The same SAE without subtraction: its bias goes into the encoder's."""
    return {**t, "b_enc": (t["b_enc"].double() - t["b_dec"].double() @ t["W_enc"].double()).float()}


def linear(t, **more):
    """As `nn.Linear` keeps weights: both transposed."""
    return {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T, **more}


# --- JumpReLU with a bias that is subtracted, by every layout that has such codes -------------------------------------


def jumprelu_saelens(root, t):
    return saelens(root / "saelens", t, "jumprelu")


def jumprelu_saelens_old(root, t):
    """Before 6.0: flat keys under their old names."""
    folder = saelens(root / "old", folded(t), "jumprelu")
    json_file(
        folder / "cfg.json",
        {
            "architecture": "jumprelu",
            "hook_point": "blocks.3.hook_resid_post",
            "model_name": "tiny",
            "activation_fn_str": "relu",
            "apply_b_dec_to_input": False,
            "normalize_activations": None,
            "d_in": D,
            "d_sae": M,
        },
    )
    return folder


def gated_saelens(root, t):
    """A gate that opens where the JumpReLU's pre-activation is above its threshold, and codes of the same size."""
    r_mag = torch.linspace(-0.5, 0.5, M)
    sizes = r_mag.exp()
    gated = {
        "W_enc": t["W_enc"] / sizes,
        "W_dec": t["W_dec"],
        "b_dec": t["b_dec"],
        "r_mag": r_mag,
        "b_mag": t["b_enc"],
        "b_gate": (t["b_enc"] - t["threshold"]) / sizes,
    }
    return saelens(root / "gated", gated, "gated")


def gated_dictionary(root, t):
    r_mag = torch.linspace(-0.5, 0.5, M)
    sizes = r_mag.exp()
    tensors = {
        "encoder.weight": (t["W_enc"] / sizes).T,
        "decoder.weight": t["W_dec"].T,
        "decoder_bias": t["b_dec"],
        "r_mag": r_mag,
        "mag_bias": t["b_enc"],
        "gate_bias": (t["b_enc"] - t["threshold"]) / sizes,
    }
    return dictionary(root / "gated_dictionary", tensors, "GatedAutoEncoder")


def gemma_scope(root, t):
    folder = root / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in folded(t).items()})
    return folder


def gemma_scope_lower_case(root, t):
    folder = root / "google" / "gemma-scope-2b-pt-res" / "layer_3"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name.replace("W_", "w_"): tensor.numpy() for name, tensor in folded(t).items()})
    return folder


def gemma_scope_2(root, t):
    folder = root / "resid_post" / "layer_3_width_16k_l0_small"
    json_file(
        folder / "config.json",
        {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.3.output", "model_name": "gemma-3"},
    )
    save_file(
        apart({name.replace("W_", "w_"): tensor for name, tensor in folded(t).items()}), folder / "params.safetensors"
    )
    return folder


def llama_scope(root, t):
    """Its one threshold, in units of raw activations; its encoder takes activations of mean norm sqrt(d)."""
    factor, one = math.sqrt(D) / MEAN_NORM, {**t, "threshold": torch.full((M,), 0.5)}
    raw = folded(one)
    folder = root / "Llama3_1-8B-Base-L3R-8x"
    json_file(
        folder / "hyperparams.json",
        {
            "d_model": D,
            "d_sae": M,
            "hook_point_in": "blocks.3.hook_resid_post",
            "hook_point_out": "blocks.3.hook_resid_post",
            "dataset_average_activation_norm": {"in": MEAN_NORM, "out": MEAN_NORM},
            "norm_activation": "dataset-wise",
            "act_fn": "jumprelu",
            "jump_relu_threshold": 0.5 / factor,
        },
    )
    (folder / "checkpoints").mkdir()
    scaled = {**raw, "W_enc": raw["W_enc"] / factor}
    tensors = linear(scaled, **{"decoder.bias": raw["b_dec"] * factor})
    save_file(apart(tensors), folder / "checkpoints" / "final.safetensors")
    return folder


def dictionary(folder, tensors, kind, **trainer):
    json_file(
        folder / "config.json",
        {
            "trainer": {
                "dict_class": kind,
                "layer": 3,
                "lm_name": "tiny",
                "submodule_name": "resid_post_layer_3",
                **trainer,
            }
        },
    )
    torch.save(apart(tensors), folder / "ae.pt")
    return folder


def jumprelu_dictionary(root, t):
    return dictionary(root / "jumprelu_dictionary", folded(t), "JumpReluAutoEncoder")


JUMPRELU = [
    jumprelu_saelens,
    jumprelu_saelens_old,
    gated_saelens,
    gated_dictionary,
    gemma_scope,
    gemma_scope_lower_case,
    gemma_scope_2,
    jumprelu_dictionary,
]

# --- one threshold for all features ------------------------------------------------------------------------------------


def one_threshold(t):
    return {**t, "threshold": torch.full((M,), 0.5)}


def batch_top_k_saelens(root, t):
    """A checkpoint of a training, with its running threshold."""
    tensors = {name: tensor for name, tensor in t.items() if name != "threshold"}
    tensors["topk_threshold"] = torch.tensor(0.5).double()
    return saelens(root / "batchtopk", tensors, "batchtopk", k=4.0)


def batch_top_k_dictionary(root, t):
    tensors = linear(t, b_dec=t["b_dec"], k=torch.tensor(K), threshold=torch.tensor(0.5))
    return dictionary(root / "batch", tensors, "BatchTopKSAE", k=K)


def matryoshka_dictionary(root, t):
    tensors = {**t, "k": torch.tensor(K), "threshold": torch.tensor(0.5), "group_sizes": torch.tensor([4, 8])}
    return dictionary(root / "matryoshka", tensors, "MatryoshkaBatchTopKSAE", k=K)


def matryoshka_saelens(root, t):
    return saelens(root / "matryoshka_saelens", one_threshold(t), "jumprelu")


ONE_THRESHOLD = [llama_scope, batch_top_k_saelens, batch_top_k_dictionary, matryoshka_dictionary, matryoshka_saelens]

# --- ReLU ----------------------------------------------------------------------------------------------------------------


def without_threshold(t):
    return {name: tensor for name, tensor in t.items() if name != "threshold"}


def standard_saelens(root, t):
    return saelens(root / "standard", without_threshold(t))


def standard_saelens_oldest(root, t):
    """No architecture, no word on the bias: what the first versions wrote."""
    folder = saelens(root / "oldest", {**without_threshold(t), "scaling_factor": torch.ones(M)})
    json_file(
        folder / "cfg.json", {"hook_point": "blocks.3.hook_resid_post", "d_in": D, "normalize_activations": False}
    )
    return folder


def scaled_saelens(root, t):
    """Trained on activations of mean norm sqrt(d), as a flag of old files says."""
    factor = math.sqrt(D) / MEAN_NORM
    tensors = {
        **without_threshold(t),
        "W_enc": t["W_enc"] / factor,
        "W_dec": t["W_dec"] * factor,
        "b_dec": t["b_dec"] * factor,
    }
    folder = saelens(root / "scaled", tensors)
    json_file(folder / "cfg.json", {"hook_point": "blocks.3.hook_resid_post", "d_in": D, "normalize_activations": True})
    return folder


def auto_encoder(root, t):
    return dictionary(root / "plain", linear(t, bias=t["b_dec"]), "AutoEncoder")


def auto_encoder_new(root, t):
    raw = folded(t)
    return dictionary(root / "new", linear(raw, **{"decoder.bias": raw["b_dec"]}), "AutoEncoderNew")


def goodfire(root, t):
    raw = folded(t)
    tensors = {
        name.replace(".", "_linear."): tensor for name, tensor in linear(raw, **{"decoder.bias": raw["b_dec"]}).items()
    }
    torch.save(apart(tensors), root / "Llama-3.3-70B-Instruct-SAE-l3.pt")
    return root / "Llama-3.3-70B-Instruct-SAE-l3.pt"


def deepseek(root, t):
    raw = folded(t)
    torch.save(apart(linear(raw, **{"decoder.bias": raw["b_dec"]})), root / "DeepSeek-R1-Distill-Llama-8B-SAE-l3.pt")
    return root / "DeepSeek-R1-Distill-Llama-8B-SAE-l3.pt"


RELU = [standard_saelens, standard_saelens_oldest, scaled_saelens, auto_encoder, auto_encoder_new, goodfire, deepseek]

# --- top-k ----------------------------------------------------------------------------------------------------------------


def top_k_saelens(root, t):
    return saelens(root / "topk", without_threshold(t), "topk", k=K)


def top_k_saelens_old(root, t):
    folder = saelens(root / "topk_old", without_threshold(t))
    json_file(
        folder / "cfg.json",
        {"hook_name": "blocks.3.hook_resid_post", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
    )
    return folder


def top_k_by_norm(root, t):
    """The same codes from a decoder of other lengths, which the choice takes into account."""
    lengths = torch.linspace(0.5, 2.0, M)
    tensors = {
        **without_threshold(t),
        "W_dec": t["W_dec"] * lengths[:, None],
        "W_enc": t["W_enc"] / lengths,
        "b_enc": t["b_enc"] / lengths,
    }
    return saelens(root / "by_norm", tensors, "topk", k=K, rescale_acts_by_decoder_norm=True)


def sparsify(root, t):
    folder = root / "sae-tiny" / "layers.3"
    json_file(
        folder / "cfg.json", {"d_in": D, "k": K, "expansion_factor": 2, "normalize_decoder": True, "activation": "topk"}
    )
    tensors = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    save_file(apart(tensors), folder / "sae.safetensors")
    return folder


def top_k_dictionary(root, t):
    tensors = linear(t, b_dec=t["b_dec"], k=torch.tensor(K), threshold=torch.tensor(-1.0))
    return dictionary(root / "topk_dictionary", tensors, "AutoEncoderTopK", k=K)


def qwen_scope(root, t):
    raw, folder = folded(t), root / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    folder.mkdir()
    tensors = {"W_enc": raw["W_enc"].T, "W_dec": raw["W_dec"].T, "b_enc": raw["b_enc"], "b_dec": raw["b_dec"]}
    torch.save(apart(tensors), folder / "layer3.sae.pt")
    return folder / "layer3.sae.pt"


TOP_K = [top_k_saelens, top_k_saelens_old, top_k_by_norm, sparsify, top_k_dictionary, qwen_scope]
