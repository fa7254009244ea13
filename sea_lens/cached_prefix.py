"""Beginnings that several texts share, run once: their keys and values are reused for all that follows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.models import Model, PaddedTokens, TokenizedAnswer
from sea_lens.positions import continuing_from

LEAST_PREFIX = 16
"""Tokens below which a common beginning is not worth a pass of its own."""


@runtime_checkable
class KeyValueCache(Protocol):
    """What we use of a Hugging Face cache."""

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows, in this order; a row may come several times."""


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """Beginnings of texts, all of one length, run once; valid only under the hooks that they were run under.

    Attributes:
        model: That ran them.
        length: In tokens; 0 for none.
        cache: Their keys and values, a row a beginning.
    """

    model: Model
    length: int
    cache: KeyValueCache | None

    @classmethod
    def of(cls, model: Model, rows: Sequence[TokenizedAnswer]) -> CachedPrefix:
        """Runs what all rows begin with, up to before the last token of the shortest prompt."""
        length = common_length(rows)
        if length < LEAST_PREFIX or len(rows) < 2:
            return cls(model, 0, None)
        return cls(model, 0, None).extended(torch.tensor([rows[0].ids[:length]], device=model.cfg.device), [0])[1]

    def extended(
        self, ids: Int[Tensor, "rows pos"], follows: Sequence[int]
    ) -> tuple[Float[Tensor, "rows pos d_vocab"], CachedPrefix]:
        """Runs what comes next, all of one length, and gives its logits and the longer beginnings.

        Args:
            ids: The tokens that come next.
            follows: By row of `ids`, which beginning it goes on from.
        """
        tokens = PaddedTokens(ids, torch.ones_like(ids, dtype=torch.bool))
        options = {**self._options(tokens, follows), "use_cache": True, "return_type": "logits_and_cache"}
        with continuing_from(self.length) if self.cache is not None else nullcontext():
            logits, cache = self.model(ids, **options)
        return logits, CachedPrefix(self.model, self.length + ids.shape[1], cache)

    def continued(
        self, tokens: PaddedTokens, follows: Sequence[int] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of what comes next, padded on the right.

        Args:
            tokens: The tokens that come next.
            follows: By row, which beginning it goes on from; None for the only one.
        """
        options = self._options(tokens, [0] * len(tokens.ids) if follows is None else follows)
        if self.cache is None:
            return self.model(tokens.ids, **options)
        with continuing_from(self.length):
            return self.model(tokens.ids, **options)

    def _options(self, tokens: PaddedTokens, follows: Sequence[int]) -> dict[str, object]:
        if self.cache is None:
            return tokens.forward_options()
        cache = copy.deepcopy(self.cache)  # the model appends to the one it is given
        cache.batch_select_indices(torch.tensor(list(follows), device=tokens.ids.device))
        before = tokens.mask.new_ones(len(tokens.ids), self.length)
        return {
            "past_key_values": cache,
            "attention_mask": torch.cat([before, tokens.mask], dim=1).long(),
            "position_ids": self.length + torch.arange(tokens.ids.shape[1], device=tokens.ids.device)[None],
        }


def common_length(rows: Sequence[TokenizedAnswer]) -> int:
    """How many tokens all rows begin with, at most to before the last token of the shortest prompt."""
    longest = min((row.answer_start for row in rows), default=1) - 1
    length = 0
    while length < longest and len({row.ids[length] for row in rows}) == 1:
        length += 1
    return length
