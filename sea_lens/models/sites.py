"""Sites: hook points by name and layer, and the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable

from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.bridge import (
    Model,
)


def act_name(site: str, layer: int) -> str:
    """TransformerLens's name for `site` at `layer`, whatever the model."""
    # Imported late: transformer_lens takes seconds to import, which `import sea_lens` need not cost.
    from transformer_lens.utilities import get_act_name

    return str(get_act_name(site, layer))


def hook_name(model: Model, site: str, layer: int) -> str:
    """TransformerLens's name for `site` at `layer`, after checking that the model has it.

    Raises:
        ModelMismatchError: If the model has no such layer, or its architecture no such site.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise ModelMismatchError(
            f"The model has layers 0 to {model.cfg.n_layers - 1}, and layer {layer} was asked for. "
            "Layers are counted from 0; negative ones are not taken."
        )
    prefix = f"blocks.{layer}.hook_"  # sites inside attention or the MLP are not of width d_model, and are not taken
    name = act_name(site, layer)
    if not name.startswith(prefix) or name not in model.hook_dict:
        sites = sorted(key.removeprefix(prefix) for key in model.hook_dict if key.startswith(prefix))
        raise ModelMismatchError(f"This architecture has no site {site!r} ({name}). It has: {', '.join(sites)}.")
    return name


def check_layers(layers: Iterable[int] | None, n_layers: int) -> list[int]:
    """The layers asked for, sorted and without repeats; all of them for `None`.

    Raises:
        ModelMismatchError: If one does not exist.
        InputError: If there are none.
    """
    chosen = sorted(set(range(n_layers) if layers is None else layers))
    unknown = [layer for layer in chosen if not 0 <= layer < n_layers]
    if unknown:
        raise ModelMismatchError(
            f"Layers {unknown} do not exist: this model has layers 0 to {n_layers - 1}, counted from 0."
        )
    if not chosen:
        raise InputError("No layers were given. Leave `layers` out for all of them.")
    return chosen


def named_layers(name: str, n_layers: int) -> list[int]:
    """Layers out of `all`, `first:N`, `last:N` or a list such as `3,5,10-20`.

    Raises:
        InputError: If it is none of these, or N is more than there are.
        ModelMismatchError: If a layer in the list does not exist.
    """
    side, _, count = name.partition(":")
    try:
        if name == "all":
            return list(range(n_layers))
        if side in ("first", "last"):
            if not 1 <= int(count) <= n_layers:
                raise InputError(f"{name} was asked for, and the model has {n_layers} layers. Ask for 1 to that many.")
            return list(range(n_layers))[: int(count)] if side == "first" else list(range(n_layers))[-int(count) :]
        spans = [tuple(map(int, part.split("-"))) for part in name.split(",")]
        if any(len(span) > 2 or span[0] > span[-1] for span in spans):
            raise ValueError("a span has two ends, the lower one first")
        chosen = {layer for span in spans for layer in range(span[0], span[-1] + 1)}
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"Layers are all, first:N, last:N or a list such as 3,5,10-20, not {name!r}.") from error
    return check_layers(chosen, n_layers)
