"""Gemma Scope 1 and 2, Llama Scope and Qwen Scope."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from sea_lens.errors import FileFormatError, InputError
from sea_lens.sae.parts import Asked, Config, Parts, factor_of, need, only_ones, read_config, refuse, site_named
from sea_lens.sae.tensors import read_tensors

GEMMA_1, GEMMA_2, LLAMA, LLAMA_CONFIG = "params.npz", "params.safetensors", "final.safetensors", "hyperparams.json"
GEMMA_1_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
GEMMA_2_SITES = {
    "resid_post": "hook_resid_post",
    "attn_out": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""By a folder's name or a hook of Hugging Face's model."""
NEAR_ONE = 0.02
"""How far a decoder's rows may be from unit length to be taken for it: bfloat16 rounds them by less."""


def read_gemma_scope(path: Path, asked: Asked) -> Parts:
    """`params.npz`: a JumpReLU SAE that takes activations as they are. Layer and site come from the folders' names.

    Raises:
        FileFormatError: If the file is damaged.
        InputError: If it is a transcoder.
    """
    named, tensors = path.as_posix(), read_tensors(path)
    if re.search(r"gemma-scope[^/]*transcoder", named):
        refuse("it is a transcoder")
    only_ones(tensors)
    encoder, decoder = need(tensors, "W_enc", "w_enc"), need(tensors, "W_dec", "w_dec")
    layer = re.search(r"layer_(\d+)", named)
    kind = re.search(r"gemma-scope[^/]*-(res|mlp|att)(?![a-z])", named) or re.search(r"/(res|mlp|att)(?=/)", named)
    site = f"blocks.{layer[1]}.{GEMMA_1_SITES[kind[1]]}" if layer and kind else None
    factor = 1.0
    if "embedding" in path.parts:  # trained on rows of the embedding, which the model multiplies by sqrt(d_model)
        factor, site = 1 / math.sqrt(encoder.shape[0]), "blocks.0.hook_resid_pre"
    model = re.search(r"gemma-scope-(\d+b)-(pt|it)", named)
    return Parts(
        encoder,
        need(tensors, "b_enc"),
        decoder,
        need(tensors, "b_dec"),
        "jumprelu",
        need(tensors, "threshold"),
        factor=factor,
        site=site_named(site),
        model=f"google/gemma-2-{model[1]}{'-it' if model[2] == 'it' else ''}" if model else None,
    )


def read_gemma_scope_2(path: Path, asked: Asked) -> Parts:
    """`params.safetensors`, with or without `config.json`.

    Raises:
        FileFormatError: If a file is damaged.
        InputError: If it is a transcoder, or its architecture is another.
    """
    named, tensors, config = path.as_posix(), read_tensors(path), read_config(path.parent / "config.json")
    if config.get("architecture", "jump_relu") != "jump_relu":
        refuse(f"its architecture is {config['architecture']!r}, and Gemma Scope 2 is of jump_relu")
    reads, writes = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if (
        "affine_skip_connection" in tensors
        or any("transcoder" in part or part.startswith("clt") for part in path.parts[-4:-1])
        or writes not in (None, reads)
        or need(tensors, "w_dec", "W_dec").ndim != 2
    ):
        refuse("it is a transcoder, which writes elsewhere than it reads")
    return Parts(
        need(tensors, "w_enc", "W_enc"),
        need(tensors, "b_enc"),
        need(tensors, "w_dec", "W_dec"),
        need(tensors, "b_dec"),
        "jumprelu",
        need(tensors, "threshold"),
        site=site_named(_gemma_2_site(str(reads or ""), named)),
        model=config.get("model_name"),
    )


def _gemma_2_site(reads: str, named: str) -> str | None:
    layer = re.search(r"layers\.(\d+)\.", reads) or re.search(r"layer_(\d+)", named)
    if layer is None:
        return None
    if re.fullmatch(r"model\.layers\.\d+\.output", reads):
        return f"blocks.{layer[1]}.hook_resid_post"
    found = [site for part, site in GEMMA_2_SITES.items() if reads.endswith(part) or (not reads and part in named)]
    return f"blocks.{layer[1]}.{found[0]}" if found else None


def read_llama_scope(path: Path, asked: Asked) -> Parts:
    """`hyperparams.json` above `checkpoints/final.safetensors`.

    One threshold for all features is multiplied by `sqrt(width) / mean norm`, as SAELens does: it is in the units of
    activations before they are scaled. (The authors' code of that time was not to be had. It chooses features by their
    decoder's length too, so rows that are not of unit length are refused.)

    Raises:
        FileFormatError: If a file is missing or damaged.
        InputError: If it is no SAE that can be computed exactly.
    """
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    config, tensors = read_config(folder / LLAMA_CONFIG), read_tensors(path)
    if not config:
        raise FileFormatError(f"{folder} has no {LLAMA_CONFIG}, which holds the threshold and the scale of this SAE.")
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        refuse("it is a transcoder, which writes elsewhere than it reads")
    if str(config.get("act_fn", "jumprelu")).lower() != "jumprelu":
        refuse(f"its activation function is {config['act_fn']!r}")
    if config.get("use_glu_encoder"):
        refuse("its encoder is a gated linear unit")
    encoder, decoder = need(tensors, "encoder.weight").T, need(tensors, "decoder.weight").T
    factor, factor_out = _llama_factors(config, encoder.shape[0], asked)
    norms = torch.linalg.vector_norm(decoder.double(), dim=1)
    if config.get("sparsity_include_decoder_norm", True) and bool(((norms - 1).abs() > NEAR_ONE).any()):
        refuse("features are chosen by their decoder's length too, and these are not of unit length")
    threshold = config.get("jump_relu_threshold")
    if not isinstance(threshold, int | float):
        raise FileFormatError(f"{folder / LLAMA_CONFIG} has no jump_relu_threshold.")
    return Parts(
        encoder,
        tensors.get("encoder.bias"),
        decoder,
        tensors.get("decoder.bias"),
        "jumprelu",
        threshold * factor,
        subtracts_bias=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        factor=factor,
        factor_out=factor_out,
        site=site_named(config.get("hook_point_in")),
        model=config.get("model_name"),
    )


def _llama_factors(config: Config, width: int, asked: Asked) -> tuple[float, float]:
    kind = config.get("norm_activation", "dataset-wise")
    if kind == "inference":  # folded already
        return 1.0, 1.0
    if kind != "dataset-wise":
        refuse(f"its activations are normalized {kind!r}, and dataset-wise is read")
    norms = config.get("dataset_average_activation_norm") or {}
    if not isinstance(norms, dict):
        raise FileFormatError("dataset_average_activation_norm is not a mapping of in and out.")
    known = norms.get("in")
    return factor_of(width, asked, known), factor_of(width, asked, norms.get("out", known))


def read_qwen_scope(path: Path, asked: Asked) -> Parts:
    """`layerN.sae.pt`: a top-k SAE with both matrices transposed. Its k is in the repository's name, as `L0_50`.

    Raises:
        FileFormatError: If the file is damaged.
        InputError: If its k is not known.
    """
    named, tensors = path.as_posix(), read_tensors(path)
    told, layer = re.findall(r"L0_(\d+)", named), re.fullmatch(r"layer(\d+)\.sae\.pt", path.name)
    k = asked.k if asked.k is not None else int(told[-1]) if told else None
    if k is None:
        raise InputError(
            "A Qwen Scope SAE's k stands in its repository's name (L0_50), and this path has none. Give k."
        )
    model = re.search(r"SAE-Res-(.+?)-W\d+K", named)
    weights: tuple[Tensor, Tensor] = (need(tensors, "W_enc").T, need(tensors, "W_dec").T)
    return Parts(
        weights[0],
        need(tensors, "b_enc"),
        weights[1],
        need(tensors, "b_dec"),
        "topk",
        k=k,
        site=site_named(f"blocks.{layer[1]}.hook_resid_post" if layer else None),
        model=f"Qwen/{model[1]}" if model else None,
    )
