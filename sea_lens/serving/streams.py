"""The residual stream as vLLM's decoder layers pass it on, and hooks there.

vLLM keeps tokens of all requests in one row, `[tokens, width]`, and most of its layers hand on a pair: what the last part
added, and the residual before it. The stream is their sum.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sea_lens.errors import ModelMismatchError
from sea_lens.models.passes import Passes

Act = Callable[[Tensor], Tensor | None]
"""What an edit does to activations `[tokens, width]`; None where it changes nothing."""

STREAM = ("hidden_states", "hidden_state", "x", "h")
"""The names that vLLM gives the stream in a layer's signature; the first that is there."""


def by_token(hook: Callable[..., Tensor | None], passes: Passes | None) -> Act:
    """A hook of `[batch, pos, width]` on activations without a batch: each token is a row of its own.

    Args:
        hook: The hook.
        passes: What says where the tokens of a pass stand; None for an editor of every token.
    """

    def act(tensor: Tensor) -> Tensor | None:
        rows = len(tensor) if tensor.ndim == 2 else tensor.shape[1] if tensor.ndim == 3 and len(tensor) == 1 else None
        seen = None if passes is None else passes.current
        if rows is None or (seen is not None and rows != len(seen.positions)):
            raise ModelMismatchError(
                f"A layer of this model holds a tensor of shape {list(tensor.shape)}, and one state per token of the pass "
                "is needed. An editor cannot be used with it on vLLM."
            )
        edited = hook(tensor.reshape(rows, 1, tensor.shape[-1]), hook=None)
        return None if edited is None else edited.reshape(tensor.shape)

    return act


def hook_output(layer: nn.Module, act: Act) -> RemovableHandle:
    """Edits the stream that a layer hands on."""
    in_pairs = "residual" in inspect.signature(layer.forward).parameters

    def after(module: nn.Module, args: object, output: Any) -> Any:
        if not isinstance(output, tuple):
            return act(output)
        hidden, *rest = output
        # Without `residual` among what it takes, the second is something else: StableLM's sum is made already.
        moved = _moved(act, hidden, rest[0] if in_pairs and rest else None)
        return None if moved is None else (moved, *rest)

    return layer.register_forward_hook(after)


def hook_input(layer: nn.Module, act: Act) -> RemovableHandle:
    """Edits the stream that a layer is given.

    Raises:
        ModelMismatchError: If it cannot be told which of its arguments that is.
    """
    signature = inspect.signature(layer.forward)
    name = next((name for name in STREAM if name in signature.parameters), None)
    if name is None:
        raise ModelMismatchError(
            f"vLLM's {type(layer).__name__} takes {', '.join(signature.parameters)}, and none of these is known to be the "
            "residual stream. Edit resid_post of the layer before."
        )

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = signature.bind(*args, **kwargs)
        moved = _moved(act, given.arguments[name], given.arguments.get("residual"))
        if moved is None:
            return None
        given.arguments[name] = moved
        return given.args, given.kwargs

    return layer.register_forward_pre_hook(before, with_kwargs=True)


def _moved(act: Act, hidden: Tensor, residual: Tensor | None) -> Tensor | None:
    """What goes into `hidden`'s place, so that its sum with the residual is the edited stream."""
    if residual is None:
        return act(hidden)
    stream = hidden + residual
    edited = act(stream)
    # As a difference, so that a token that is not edited keeps its bits.
    return None if edited is None else hidden + (edited - stream)
