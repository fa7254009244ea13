"""What we use of a TransformerBridge: its protocol, its facts, a digest of its weights, its tokenizer; and of an editor."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor

from sea_lens.arguments import CHECKED_FIRST, check_fields, follows
from sea_lens.cache import digest
from sea_lens.data.prompts import Tokenizer as Tokenizer
from sea_lens.data.prompts import tokenizer_of as tokenizer_of
from sea_lens.errors import ModelMismatchError, SeaLensWarning
from sea_lens.models.no_model import advice, named

UNKNOWN_MODEL = "unknown model"
"""Stands in a description for the name of a model that only its sizes are known of."""
BLOCK = 2**16
"""Of 8-byte words that a checksum reads at once."""
FwdHook = tuple[str, Callable[..., Tensor | None]]
"""A hook name and the function TransformerLens calls there as `fn(tensor, hook=hook_point)`."""


@runtime_checkable
class ModelConfig(Protocol):
    """What we read of `model.cfg`."""

    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int
    device: torch.device | str | None
    default_prepend_bos: bool
    normalization_type: str | None
    model_name: str


@runtime_checkable
class Model(Protocol):
    """What we use of a `transformer_lens.model_bridge.TransformerBridge`."""

    @property
    def cfg(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def original_model(self) -> torch.nn.Module: ...

    @property
    def hook_dict(self) -> Mapping[str, object]: ...

    @property
    def blocks(self) -> Iterable[torch.nn.Module]: ...

    def parameters(self) -> Iterable[Tensor]: ...

    def modules(self) -> Iterable[torch.nn.Module]: ...

    def hooks(self, fwd_hooks: list[FwdHook]) -> AbstractContextManager[object]: ...

    def generate(self, input: Tensor, **options: object) -> Tensor: ...

    def __call__(self, input: Tensor, **options: object) -> Tensor: ...


def check_is_model(model: object) -> None:
    """Refuses what is no model that this package can run.

    Raises:
        ModelMismatchError: If it is no TransformerBridge (with how to get one), or one that has an encoder, reads text in
            both directions or writes none.

    Warns:
        SeaLensWarning: If the model is in training mode with dropout; once, until it has been seen in the other.
    """
    wrapped = getattr(model, "original_model", None)
    config = getattr(wrapped, "config", None)
    why = None
    if getattr(config, "is_encoder_decoder", False):
        why = "has an encoder and a decoder"
    elif wrapped is not None and (
        getattr(getattr(model, "cfg", None), "attention_dir", "causal") != "causal"
        or getattr(config, "is_causal", True) is False
        or getattr(config, "use_bidirectional_attention", False) in (True, "all")
        or "MaskedLM" in type(wrapped).__name__
    ):
        why = "reads text in both directions"
    elif wrapped is not None and not (
        getattr(getattr(model, "adapter", None), "supports_generation", True)
        and getattr(wrapped, "can_generate", lambda: True)()
    ):
        why = "writes no text"
    if why is not None:
        raise ModelMismatchError(
            f"{type(wrapped).__name__} {why}, and sea_lens works with models that write text from left to right. Give a "
            "decoder-only language model."
        )
    if wrapped is not None and _is_model(model):
        _warn_of_dropout(wrapped)
        return
    raise ModelMismatchError(f"A TransformerBridge is needed, and {named(model)} was given. {advice(model)}")


_MODELS: WeakSet[torch.nn.Module] = WeakSet()
"""Models that have every member of the protocol: asking them takes a millisecond."""


def _is_model(model: object) -> bool:
    if not isinstance(model, torch.nn.Module):
        return follows(model, Model)
    if model not in _MODELS and follows(model, Model):
        _MODELS.add(model)
    return model in _MODELS


_DROPPING_OUT: WeakSet[torch.nn.Module] = WeakSet()
"""Models whose training mode was warned about."""


def _warn_of_dropout(wrapped: torch.nn.Module) -> None:
    if not wrapped.training:
        _DROPPING_OUT.discard(wrapped)
        return
    facts = wrapped.config.to_dict()  # type: ignore[operator, union-attr]
    # `attention_dropout`, `resid_pdrop` and so on
    dropping = any(isinstance(rate, float) and rate > 0 for name, rate in facts.items() if "drop" in name)
    if dropping and wrapped not in _DROPPING_OUT:
        _DROPPING_OUT.add(wrapped)
        warnings.warn(
            "The model is in training mode, so dropout makes its results differ from run to run. Call model.eval() first.",
            SeaLensWarning,
            stacklevel=4,  # the caller of what checks
        )


CHECKED_FIRST["model"] = check_is_model


@runtime_checkable
class EditsModels(Protocol):
    """What this package needs of an editor.

    Its hooks carry it as their attribute `editor`, and as `fired` a mapping: by site, whether they have edited a token.
    """

    @property
    def fingerprint(self) -> str:
        """Tells editors apart by all that decides what they do."""

    @property
    def edits(self) -> Mapping[Any, object]:
        """Its edits by `Site`."""

    @property
    def where(self) -> object:
        """Which tokens it edits; None for all."""

    @property
    def layers(self) -> list[int]:
        """The layers it edits, ascending."""

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""

    @property
    def token_local(self) -> bool:
        """Whether what it does to a token depends on that token alone, so that rows may be batched and passes split."""

    def check(self, model: Model) -> None:
        """Raises where it does not fit a model."""

    def fwd_hooks(self, model: Model | None = None) -> list[FwdHook]:
        """Its hooks; exact for every pass of a model that is given."""

    def attached(self, model: Model) -> AbstractContextManager[object]:
        """Edits everything that the model runs in a `with` block."""


@dataclass(frozen=True)
class ModelInfo:
    """The facts of a model that activations and editors must agree on.

    Attributes:
        name: The model's name; the folder's name for a local folder.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        weights: `"raw"`, or `"layernorm folded"` after `enable_compatibility_mode()` on a LayerNorm model, where
            `resid_post` holds other values. (RMSNorm models keep theirs and stay `"raw"`.)
        n_heads: Attention heads of a block, where known.
        beginning_token: Whether plain prompts got the beginning token before them, where known. No part of being equal.
    """

    name: str
    n_layers: int
    d_model: int
    weights: str
    n_heads: int | None = None
    beginning_token: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls, model: Model) -> ModelInfo:
        """Reads them off a model."""
        cfg = model.cfg
        folded = bool(getattr(model, "_weights_processed", False)) and (cfg.normalization_type or "").startswith("LN")
        weights = "layernorm folded" if folded else "raw"
        begins = model.tokenizer is not None and model.tokenizer.bos_token_id is not None and cfg.default_prepend_bos
        heads = getattr(cfg, "n_heads", None)
        return cls(plain_name(cfg.model_name), cfg.n_layers, cfg.d_model, weights, heads, bool(begins))


def plain_name(name: str) -> str:
    """The last part of a path; a hub name as it is. Decided by the name alone, so the working directory does not matter."""
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def weights_digest(model: Model) -> str:
    """16 hexadecimal digits that tell apart any two models that may answer differently.

    They are over every value of every parameter and buffer, the model's configuration, whether texts get a beginning token,
    and the tokenizer; not over where any of them lies. Values are summed up on their own device, in about 0.2 s per gigabyte
    on a CPU; ones that accelerate has offloaded are read through it.

    Args:
        model: A TransformerBridge.

    Raises:
        ModelMismatchError: If weights are nowhere to be read (on the `meta` device).

    Example:
        >>> weights_digest(model) == weights_digest(model)
        True
    """
    weights: list[tuple[str, str]] = []
    seen: dict[tuple[object, ...], str] = {}
    for path, module in model.original_model.named_modules():
        own = {**dict(module.named_parameters(path, False)), **dict(module.named_buffers(path, False))}
        for name, tensor in own.items():
            # What a dynamic RoPE last computed, which comes from the configuration and the last text.
            if name.endswith("inv_freq") and re.search("dynamic|longrope", str(getattr(module, "rope_type", ""))):
                continue
            if tensor.is_meta:
                waiting = _offloaded(getattr(module, "_hf_hook", None), name.rpartition(".")[2], tensor)
                weights.append((name, _checksum(name, waiting)))
                continue
            memory = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
            if memory not in seen or not tensor.numel():  # tied ones are read once
                seen[memory] = _checksum(name, tensor)
            weights.append((name, seen[memory]))
    configs = [_facts(getattr(model.original_model, name, None)) for name in ("config", "generation_config")]
    return digest(weights, configs, bool(model.cfg.default_prepend_bos), _tokenizer_facts(model.tokenizer))


def _offloaded(hook: object, name: str, default: Tensor) -> Tensor:
    """A weight from where accelerate keeps it, in memory or on disk."""
    for part in getattr(hook, "hooks", ()):
        default = _offloaded(part, name, default)
    try:
        found: Tensor = hook.weights_map[name]  # type: ignore[attr-defined]
    except (AttributeError, TypeError, KeyError):
        return default
    return default if found.is_meta else found


def _checksum(name: str, tensor: Tensor) -> str:
    """A digest of shape, dtype and all values: blocks of 8-byte words are folded into one by steps that lose nothing."""
    if tensor.is_meta:
        raise ModelMismatchError(
            f"The weights {name} are on the meta device, so they cannot be read. Load the model with its weights, or offload "
            "them with accelerate, which can bring them back."
        )
    if hasattr(tensor, "__tensor_flatten__"):  # quantized: its parts are tensors
        names, facts = tensor.__tensor_flatten__()
        return digest(str(facts), [_checksum(f"{name}.{part}", getattr(tensor, part)) for part in names])
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(data) // 8 * 8
    words = data[:whole]
    words = (words.clone() if words.storage_offset() % 8 else words).view(torch.int64)
    folded = torch.zeros_like(words[:BLOCK])
    shifted = torch.empty_like(folded)
    for block in torch.split(words, BLOCK) if whole else ():
        part, high = folded[: len(block)], shifted[: len(block)]
        # Each step can be undone if the block is known, and the other way round: no one change can be lost.
        part.bitwise_xor_(block).mul_(6364136223846793005)
        torch.bitwise_right_shift(part, 32, out=high)
        part.bitwise_xor_(high.bitwise_and_(0xFFFFFFFF))
    return digest(tuple(tensor.shape), tensor.dtype, folded, data[whole:])


def _facts(config: object) -> dict[str, str]:
    found = dict(config.to_dict()) if hasattr(config, "to_dict") else {}
    changes_no_answer = {"_name_or_path", "transformers_version", "_from_model_config", "use_cache"}
    return {key: str(found[key]) for key in sorted(found.keys() - changes_no_answer)}


def _tokenizer_facts(tokenizer: Tokenizer | None) -> list[object]:
    if tokenizer is None:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())  # type: ignore[attr-defined]
    # Before the tokens stand truncation and padding, as the last call left them.
    contents = text[max(0, text.find('"added_tokens"')) :] if backend is not None else text
    return [
        type(tokenizer).__name__,
        sorted(tokenizer.all_special_ids),
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        contents,
    ]


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on the devices that have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
