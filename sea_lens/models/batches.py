"""Which texts go into one pass: those of like length, within bounds of memory."""

from __future__ import annotations

from collections.abc import Sequence

from sea_lens.models.bridge import Model

PADDING_TOKENS = 64
"""Tokens of padding above which a batch ends: a pass of its own costs less, in which weights are read once more."""
STREAM_VALUES = 2**27
"""Values of a batch's residual streams, each layer's twice, as runs that share blocks keep them: 512 MiB in float32."""
ATTENTION_VALUES = 2**25
"""Values of one layer's attention patterns in a batch, 128 MiB in float32."""


def length_sorted(
    model: Model, items: Sequence[Sequence[int]], batch_size: int, most: int | None = None
) -> list[list[int]]:
    """Batches of items, those of like length together, the longest first.

    A batch ends where it has `batch_size` rows, or where its padding, residual streams or attention patterns would pass the
    limits above: memory is bounded for texts of any length. An item is never split.

    Args:
        model: What runs them.
        items: Of each item, the lengths of its rows.
        batch_size: Rows in a batch at most.
        most: Items in a batch at most; None for any number.
    """
    cfg = model.cfg
    n_heads: int = getattr(cfg, "n_heads", 1)
    batches: list[list[int]] = []
    n_rows = width = n_tokens = 0
    for index in sorted(range(len(items)), key=lambda index: -max(items[index])):
        own = items[index]
        n_rows, n_tokens, width = n_rows + len(own), n_tokens + sum(own), width or max(own)
        is_full = (
            n_rows > batch_size
            or n_rows * width - n_tokens > PADDING_TOKENS
            or n_rows * width * 2 * cfg.n_layers * cfg.d_model > STREAM_VALUES
            or n_rows * width**2 * n_heads > ATTENTION_VALUES
            or (most is not None and bool(batches) and len(batches[-1]) == most)
        )
        if is_full or not batches:
            batches.append([])
            n_rows, n_tokens, width = len(own), sum(own), max(own)
        batches[-1].append(index)
    return batches
