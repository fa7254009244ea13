"""What we use of a TransformerBridge: its protocol, its description, its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sea_lens.errors import ModelMismatchError

UNKNOWN_MODEL = "unknown model"
"""Stands in a description for the name of a model that only its sizes are known of."""
FwdHook = tuple[str, Callable[..., Tensor | None]]
"""A hook name and the function TransformerLens calls there as `fn(tensor, hook=hook_point)`."""


@runtime_checkable
class Tokenizer(Protocol):
    """What we use of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]: ...

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: Literal[False], add_generation_prompt: bool
    ) -> str: ...


@runtime_checkable
class ModelConfig(Protocol):
    """What we read of `model.cfg`."""

    n_layers: int
    d_model: int
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

    def hooks(self, fwd_hooks: list[FwdHook]) -> AbstractContextManager[object]: ...

    def generate(self, input: Tensor, **options: object) -> Tensor: ...

    def __call__(self, input: Tensor, **options: object) -> Tensor: ...


@dataclass(frozen=True)
class ModelDescription:
    """The facts of a model that activations and editors must agree on.

    Attributes:
        name: The model's name; the folder's name for a local folder.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        weights: `"raw"`, or `"layernorm folded"` after `enable_compatibility_mode()` on a LayerNorm model, where
            `resid_post` holds other values. (RMSNorm models keep theirs and stay `"raw"`.)
    """

    name: str
    n_layers: int
    d_model: int
    weights: str

    @classmethod
    def of(cls, model: Model) -> ModelDescription:
        """Reads the description off a model."""
        cfg = model.cfg
        name = Path(cfg.model_name).name if Path(cfg.model_name).is_dir() else cfg.model_name
        folded = bool(getattr(model, "_weights_processed", False)) and (cfg.normalization_type or "").startswith("LN")
        return cls(name, cfg.n_layers, cfg.d_model, "layernorm folded" if folded else "raw")


def weights_fingerprint(model: Model) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over shape, dtype and first values of every parameter.

    Tells models of one name apart: checkpoints of a training run, or one model in two precisions.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        first = parameter.detach().flatten()[:64].float().cpu()
        digest.update(f"{tuple(parameter.shape)} {parameter.dtype} {first.tolist()}".encode())
    return digest.hexdigest()[:16]


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ModelMismatchError: If the model was made without one.
    """
    if model.tokenizer is None:
        raise ModelMismatchError(
            "This model has no tokenizer, so text cannot be given to it. Boot it with "
            "TransformerBridge.boot_transformers(..., tokenizer=...), or use Activations.from_tensors."
        )
    return model.tokenizer
