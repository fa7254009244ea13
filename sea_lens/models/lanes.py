"""Rows of a generation that come and go: each has a lane while it is answered, and leaves it when its answer is over.

All rows end at one column of one cache, as under padding on the left. So every model that is exact there is exact here, with
sliding windows too, which count columns: what a cache would forget is kept, and the model's own mask hides it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sea_lens.models.bridge import Model
from sea_lens.models.fused import can_fuse, fused
from sea_lens.models.hooks import foreign_hooks, logits_at, without_editors
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import DRIFT, in_eval_mode
from sea_lens.models.tokens import PaddedTokens

LEAST_PASS = 256
"""Tokens from which on a pass is as fast a token as any, so that rows of other lengths may go into the next."""
SLACK = 0.9
"""Rows that are shorter than this share of a pass's longest go into the next one."""

Anything = TypeVar("Anything")


class Lanes:
    """Rows of tokens that a model goes on with side by side, under the hooks that are on it.

    Attributes:
        model: The model.
        n: How many there may be.
        lengths: By lane in use, the tokens of its row that have been run.
    """

    def __init__(self, model: Model, n: int, beginning: Sequence[int] = (), room: int = 64, fuse: bool = False) -> None:
        """Without rows; runs what all of them begin with.

        Args:
            model: The model.
            n: How many lanes there are.
            beginning: Tokens with which every row begins, to be run once.
            room: Tokens for which to make room beside those of the rows, whenever there is none; 0 if rows never go on, so
                that nothing is kept of them.
            fuse: Whether steps take fused attention.
        """
        self.model, self.n, self.room = model, n, room
        self.lengths: list[int] = []
        self._prompts: list[int] = []
        self._last, self._columns, self._longest = 0, 0, 0  # the column after the last in use; all; a row's, at most
        self._cache: Any = None
        self._before, self._n_before = None, len(beginning)
        self._options, self._fuse = _options_of(model), fuse
        if beginning:
            self._before = _empty_cache()
            self._run([beginning], [len(beginning)], self._before, 0)

    def enter(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n d_vocab"]:
        """Runs rows, takes them into the next lanes, and gives the logits after each.

        Args:
            rows: Tokens, in order of length with the longest first.
        """
        found, start = [], 0
        for size in _sizes([len(row) - self._n_before for row in rows]):
            group = rows[start : start + size]
            start += size
            cache = _empty_cache() if self._before is None else _for_rows(self._before, size)
            cache = cache if self.room or self._n_before else None
            found.append(self._run(group, list(map(len, group)), cache, self._n_before))
            if self.room:
                self._take(cache, list(map(len, group)))
        return torch.cat(found)

    def step(self, tokens: Sequence[int]) -> Float[Tensor, "n d_vocab"]:
        """Runs the next token of every lane in use, and gives the logits after it."""
        if self._last + 1 > self._columns:
            self._move(max(self._longest, *self.lengths))
        self.lengths = [length + 1 for length in self.lengths]
        width, device = max(self.lengths), self.model.cfg.device
        for layer in self._cache.layers:
            layer.rows, layer.first = len(self.lengths), self._last + 1 - width
        lengths = torch.tensor(self.lengths, device=device)
        options = {
            "input_ids": torch.tensor(tokens, device=device)[:, None],
            "attention_mask": (torch.arange(width, device=device) >= width - lengths[:, None]).long(),
            "position_ids": lengths[:, None] - 1,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        fusing = fused(self.model) if self._fuse else nullcontext()
        with telling(self.model, torch.tensor(self._prompts)), fusing:
            logits = self.model.original_model(**{name: options[name] for name in self._options}).logits
        self._last += 1
        return logits[:, -1]  # type: ignore[no-any-return]

    def leave(self, lane: int) -> None:
        """Ends the row of a lane. The row of the last lane goes on in its place."""
        if not self.room:
            return
        last = len(self.lengths) - 1
        if lane != last:
            columns = slice(self._last - self.lengths[last], self._last)
            for layer in self._cache.layers:
                keys, values = (stored[last, :, columns] for stored in layer.store)
                layer.put(lane, (keys, values), self._last)
        for kept in (self.lengths, self._prompts):
            pop(kept, lane)

    def _run(
        self, rows: Sequence[Sequence[int]], prompts: Sequence[int], cache: Any, before: int
    ) -> Float[Tensor, "n d_vocab"]:
        """Logits after rows of which some tokens are in the cache; adds the others."""
        tokens = PaddedTokens.of(self.model, [row[before:] for row in rows])
        where = torch.zeros_like(tokens.mask)
        where[range(len(rows)), [len(row) - before - 1 for row in rows]] = True
        mask = torch.cat([tokens.mask.new_ones(len(rows), before), tokens.mask], dim=1).long()
        positions = before + torch.arange(tokens.ids.shape[1], device=tokens.ids.device)[None]
        options: dict[str, object] = {"attention_mask": mask, "position_ids": positions, "use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        with telling(self.model, torch.tensor(prompts)):
            return logits_at(self.model, tokens, where, **options)

    def _take(self, cache: Any, lengths: Sequence[int]) -> None:
        """Puts rows that were run, aligned on the left, into the next lanes."""
        from sea_lens.models.roomy import RoomyLayer, cache_of, is_plain

        if not is_plain(cache):
            raise NotImplementedError("a cache of something else than all keys and values")
        self._longest = max(self._longest, *lengths)
        if self._cache is None:
            self._last, self._columns = self._longest, self._longest + self.room
            self._cache = cache_of([RoomyLayer(layer, self.n, self._columns) for layer in cache.layers])
        elif self._last < self._longest:
            self._move(self._longest)
        for into, layer in zip(self._cache.layers, cache.layers, strict=True):
            into.last = self._last
            for row, length in enumerate(lengths):
                lane = len(self.lengths) + row
                into.put(lane, (layer.keys[row, :, :length], layer.values[row, :, :length]), self._last)
        self.lengths += lengths
        self._prompts += lengths

    def _move(self, last: int) -> None:
        """Makes room, and gives up columns before all rows in use."""
        from sea_lens.models.roomy import cache_of

        self._columns = last + self.room
        width = max(self.lengths, default=0)
        layers = self._cache.layers
        for number, layer in enumerate(layers):
            layer.rows = len(self.lengths)
            layers[number] = layer.moved(self.n, self._columns, width, last)
        self._cache, self._last = cache_of(layers), last


def pop(rows: list[Anything], lane: int) -> Anything:
    """Takes an entry out of a list by lanes, as `Lanes.leave` does: the last takes its place."""
    found, last = rows[lane], rows.pop()
    if lane < len(rows):
        rows[lane] = last
    return found


def _empty_cache() -> Any:
    from sea_lens.models.roomy import cache_of

    return cache_of([])


def _for_rows(cache: Any, rows: int) -> Any:
    from sea_lens.models.roomy import for_rows

    return for_rows(cache, rows)


def _options_of(model: Model) -> list[str]:
    """Names of what a step gives to the model: some take no positions, and count the mask themselves."""
    names = ["input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"]
    taken = inspect.signature(model.original_model.forward).parameters
    return [name for name in names if name in taken or name != "position_ids"]


def _sizes(lengths: Sequence[int]) -> Iterator[int]:
    """How many rows go into each pass, so that little of it is padding.

    Args:
        lengths: Of the rows, descending.
    """
    size, longest = 0, 0
    for length in lengths:
        if size and length < SLACK * longest and size * longest >= LEAST_PASS:
            yield size
            size = 0
        longest = longest if size else length
        size += 1
    if size:
        yield size


FUSED_DRIFT = 1e-3
"""As `DRIFT`, of fused attention in float32."""
_EXACT: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
"""By wrapped model and by whether attention is fused: whether its rows may come and go."""


@torch.no_grad()
def lanes_for(model: Model, n: int, beginning: Sequence[int], room: int) -> Lanes | None:
    """Lanes of a model; None where its rows cannot come and go.

    That is tried once, with three short texts, against a pass over the whole of them. Recurrent layers and models without a
    cache of keys and values cannot. Under hooks of a user's own, nothing is known.

    Args:
        model: The model, with the hooks on it under which the rows are to run.
        n: How many lanes there are.
        beginning: As for `Lanes`.
        room: As for `Lanes`.
    """
    if foreign_hooks(model):
        return None
    known = _EXACT.setdefault(model.original_model, {})
    for fuse in (True, False) if can_fuse(model) else (False,):
        if fuse not in known:
            with without_editors(model), in_eval_mode(model):
                known[fuse] = _is_exact(model, fuse)
        if known[fuse]:
            return Lanes(model, n, beginning, room, fuse)
    return None


def _is_exact(model: Model, fuse: bool) -> bool:
    try:
        return _distance(model, fuse) <= (FUSED_DRIFT if fuse else DRIFT)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False


def _distance(model: Model, fuse: bool) -> float:
    """How far logits are from those of a pass over the whole at most, as a share of their spread."""
    vocabulary = getattr(model.original_model.config, "vocab_size", None) or 64
    ids = torch.arange(3 * 10).reshape(3, 10).remainder(vocabulary).to(model.cfg.device)
    wanted = model(ids, use_cache=False).float()
    rows, lanes = ids.tolist(), Lanes(model, 2, room=1, fuse=fuse)
    found = [(lanes.enter([rows[0][:7], rows[1][:4]]), [(0, 6), (1, 3)])]
    found.append((lanes.step([rows[0][7], rows[1][4]]), [(0, 7), (1, 4)]))
    lanes.leave(0)
    found.append((lanes.enter([rows[2][:3]]), [(2, 2)]))
    for further in range(2):
        found.append((lanes.step([rows[1][5 + further], rows[2][3 + further]]), [(1, 5 + further), (2, 3 + further)]))
    apart = [
        (logits.float()[row] - wanted[place]).abs().max()
        for logits, places in found
        for row, place in enumerate(places)
    ]
    return float(torch.stack(apart).max() / wanted.std())
