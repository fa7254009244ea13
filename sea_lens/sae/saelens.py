"""SAELens: `cfg.json` beside `sae_weights.safetensors`, of every version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from sea_lens.errors import FileFormatError, InputError
from sea_lens.sae.codes import Normalization
from sea_lens.sae.parts import (
    Asked,
    Config,
    Parts,
    Tensors,
    factor_of,
    need,
    only_ones,
    read_config,
    refuse,
    site_named,
)
from sea_lens.sae.tensors import read_tensors

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Keys of versions before 6.0, by what they are called now."""
OF_TRAINING = ("batchtopk", "matryoshka_batchtopk")
"""What SAELens keeps as `jumprelu` once it is trained, and under its own name in a checkpoint."""
KNOWN = ("standard", "gated", "jumprelu", "topk", *OF_TRAINING)


def read_saelens(path: Path, asked: Asked) -> Parts:
    """Reads a folder of SAELens.

    Raises:
        FileFormatError: If a file is missing or damaged.
        InputError: If it is no SAE that can be computed exactly.
    """
    config = read_config(path.parent / CONFIG)
    if not config:
        raise FileFormatError(f"{path.parent} has no {CONFIG}, which says what kind of SAE {path.name} is.")
    return parts_of(current(config), read_tensors(path), asked)


def current(config: Config) -> dict[str, Any]:
    """A configuration with the keys of SAELens 6.0, those of its metadata beside them."""
    found = {OLD_NAMES.get(key, key): value for key, value in config.items()}
    metadata = found.get("metadata")
    found = {**found, **(metadata if isinstance(metadata, dict) else {})}
    given = found.get("activation_fn_kwargs")
    if found.get("activation_fn") == "topk" and isinstance(given, dict) and given.get("k") is not None:
        found |= {"architecture": "topk", "k": given["k"]}
    normalization = found.get("normalize_activations")
    if isinstance(normalization, bool):
        normalization = "expected_average_only_in" if normalization else "none"
    return {
        **found,
        "architecture": found.get("architecture") or "standard",
        "normalize_activations": normalization or "none",
        "apply_b_dec_to_input": bool(found.get("apply_b_dec_to_input", True)),
    }


def parts_of(config: Config, tensors: Tensors, asked: Asked) -> Parts:
    """Of a configuration as `current` makes it.

    Raises:
        FileFormatError: If a tensor is missing.
        InputError: If it is no SAE that can be computed exactly.
    """
    kind, normalization = str(config["architecture"]), str(config["normalize_activations"])
    if kind not in KNOWN:
        refuse(f"it is a {kind!r}, and {', '.join(KNOWN)} are read")
    if config.get("activation_fn", "relu") not in ("relu", "topk") or (
        config.get("activation_fn") == "topk" and kind != "topk"
    ):
        refuse(f"its activation function is {config.get('activation_fn')!r}")
    if config.get("hook_head_index") is not None:
        refuse("it is of one attention head alone")
    if config.get("hook_name_out") not in (None, config.get("hook_name")):
        refuse(f"it reads {config.get('hook_name')} and writes {config['hook_name_out']}, which is a transcoder")
    only_ones(tensors)
    encoder, decoder = need(tensors, "W_enc"), need(tensors, "W_dec")
    factor = 1.0
    if normalization == "expected_average_only_in":
        factor, normalization = factor_of(encoder.shape[0], asked), "none"
    elif normalization not in ("none", "constant_norm_rescale", "layer_norm"):
        refuse(f"its normalization is {normalization!r}, whose statistics are not in its files")
    k, threshold, gate, log_magnitude, bias = None, None, None, None, tensors.get("b_enc")
    activation: Any = "relu"
    if kind == "gated":
        gate, log_magnitude, bias = need(tensors, "b_gate"), need(tensors, "r_mag"), need(tensors, "b_mag")
    else:
        bias = need(tensors, "b_enc")
    if kind == "topk":
        k, activation = config.get("k") if asked.k is None else asked.k, "topk"
        k = int(k) if isinstance(k, float) and k.is_integer() else k
        if not isinstance(k, int):
            raise InputError("This top-k SAE's files do not say its k. Give k.")
    if kind == "jumprelu":
        activation, threshold = "jumprelu", need(tensors, "threshold", "log_threshold")
        threshold = threshold.double().exp() if "threshold" not in tensors else threshold
    if kind in OF_TRAINING:
        activation, threshold = "jumprelu", need(tensors, "topk_threshold", "threshold")
        if not bool((torch.as_tensor(threshold) > 0).all()):
            refuse("its threshold was never set in training")
    return Parts(
        encoder,
        bias,
        decoder,
        need(tensors, "b_dec"),
        activation,
        threshold,
        k,
        gate,
        log_magnitude,
        config["apply_b_dec_to_input"],
        cast(Normalization, normalization),
        factor,
        by_decoder_norm=_by_norm(kind, config),
        site=site_named(config.get("hook_name")),
        model=config.get("model_name"),
    )


def _by_norm(kind: str, config: Config) -> bool:
    """Whether codes are chosen by decoder norm. Checkpoints of a training do so unless they say otherwise."""
    usual = kind in OF_TRAINING
    return bool(config.get("rescale_acts_by_decoder_norm", usual)) and kind in ("topk", *OF_TRAINING)
