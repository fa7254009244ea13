"""Beginnings that several texts share, run once: their keys and values are reused for all that follows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sea_lens.errors import ModelMismatchError, SeaLensWarning
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.hooks import attached_editors, foreign_hooks, logits_in_parts, without_editors
from sea_lens.models.passes import telling
from sea_lens.models.tokens import PaddedTokens
from sea_lens.models.unwrapped import forward

LEAST_PREFIX = 16
"""Tokens below which a common beginning is not worth a pass of its own."""
DRIFT = 0.05
"""Largest difference between logits after a cached beginning and those of a whole pass, as a share of their spread."""
LEAK = 1e-3
"""Largest change of logits that other tokens after them may make, as a share of their spread."""


@runtime_checkable
class KeyValueCache(Protocol):
    """What we use of a Hugging Face cache."""

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows in this order; a row may occur several times."""


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """Beginnings of texts, all of one length, run once; valid only under the hooks that they were run under.

    Attributes:
        model: That ran them.
        length: In tokens; 0 for none.
        cache: Their keys and values, a row per beginning.
    """

    model: Model
    length: int = 0
    cache: KeyValueCache | None = None

    def extended(
        self, ids: Int[Tensor, "rows pos"], follows: Sequence[int], *, stop_at_layer: int | None = None
    ) -> tuple[Float[Tensor, "rows d_vocab"], CachedPrefix]:
        """Runs what comes next, all of one length; gives the logits after it, and the longer beginnings.

        Args:
            ids: The tokens that come next.
            follows: By row of `ids`, which beginning it goes on from.
            stop_at_layer: For passes that only hooks look at: the block at which to stop, given to `continued` as well. What
                is returned in place of logits then means nothing.
        """
        tokens = PaddedTokens(ids, torch.ones_like(ids, dtype=torch.bool))
        options = self._options(tokens, follows)
        # A pass that is stopped returns no cache, but fills the one that it is given.
        cache = options.setdefault("past_key_values", _empty_cache(self.model))
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[:, -1] = True
        with telling(self.model, self.length + ids.shape[1]):
            parts = self._run(tokens, where, stop_at_layer, {**options, "use_cache": True})
        return torch.cat([*parts]), CachedPrefix(self.model, self.length + ids.shape[1], cache)

    def continued(
        self,
        tokens: PaddedTokens,
        follows: Sequence[int] | None = None,
        where: Bool[Tensor, "rows pos"] | None = None,
        *,
        stop_at_layer: int | None = None,
    ) -> Iterable[Float[Tensor, "part d_vocab"]]:
        """Logits of what comes next, row after row, in parts.

        The pass is over when this returns. Read the parts under the hooks that it was made under.

        Args:
            tokens: The tokens that come next, padded on the right. Where they do not say it, the beginning is the prompt.
            follows: By row, which beginning it goes on from; None for the only one.
            where: The positions whose logits are returned; all but padding for None.
            stop_at_layer: As for `extended`.
        """
        options = self._options(tokens, [0] * len(tokens.ids) if follows is None else follows)
        with telling(self.model, self.length or None if tokens.prompt_lengths is None else tokens.prompt_lengths):
            return self._run(tokens, tokens.mask if where is None else where, stop_at_layer, options)

    def repeated(self, rows: int) -> KeyValueCache | None:
        """A copy of the beginning's cache for a number of rows; the model may append to it."""
        if self.cache is None:
            return None
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(torch.zeros(rows, dtype=torch.long))
        return cache

    def _run(
        self, tokens: PaddedTokens, where: Tensor, stop_at_layer: int | None, options: dict[str, Any]
    ) -> Iterable[Float[Tensor, "part d_vocab"]]:
        if stop_at_layer is not None:
            where = torch.zeros_like(where)
            where[0, 0] = True
            if stop_at_layer < self.model.cfg.n_layers:
                return [forward(self.model, tokens.ids, **options, stop_at_layer=stop_at_layer)[where]]
        return logits_in_parts(self.model, tokens, where, **options)

    def _options(self, tokens: PaddedTokens, follows: Sequence[int]) -> dict[str, Any]:
        if self.cache is None:
            return tokens.forward_options()
        cache = copy.deepcopy(self.cache)  # the model appends to the one that it is given
        # On the CPU, from where indices serve every device: each layer's keys lie where the layer is.
        cache.batch_select_indices(torch.tensor(list(follows)))
        before = tokens.mask.new_ones(len(tokens.ids), self.length)
        return {
            "past_key_values": cache,
            "attention_mask": torch.cat([before, tokens.mask], dim=1).long(),
            "position_ids": self.length + torch.arange(tokens.ids.shape[1], device=tokens.ids.device)[None],
        }


def _empty_cache(model: Model) -> KeyValueCache:
    """A cache with what each layer needs, sliding windows among them, as Hugging Face's decoders make theirs."""
    from transformers import DynamicCache  # late: it takes a second to import, which `import sea_lens` need not cost

    cache: KeyValueCache = DynamicCache(config=model.original_model.config)
    return cache


def how_to_run(
    model: Model,
    editor: EditsModels | None,
    batch_size: int,
    share_prefix: bool = True,
    *,
    longest: int = 0,
    side: Literal["left", "right"] = "right",
) -> tuple[int, bool]:
    """How many rows may go into one pass, and whether beginnings may be shared.

    An edit that is not token-local mixes the tokens of a pass, so every row is run alone and whole. That holds for the editor
    given and for those that are attached to the model already. What the model itself cannot do is tried once per model.

    Args:
        model: The model.
        editor: The editor that is to act; None for none.
        batch_size: Rows in one pass, where nothing speaks against it.
        share_prefix: Whether to share beginnings, where nothing speaks against it.
        longest: Tokens of the longest text of the job, with what is generated after it.
        side: Where rows are padded.

    Raises:
        ModelMismatchError: If earlier tokens of the model see later ones.

    Warns:
        SeaLensWarning: Once per model, if its beginnings cannot be shared or its texts cannot be batched.
    """
    editors = [*attached_editors(model), *([] if editor is None else [editor])]
    if not all(each.token_local for each in editors):
        return 1, False
    found = _tried(model)
    if found.sees_later:
        raise ModelMismatchError(
            f"What {type(model.original_model).__name__} makes of a token depends on later ones under an attention mask, "
            "so no padded text comes out right. Take another model, or another version of transformer_lens."
        )
    limit = rope_limit(model)
    if limit is not None and longest > limit:
        _say_once(
            model,
            f"This model has other rotary embeddings (longrope) for texts of over {limit} tokens, so no pass may hold "
            "shorter ones beside them: all texts are run one by one, as exact, and slower.",
        )
        return 1, False
    if side == "left" and batch_size > 1 and not found.pads_left:
        _say_once(model, "This model reads padding as text, so prompts are answered one by one: as exact, and slower.")
        batch_size = 1
    if share_prefix and not found.goes_on:
        _say_once(
            model,
            "This model does not go on after a cached beginning as in one pass over the whole (recurrent layers do not), so "
            "what texts have in common is run with each of them: as exact, and slower.",
        )
    return batch_size, share_prefix and found.goes_on


_SAID: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def _say_once(model: Model, text: str) -> None:
    said = _SAID.setdefault(model.original_model, set())
    if text not in said:
        said.add(text)
        warnings.warn(text, SeaLensWarning, stacklevel=4)


def rope_limit(model: Model) -> int | None:
    """The length beyond which all of a text's rotary embeddings are others; None for none."""
    config = getattr(model.original_model, "config", None)
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (found, *found.values()) if isinstance(kind, Mapping)]
    default = getattr(config, "original_max_position_embeddings", None)
    limits = [
        kind.get("original_max_position_embeddings") or default for kind in kinds if kind.get("rope_type") == "longrope"
    ]
    return min((int(limit) for limit in limits if limit is not None), default=None)


@dataclass(frozen=True)
class _Trial:
    """What a model was seen to do.

    Attributes:
        goes_on: Whether several tokens after a cached beginning come out as in one pass over the whole. Recurrent layers and
            models without a cache of keys and values do not go on so.
        pads_left: Whether padding before a text changes nothing.
        sees_later: Whether a token comes out otherwise if others come after it.
    """

    goes_on: bool
    pads_left: bool
    sees_later: bool


_TRIED: WeakKeyDictionary[nn.Module, _Trial] = WeakKeyDictionary()


@torch.no_grad()
def _tried(model: Model) -> _Trial:
    """What the model can do, tried once, with three texts of 12 tokens."""
    known = _TRIED.get(model.original_model)
    if known is not None:
        return known
    vocabulary = getattr(model.original_model.config, "vocab_size", None) or 64
    rows = torch.arange(3 * 12).reshape(3, 12).remainder(vocabulary).to(model.cfg.device)
    rows[2, :6] = rows[1, :6]  # alike in their first half
    # What hooks of a user's own do to this is not the model's doing, and they may be gone next time.
    bare = not foreign_hooks(model)
    with without_editors(model), in_eval_mode(model):
        logits = torch.cat([*CachedPrefix(model).continued(_all_real(rows))]).float().view(3, 12, -1)
        if not bool(logits.isfinite().all()):  # whoever reads results of such a model says so
            return _Trial(True, True, False)
        spread = logits.std()
        leak = float((logits[1, :6] - logits[2, :6]).abs().max() / spread)
        padded = PaddedTokens(rows[:2].roll(6, dims=1), torch.ones_like(rows[:2], dtype=torch.bool))
        padded.mask[1, :6] = False
        after_padding = [*CachedPrefix(model).continued(padded)][-1][-1]
        try:
            _, beginning = CachedPrefix(model).extended(rows[:2, :8], [0, 0])
            _, beginning = beginning.extended(rows[1:2, 8:9], [1])
            after = [*beginning.continued(_all_real(rows[1:2, 9:].expand(2, -1)), [0, 0])][-1][-1]
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            after = torch.full_like(logits[0, 0], torch.nan)  # a cache of another kind
    goes_on, pads_left = (
        bool((one.float() - other).abs().max() <= DRIFT * spread)  # False for NaN
        for one, other in ((after, logits[1, -1]), (after_padding, logits[1, 5]))
    )
    found = _Trial(goes_on, pads_left, bare and leak > LEAK)
    if bare:
        _TRIED[model.original_model] = found
    return found


@contextmanager
def in_eval_mode(model: Model) -> Iterator[None]:
    """Takes a model out of training mode inside the block."""
    training = [module for module in model.original_model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _all_real(rows: Int[Tensor, "rows pos"]) -> PaddedTokens:
    return PaddedTokens(rows, torch.ones_like(rows, dtype=torch.bool))


def length_to_share(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, the last of the shortest left out; 0 where that is not worth a pass."""
    length = common_length(prompts, min(map(len, prompts), default=1) - 1)
    return length if len(prompts) > 1 and length >= LEAST_PREFIX else 0


def common_length(rows: Sequence[Sequence[int]], longest: int) -> int:
    """How many tokens all rows begin with, at most `longest`."""
    length = 0
    while length < longest and len({row[length] for row in rows}) == 1:
        length += 1
    return length
