"""sparsify, dictionary_learning, and the single files of Goodfire and others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sea_lens.errors import FileFormatError, InputError
from sea_lens.sae.parts import Asked, Config, Parts, Tensors, need, read_config, refuse, site_named
from sea_lens.sae.tensors import read_tensors

SPARSIFY, DICTIONARY = "sae.safetensors", "ae.pt"
SPARSIFY_SITES = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attention": "hook_attn_out",
    "self_attn": "hook_attn_out",
}
DICTIONARY_SITES = {
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "mlp": "hook_mlp_out",
    "attention": "hook_attn_out",
}
"""By how a submodule's name begins."""
CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)
"""Classes of dictionary_learning."""


def read_sparsify(path: Path, asked: Asked) -> Parts:
    """A folder per hookpoint, such as `layers.3`. Its bias is subtracted, and `W_dec` is `[n_features, width]`.

    (SAELens's own reader of these files transposes the latter and does not subtract.)

    Raises:
        FileFormatError: If a file is missing or damaged.
        InputError: If it is a transcoder.
    """
    config, tensors = read_config(path.parent / "cfg.json"), read_tensors(path)
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in tensors:
        refuse("it is a transcoder, or has a connection that skips it")
    if config.get("signed"):
        refuse("its codes have signs")
    activation: Any = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        refuse(f"its activation is {activation!r}")
    k = config.get("k") if asked.k is None else asked.k
    if not isinstance(k, int):
        raise InputError(f"{path.parent / 'cfg.json'} does not say this SAE's k. Give k.")
    layer = re.fullmatch(r"(?:.*\.)?layers[._](\d+)(?:\.(\w+))?", path.parent.name)
    part = SPARSIFY_SITES.get(layer[2] or "") if layer else None
    return Parts(
        need(tensors, "encoder.weight").T,
        need(tensors, "encoder.bias"),
        need(tensors, "W_dec"),
        need(tensors, "b_dec"),
        activation,
        k=k,
        subtracts_bias=True,
        site=site_named(f"blocks.{layer[1]}.{part}" if layer and part else None),
        model=read_config(path.parent.parent / "config.json").get("model"),
    )


def read_dictionary(path: Path, asked: Asked) -> Parts:
    """`ae.pt` beside `config.json`, of every class that dictionary_learning trains.

    Features keep the scale of the file: the library's own `from_pretrained` makes decoder columns unit vectors instead.

    Raises:
        FileFormatError: If a file is damaged, or lacks what its class has.
        InputError: If its class is not known, or it cannot be computed exactly.
    """
    config, tensors = read_config(path.parent / "config.json"), read_tensors(path)
    trainer = config.get("trainer", config)
    trainer = trainer if isinstance(trainer, dict) else {}
    kind = str(trainer.get("dict_class") or _class_of(tensors)).split(".")[-1].rstrip("'>")
    if kind not in CLASSES:
        refuse(f"its class is {kind!r}, and {', '.join(CLASSES)} are read")
    model = trainer.get("lm_name")
    return _of_class(kind, trainer, tensors, asked, site_named(_dictionary_site(trainer)), model)


def _class_of(tensors: Tensors) -> str:
    """The class that the names of tensors tell of.

    Raises:
        InputError: If two classes have these names.
    """
    names = set(tensors)
    if "group_sizes" in names:
        return "MatryoshkaBatchTopKSAE"
    if {"gate_bias", "mag_bias"} <= names:
        return "GatedAutoEncoder"
    if {"W_enc", "threshold"} <= names:
        return "JumpReluAutoEncoder"
    if "bias" in names:
        return "AutoEncoder"
    if "decoder.bias" in names:
        return "AutoEncoderNew"
    raise InputError(
        "AutoEncoderTopK and BatchTopKSAE have the same tensors and different codes, and no config.json says which this is. "
        "Put its config.json beside it."
    )


def _of_class(kind: str, trainer: Config, tensors: Tensors, asked: Asked, site: str | None, model: Any) -> Parts:
    about: dict[str, Any] = {"site": site, "model": model if isinstance(model, str) else None}
    if kind == "GatedAutoEncoder":
        return Parts(
            need(tensors, "encoder.weight").T,
            need(tensors, "mag_bias"),
            need(tensors, "decoder.weight").T,
            need(tensors, "decoder_bias"),
            gate_bias=need(tensors, "gate_bias"),
            log_magnitude=need(tensors, "r_mag"),
            subtracts_bias=True,
            **about,
        )
    if kind == "JumpReluAutoEncoder":
        return Parts(
            need(tensors, "W_enc"),
            need(tensors, "b_enc"),
            need(tensors, "W_dec"),
            need(tensors, "b_dec"),
            "jumprelu",
            need(tensors, "threshold"),
            subtracts_bias=bool(trainer.get("apply_b_dec_to_input", False)),
            **about,
        )
    if kind == "MatryoshkaBatchTopKSAE":
        return Parts(
            need(tensors, "W_enc"),
            need(tensors, "b_enc"),
            need(tensors, "W_dec"),
            need(tensors, "b_dec"),
            "jumprelu",
            _set(need(tensors, "threshold")),
            subtracts_bias=True,
            **about,
        )
    encoder, bias = need(tensors, "encoder.weight").T, need(tensors, "encoder.bias")
    decoder = need(tensors, "decoder.weight").T
    if kind == "AutoEncoderNew":
        return Parts(encoder, bias, decoder, need(tensors, "decoder.bias"), **about)
    if kind == "AutoEncoder":
        return Parts(encoder, bias, decoder, need(tensors, "bias"), subtracts_bias=True, **about)
    out = need(tensors, "b_dec")
    if kind == "BatchTopKSAE":
        threshold = _set(need(tensors, "threshold"))
        return Parts(encoder, bias, decoder, out, "jumprelu", threshold, subtracts_bias=True, **about)
    saved = tensors.get("k")
    k = asked.k if asked.k is not None else int(saved) if saved is not None else trainer.get("k")
    if not isinstance(k, int):
        raise InputError("This top-k SAE's files do not say its k. Give k.")
    return Parts(encoder, bias, decoder, out, "topk", k=k, subtracts_bias=True, **about)


def _set(threshold: torch.Tensor) -> torch.Tensor:
    """Refuses a threshold that training never set: it is -1 then."""
    if not bool((threshold >= 0).all()):
        refuse("its threshold was never set in training, and what it keeps depends on the batch without one")
    return threshold


def _dictionary_site(trainer: Config) -> str | None:
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name") or "resid_post")
    found = [part for begins, part in DICTIONARY_SITES.items() if name.startswith(begins)]
    return f"blocks.{layer}.{found[0]}" if isinstance(layer, int) and found else None


def read_single(path: Path, asked: Asked) -> Parts:
    """One file of a linear encoder and decoder with a ReLU between, as Goodfire and DeepSeek's SAEs are published.

    Raises:
        FileFormatError: If the file is damaged or holds another SAE.
    """
    tensors = read_tensors(path)
    prefix = "_linear" if "encoder_linear.weight" in tensors else ""
    if f"decoder{prefix}.bias" not in tensors or {"threshold", "k", "b_dec", "bias", "gate_bias"} & set(tensors):
        raise FileFormatError(
            f"{path} is not one of the layouts that are read: it holds {', '.join(sorted(tensors)) or 'no tensor'}. Name its "
            "layout, or put its configuration beside it."
        )
    layer = re.search(r"(?:^|[-_.])(?:l|layer_?)(\d+)(?=[-_.]|$)", path.stem, re.IGNORECASE)
    return Parts(
        need(tensors, f"encoder{prefix}.weight").T,
        need(tensors, f"encoder{prefix}.bias"),
        need(tensors, f"decoder{prefix}.weight").T,
        need(tensors, f"decoder{prefix}.bias"),
        site=site_named(f"blocks.{layer[1]}.hook_resid_post" if layer else None),
    )
