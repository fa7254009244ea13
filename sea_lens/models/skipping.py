"""Passes that leave blocks out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from sea_lens.models.bridge import Model

Start = tuple[int, Tensor]
"""A block, and its output as a pass that starts there has it."""


@contextmanager
def starting_after(model: Model, start: Start | None) -> Iterator[None]:
    """Makes every block up to one pass its input on, and that one return a stream of ours, whatever it is given.

    Args:
        model: A TransformerBridge. It is as before when the block ends.
        start: Where passes start; None for the beginning.
    """
    skipped = [] if start is None else list(model.blocks)[: start[0] + 1]

    def resume(*_: object, **__: object) -> Tensor:
        assert start is not None
        return start[1]

    try:
        for number, block in enumerate(skipped, start=1):
            # Into the instance itself: set as an attribute, the bridge hands it on to the model that it wraps.
            vars(block)["forward"] = resume if number == len(skipped) else _pass_on
        yield
    finally:
        for block in skipped:
            vars(block).pop("forward", None)


@contextmanager
def without_blocks(model: Model) -> Iterator[None]:
    """Makes every block pass its input on: for passes of which only what comes after the blocks is wanted."""
    before = [(vars(block), vars(block).get("forward")) for block in model.blocks]
    try:
        for held, _ in before:
            held["forward"] = _pass_on
        yield
    finally:
        for held, forward in before:
            held.pop("forward")
            if forward is not None:  # of a pass that is under way
                held["forward"] = forward


def _pass_on(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states
