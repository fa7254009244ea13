"""Beginnings that several texts share, run once: their keys and values are reused for all that follows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.models.bridge import Model
from sea_lens.models.passes import telling
from sea_lens.models.tokens import PaddedTokens, TokenizedAnswer

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
        length = length_to_share([row.ids[: row.answer_start] for row in rows])
        if not length:
            return cls(model, 0, None)
        return cls(model, 0, None).extended(torch.tensor([rows[0].ids[:length]], device=model.cfg.device), [0])[1]

    def extended(
        self, ids: Int[Tensor, "rows pos"], follows: Sequence[int], *, keep: bool = True
    ) -> tuple[Float[Tensor, "rows pos d_vocab"], CachedPrefix]:
        """Runs what comes next, all of one length, and gives its logits and the longer beginnings.

        Args:
            ids: The tokens that come next.
            follows: By row of `ids`, which beginning it goes on from.
            keep: Whether these beginnings are used again; if not, the longer ones take their memory.
        """
        tokens = PaddedTokens(ids, torch.ones_like(ids, dtype=torch.bool))
        options = {**self._options(tokens, follows, keep=keep), "use_cache": True, "return_type": "logits_and_cache"}
        with telling(self.model, self.length + ids.shape[1]):
            logits, cache = self.model(ids, **options)
        return logits, CachedPrefix(self.model, self.length + ids.shape[1], cache)

    def extended_below(self, ids: Int[Tensor, "rows pos"], follows: Sequence[int], layer: int) -> CachedPrefix:
        """The longer beginnings for passes that stop at `layer`: only the blocks below it are run, and no logits made.

        Args:
            ids: The tokens that come next, all of one length.
            follows: By row of `ids`, which beginning it goes on from.
            layer: To be given to `continued` as well.
        """
        options = self._options(PaddedTokens(ids, torch.ones_like(ids, dtype=torch.bool)), follows)
        # A pass that is stopped returns no cache, but fills the one it is given.
        cache = options.get("past_key_values")
        if cache is None:
            cache = _empty_cache(self.model)
            options |= {"past_key_values": cache, "use_cache": True}
        with telling(self.model, self.length + ids.shape[1]):
            self.model(ids, **options, **_stopping(self.model, layer))
        return CachedPrefix(self.model, self.length + ids.shape[1], cache)

    def continued(
        self, tokens: PaddedTokens, follows: Sequence[int] | None = None, stop_at_layer: int | None = None
    ) -> Float[Tensor, "batch _ _"]:
        """Logits of what comes next, padded on the right.

        Args:
            tokens: The tokens that come next.
            follows: By row, which beginning it goes on from; None for the only one.
            stop_at_layer: For passes that only hooks look at: the block at which to stop. What is returned then is not
                logits of all tokens.
        """
        options = self._options(tokens, [0] * len(tokens.ids) if follows is None else follows)
        if stop_at_layer is not None:
            options |= _stopping(self.model, stop_at_layer)
        with telling(self.model, tokens.prompt_lengths if tokens.prompt_lengths is not None else self.length or None):
            return self.model(tokens.ids, **options)

    def _options(self, tokens: PaddedTokens, follows: Sequence[int], *, keep: bool = True) -> dict[str, Any]:
        if self.cache is None:
            return tokens.forward_options()
        cache = copy.deepcopy(self.cache) if keep else self.cache  # the model appends to the one it is given
        # On the CPU, from where indices serve every device: each layer's keys lie where the layer is.
        cache.batch_select_indices(torch.tensor(list(follows)))
        before = tokens.mask.new_ones(len(tokens.ids), self.length)
        return {
            "past_key_values": cache,
            "attention_mask": torch.cat([before, tokens.mask], dim=1).long(),
            "position_ids": self.length + torch.arange(tokens.ids.shape[1], device=tokens.ids.device)[None],
        }


def _stopping(model: Model, layer: int) -> dict[str, Any]:
    """Options to run the blocks below a layer and as little as possible after them."""
    if layer < model.cfg.n_layers:
        return {"stop_at_layer": layer}
    # After the last block TransformerLens does not stop, and logits of every token can cost as much as several blocks.
    takes = signature(model.original_model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in takes else {}


def _empty_cache(model: Model) -> KeyValueCache:
    """A cache with what each layer needs, sliding windows among them, as Hugging Face's decoders make theirs."""
    from transformers import DynamicCache  # late: it takes a second to import, which `import sea_lens` need not cost

    config = model.original_model.config  # of Hugging Face's model inside the bridge
    cache: KeyValueCache = DynamicCache(config=config)
    return cache


def length_to_share(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, the last of the shortest left out; 0 where that is not worth a pass."""
    length = common_length([TokenizedAnswer(list(ids), len(ids)) for ids in prompts])
    return length if len(prompts) > 1 and length >= LEAST_PREFIX else 0


def common_length(rows: Sequence[TokenizedAnswer]) -> int:
    """How many tokens all rows begin with, at most to before the last token of the shortest prompt."""
    longest = min((row.answer_start for row in rows), default=1) - 1
    length = 0
    while length < longest and len({row.ids[length] for row in rows}) == 1:
        length += 1
    return length
