"""Passes: the true position of every token in a forward pass, whatever padding, cache or caller it comes from.

One forward pre-hook on the wrapped Hugging Face model reads what that model is called with: the attention mask, the
position ids and the cache. So positions mean the same under left padding, a KV cache, shared prefixes, several-token passes
over a cache, one-token prompts, and the `generate` of TransformerLens and of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sea_lens.models.bridge import Model
from sea_lens.models.plain import is_plain, runner_of

PADDING = -1
"""The position of a padding token."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass, as the hooks inside it need to know it.

    Attributes:
        positions: Position of every token in its text, counted from 0; -1 for padding.
        columns: Place of every column in what the pass and its cache hold together, padding counted.
        begins: Whether texts begin in this pass. False for a pass over a KV cache.
        prompt_lengths: Tokens of each row that are its prompt. A runner that knows them tells them (`Passes.telling`).
            Otherwise they are the tokens of the pass that began the text: all of a text that is run at once, and what
            `generate` was given.
    """

    positions: Int[Tensor, "batch pos"]
    columns: Int[Tensor, " pos"]
    begins: bool
    prompt_lengths: Int[Tensor, " batch"]

    @classmethod
    def of_columns(cls, tensor: Tensor) -> Pass:
        """The pass of an activation `[batch, pos, ...]` of which nothing else is known: columns are taken for positions."""
        batch, length = tensor.shape[:2]
        columns = torch.arange(length, device=tensor.device)
        return cls(columns.expand(batch, length), columns, True, columns.new_full((batch,), length))

    def shows_prompts(self, n: int) -> bool:
        """Whether its last n columns hold a token of a prompt."""
        if n == len(self.columns):
            return True
        # Generation without a cache runs texts again, and at the unembedding shows the last token alone.
        shown = self.positions[:, -n:]
        return bool(((shown > PADDING) & (shown < self.prompt_lengths.to(shown.device)[:, None])).any())


class Passes:
    """The passes of one model while someone is tracking them.

    Attributes:
        current: The pass that is running, or ran last; None before the first.
        users: How many are tracking.
        looks_away: Whether passes are left unnoted for the moment.
    """

    def __init__(self) -> None:
        """Of a model that has not run yet."""
        self.current: Pass | None = None
        self._told: tuple[Tensor | None, Tensor | None] = None, None  # prompt lengths and positions
        self._begun: tuple[Tensor, Tensor] | None = None  # tokens and prompt lengths of the pass that began the texts
        self._lengths: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # of caches that do not know their own
        self.users = 0
        self.looks_away = False
        self.handle: RemovableHandle

    @contextmanager
    def telling(
        self,
        prompt_lengths: Int[Tensor, " batch"] | int | None,
        positions: Int[Tensor, "batch pos"] | None = None,
    ) -> Iterator[None]:
        """Says how many tokens of each row are its prompt, for the passes inside; None to leave it to the passes.

        Args:
            prompt_lengths: One number for all rows, or one per row.
            positions: As in `Pass`, where a mask of a caller's own hides them.
        """
        before = self._told
        self._told = None if prompt_lengths is None else torch.as_tensor(prompt_lengths), positions
        try:
            yield
        finally:
            self._told = before

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The forward pre-hook."""
        if self.looks_away:
            return
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        if not isinstance(tokens, Tensor) or tokens.ndim < 2:
            self.current = None
            return
        batch, length = tokens.shape[:2]
        past = self._cached_length(kwargs, length)
        columns = past + torch.arange(length, device=tokens.device)
        told = self._told[1]
        positions = _positions(kwargs, columns, past, batch) if told is None else told.to(columns.device)
        self.current = Pass(positions, columns, past == 0, self._prompt_lengths(tokens, positions, past))

    def _cached_length(self, kwargs: Mapping[str, Any], length: int) -> int:
        """Tokens that the cache holds already."""
        cache = kwargs.get("past_key_values")
        if cache is not None and hasattr(cache, "get_seq_length"):
            try:
                return int(cache.get_seq_length())
            except (ValueError, NotImplementedError):  # a cache of recurrent layers alone
                pass
        cache = kwargs.get("cache_params", kwargs.get("state", cache))
        if cache is None:
            return 0
        try:
            past = self._lengths.get(cache, 0)
            self._lengths[cache] = past + length
        except TypeError:  # a list of states, which cannot be remembered: it goes on after the last pass
            past = 0 if self.current is None else int(self.current.columns[-1]) + 1
        return past

    def _prompt_lengths(self, tokens: Tensor, positions: Tensor, past: int) -> Tensor:
        batch = len(tokens)
        told = self._told[0]
        if told is not None:
            return told.to(positions.device).expand(batch)
        if past:
            if self._begun is not None and len(self._begun[1]) in (1, batch):
                return self._begun[1].to(positions.device).expand(batch)
            return positions.new_full((batch,), past)
        lengths = (positions > PADDING).sum(1)
        if self._begun is not None:  # generation without a KV cache runs the text again, a token longer each time
            before, theirs = self._begun
            grown = before.ndim == tokens.ndim == 2 and tokens.shape == (batch, before.shape[1] + 1)
            if grown and len(before) == batch:
                # [new row, row before]: beams change places
                same = (tokens[:, None, :-1].to(before.device) == before[None]).all(-1)
                if bool(same.any(1).all()):
                    lengths = theirs[same.int().argmax(1)]
        self._begun = tokens, lengths
        return lengths


def _positions(
    kwargs: Mapping[str, Any], columns: Int[Tensor, " pos"], past: int, batch: int
) -> Int[Tensor, "batch pos"]:
    mask, length = kwargs.get("attention_mask"), len(columns)
    if isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == batch:
        real = mask.to(columns.device) != 0
        counted = (real.long().cumsum(-1) - 1).masked_fill(~real, PADDING)
        if mask.shape[1] >= past + length:
            return counted[:, past : past + length]
        if mask.shape[1] == length:  # of the new tokens alone
            return torch.where(counted == PADDING, counted, counted + past)
    given = kwargs.get("position_ids")
    if isinstance(given, Tensor) and given.ndim == 2 and given.shape[1] == length:
        given = given.to(columns.device).expand(batch, length)
        if past or mask is None:
            return given
        # A mask of another form, as `generate` makes it for a static cache. Padding on the left has position 0 or 1, so a
        # text begins at its row's last 0.
        begins = torch.where(given == 0, columns, 0).amax(1, keepdim=True)
        return given.masked_fill(columns < begins, PADDING)
    return columns.expand(batch, length)


@contextmanager
def telling(
    model: Model,
    prompt_lengths: Int[Tensor, " batch"] | int | None,
    positions: Int[Tensor, "batch pos"] | None = None,
) -> Iterator[None]:
    """For runners: says how many tokens of each row are its prompt, to whoever acts on the passes inside."""
    with tracked(model) as passes, passes.telling(prompt_lengths, positions):
        yield


@contextmanager
def unnoted(model: Model) -> Iterator[None]:
    """For passes that run no text: whoever tracks the model does not note them."""
    with tracked(model) as passes:
        before, passes.looks_away = passes.looks_away, True
        try:
            yield
        finally:
            passes.looks_away = before


_TRACKED: WeakKeyDictionary[nn.Module, Passes] = WeakKeyDictionary()


@contextmanager
def tracked(model: Model | nn.Module) -> Iterator[Passes]:
    """Tracks a model's passes inside the `with` block. Everybody who tracks one model at a time shares one `Passes`.

    Example:
        >>> tokens = model.to_tokens("<plain> Q Mira home A")
        >>> with tracked(model) as passes:
        ...     logits = model(tokens)
        ...     print(passes.current.positions.tolist())
        [[0, 1, 2, 3, 4, 5]]

    Args:
        model: A TransformerBridge, or a plain Hugging Face model.

    Yields:
        What is known of the pass that is running.
    """
    wrapped: nn.Module = runner_of(model) if is_plain(model) else model.original_model
    passes = _TRACKED.get(wrapped)
    if passes is None:
        passes = _TRACKED[wrapped] = Passes()
        passes.handle = wrapped.register_forward_pre_hook(passes.see, with_kwargs=True)
    passes.users += 1
    try:
        yield passes
    finally:
        passes.users -= 1
        if not passes.users:
            passes.handle.remove()
            _TRACKED.pop(wrapped, None)
