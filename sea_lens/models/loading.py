"""Loading a model by the name that a user has for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.bridge import Model

NAMED: dict[str, Callable[..., Model]] = {}
"""Models that the package knows by a word, such as its embedded ones; filled by whoever ships them."""


def register_model(name: str) -> Callable[[Callable[..., Model]], Callable[..., Model]]:
    """Registers a loader `load(device=...)` under a word that `load_model` takes.

    Args:
        name: The word.

    Raises:
        InputError: If the word is taken.
    """

    def register(load: Callable[..., Model]) -> Callable[..., Model]:
        if NAMED.setdefault(name, load) is not load:
            raise InputError(f"There is a model named {name!r} already. Choose another name.")
        return load

    return register


def load_model(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    **options: Any,
) -> Model:
    """Boots a TransformerBridge.

    Example:
        >>> model = load_model("organism")
        >>> model.cfg.n_layers
        4

    Args:
        name: A name on the Hugging Face hub, a local folder, or an embedded model: `"organism"`, `"bias-organism"`.
        device: Where it runs; `"auto"` spreads it over the devices there are.
        dtype: Of its weights, such as `"bfloat16"`. Embedded models are float32.
        revision: A branch, tag or commit on the hub.
        options: Passed on to `TransformerBridge.boot_transformers`.

    Raises:
        InputError: If there is no such model, or no such dtype.
        ModelMismatchError: If TransformerLens does not know its architecture.
    """
    if name in NAMED:
        return NAMED[name](device="cpu" if device == "auto" else device)
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype):
        raise InputError(f"dtype is float32, bfloat16 or float16, and {dtype!r} was given.")
    # Imported late: transformer_lens takes seconds to import, which `import sea_lens` need not cost.
    from transformer_lens.model_bridge import TransformerBridge

    where = {"device_map": "auto"} if device == "auto" else {"device": device}
    try:
        bridge: Model = TransformerBridge.boot_transformers(name, dtype=kind, revision=revision, **where, **options)
    except OSError as error:
        raise InputError(f"No model could be loaded from {name!r}, as a folder or from the hub: {error}") from error
    except ValueError as error:
        if "Unrecognized model" in str(error):
            raise InputError(f"{name!r} is not a model's folder: its config.json names no model type.") from error
        if "architecture" not in str(error):
            raise
        raise ModelMismatchError(f"TransformerLens cannot wrap {name!r}: {str(error)[:200]}") from error
    return bridge
