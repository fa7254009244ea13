"""Attention in one fused kernel, for single tokens after a cache: no copy of keys and values for each head that shares them.

TransformerLens asks for eager attention, which shows its pattern to hooks. Where none looks, torch's fused attention gives
the same numbers but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sea_lens.models.bridge import Model


def can_fuse(model: Model) -> bool:
    """Whether nothing speaks against fused attention: a hook inside attention, or a precision that shows the rounding."""
    wrapped, config = model.original_model, _config(model)
    if getattr(config, "_attn_implementation", None) != "eager" or not getattr(wrapped, "_supports_sdpa", False):
        return False
    if getattr(config, "sub_configs", None) or any(p.dtype != torch.float32 for p in wrapped.parameters()):
        return False
    return not any("attn" in name and getattr(point, "fwd_hooks", ()) for name, point in model.hook_dict.items())


@contextmanager
def fused(model: Model) -> Iterator[None]:
    """Has a model's attention fused inside the block."""
    config = _config(model)
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = "eager"


def _config(model: Model) -> Any:
    config: Any = getattr(model.original_model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
