"""Which positions of a sequence an editor edits: from one on, or those of a mask over the prompt."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sea_lens.errors import InputError

Positions = int | Bool[Tensor, "n_prompts prompt_length"]
"""The first position edited, or a mask over the prompt's positions; see `Editor.at_positions`."""
CONTINUED_FROM: ContextVar[int | None] = ContextVar("continued_from", default=None)
"""Position of the first token of a pass over a cached prefix, which no hook can see; None where passes start a text."""


@contextmanager
def continuing_from(position: int) -> Iterator[None]:
    """Tells editors that the passes inside go on after a cached prefix of that many tokens."""
    token = CONTINUED_FROM.set(position)
    try:
        yield
    finally:
        CONTINUED_FROM.reset(token)


def check_positions(positions: Positions | Int[Tensor, "n_prompts prompt_length"]) -> Positions:
    """Positions as the rest of this file takes them.

    Raises:
        InputError: If they are neither a position counted from the start nor a mask.
    """
    if isinstance(positions, Tensor) and positions.ndim == 2:
        values = positions if positions.dtype == torch.bool else positions.bool()
        if not torch.equal(values.to(positions.dtype), positions):
            raise InputError("A position mask holds true and false, or 1 and 0, and other numbers were given.")
        return values
    try:
        first = operator.index(positions)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            "Positions are the first position to edit, or a mask [batch, pos] over the tokens of a prompt batch; "
            f"{positions!r} was given."
        ) from error
    if isinstance(positions, bool) or first < 0:
        raise InputError(
            f"Position {positions} is not counted from the start of the prompt. An end would move while text is "
            "generated, so give the position from the start (prompt length - 1 for the last token), or a mask."
        )
    return first


def keep_positions(
    tensor: Float[Tensor, "batch pos d_model"],
    edited: Float[Tensor, "batch pos d_model"],
    positions: Positions,
    start: int,
) -> Float[Tensor, "batch pos d_model"]:
    """Undoes an edit outside the chosen positions; `start` is the position of the tensor's first column."""
    length = tensor.shape[1]
    if isinstance(positions, int):
        chosen = torch.arange(start, start + length, device=tensor.device) >= positions
        return edited.where(chosen[None, :, None], tensor)
    covered = positions.shape[1]
    if positions.shape[0] != tensor.shape[0] or (start == 0 and covered > length):
        raise InputError(
            f"The position mask is for a batch of shape {tuple(positions.shape)}, and the model ran on "
            f"{tuple(tensor.shape[:2])}. Give at_positions a mask of the prompt batch it is used with."
        )
    generated = positions.new_ones(positions.shape[0], max(0, start + length - covered))
    mask = torch.cat([positions, generated], dim=1)[:, start : start + length].to(tensor.device)
    return edited.where(mask[..., None], tensor)


def describe_positions(positions: Positions) -> str:
    """In words, for an editor's repr."""
    return f"from {positions} on" if isinstance(positions, int) else f"by a mask of shape {tuple(positions.shape)}"
