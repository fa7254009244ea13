"""The digest of a model's weights, read once for many questions in a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sea_lens.models.bridge import Model, weights_digest

_READ: ContextVar[dict[int, str] | None] = ContextVar("_READ", default=None)
"""Digests by the wrapped model, inside a block."""


@contextmanager
def unchanged_weights() -> Iterator[None]:
    """A block in which nobody changes a model's weights: `known_weights` reads each model's once."""
    if _READ.get() is not None:
        yield
        return
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def known_weights(model: Model) -> str:
    """`weights_digest`, which inside a block of `unchanged_weights` is made once."""
    read = _READ.get()
    if read is None:
        return weights_digest(model)
    place = id(model.original_model)
    if place not in read:
        read[place] = weights_digest(model)
    return read[place]
