"""Keys and values of one layer with room for more: rows end at one column, and a new token is written where it stays.

Hugging Face's own layer copies all it holds for every token. Imported late, as transformers takes a second to import.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # of a library without types
    """Keys and values of rows, aligned on the right. What stands before a row's first token is for a mask to hide.

    Attributes:
        store: Keys and values, `[rows, heads, columns, width]`.
        rows: How many rows are in use, from the first on.
        first: The first column in use.
        last: The column after the last in use.
    """

    def __init__(self, like: DynamicLayer, rows: int, columns: int) -> None:
        """Room for rows.

        Args:
            like: A layer whose numbers have the kind, the device and the sizes.
            rows: How many at most.
            columns: How many tokens at most.
        """
        super().__init__()
        # Zeros, as hidden columns still enter a sum, with a weight of 0.
        self.store = tuple(
            kind.new_zeros(rows, kind.shape[1], columns, kind.shape[3]) for kind in (like.keys, like.values)
        )
        self.dtype, self.device, self.is_initialized = like.keys.dtype, like.keys.device, True
        self.rows = self.first = self.last = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes in new tokens of all rows in use, and gives all keys and values of those."""
        before, self.last = self.last, self.last + key_states.shape[-2]
        for stored, new in zip(self.store, (key_states, value_states), strict=True):
            stored[: self.rows, :, before : self.last] = new
        self.keys, self.values = (stored[: self.rows, :, self.first : self.last] for stored in self.store)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens in use."""
        return self.last - self.first

    def put(self, row: int, kinds: tuple[Tensor, Tensor], last: int) -> None:
        """Writes a row's keys and values, `[heads, columns, width]`, so that they end before a column."""
        for stored, new in zip(self.store, kinds, strict=True):
            stored[row, :, last - new.shape[1] : last] = new

    def moved(self, rows: int, columns: int, width: int, last: int) -> RoomyLayer:
        """A copy with other room.

        Args:
            rows: How many at most.
            columns: How many at most.
            width: How many of the last columns in use are kept.
            last: Before which column they end.
        """
        found = RoomyLayer(self, rows, columns)
        for old, new in zip(self.store, found.store, strict=True):
            new[: self.rows, :, last - width : last] = old[: self.rows, :, self.last - width : self.last]
        found.rows, found.first, found.last = self.rows, last - width, last
        return found


def cache_of(layers: list[Any]) -> DynamicCache:
    """A cache of layers, as models take it; without any, it makes layers that forget nothing as they are needed."""
    cache = DynamicCache()
    cache.layers = layers
    return cache


def is_plain(cache: DynamicCache) -> bool:
    """Whether all that a cache holds is keys and values of every token."""
    return all(
        type(layer) is DynamicLayer and layer.keys is not None and layer.keys.ndim == 4 for layer in cache.layers
    )


def for_rows(cache: DynamicCache, rows: int) -> DynamicCache:
    """The cache of one row as that of several; a model may append to it."""
    layers = []
    for layer in cache.layers:
        copied = DynamicLayer()
        copied.keys, copied.values = (kind.expand(rows, -1, -1, -1) for kind in (layer.keys, layer.values))
        copied.dtype, copied.device, copied.is_initialized = layer.dtype, layer.device, True
        layers.append(copied)
    return cache_of(layers)
