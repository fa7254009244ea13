"""Texts that begin alike as one row of tokens: every token sees those before it in its own text and no others.

What texts have in common stands in the row once, and is run once: a prompt for all its answers, and "The Eiffel" for all
answers that begin so. Prompts of different lengths lie side by side, padded only at the end of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sea_lens.models.bridge import Model
from sea_lens.models.hooks import foreign_hooks, logits_in_parts, without_editors
from sea_lens.models.passes import PADDING, telling
from sea_lens.models.prefixes import DRIFT, CachedPrefix, in_eval_mode
from sea_lens.models.tokens import PaddedTokens
from sea_lens.models.unwrapped import forward

T = TypeVar("T")
EXACT = 1e-3
"""As `DRIFT`, for models in float32."""
TRIAL = 24
"""Tokens of a branch in the trial: where a model counts distances in columns, they make these as wrong as can be seen."""
NO_WINDOWS = ("layers", "pattern")
"""Endings of names in configurations that count layers, not tokens."""


@dataclass(frozen=True)
class TokenTree:
    """Texts with what they begin with in common once. Every token comes after the one before it in its text.

    Attributes:
        ids: The tokens.
        parents: By token, the place of the one before it; -1 for none.
        paths: By text, the places of its tokens.
    """

    ids: list[int]
    parents: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> TokenTree:
        """Of texts as tokens."""
        ids, parents, paths = list[int](), list[int](), list[list[int]]()
        known: dict[tuple[int, int], int] = {}
        for text in texts:
            place, path = -1, list[int]()
            for token in text:
                before, place = place, known.setdefault((place, token), len(ids))
                if place == len(ids):
                    ids.append(token)
                    parents.append(before)
                path.append(place)
            paths.append(path)
        return cls(ids, parents, paths)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class PaddedTrees:
    """Trees as one rectangle, padded at the end.

    Attributes:
        ids: Token ids.
        depths: By token, how many come before it in its text; -1 for padding.
        sees: Whether a token sees another. Padding sees the first token alone, for attention to nothing is NaN.
    """

    ids: Int[Tensor, "rows pos"]
    depths: Int[Tensor, "rows pos"]
    sees: Bool[Tensor, "rows pos pos"]

    @classmethod
    def of(cls, model: Model, trees: Sequence[TokenTree]) -> PaddedTrees:
        """On the model's device."""
        longest = max(map(len, trees))
        tokenizer = model.tokenizer
        pad = 0 if tokenizer is None else tokenizer.pad_token_id
        pad = tokenizer.eos_token_id or 0 if pad is None and tokenizer is not None else pad
        ids = np.full((len(trees), longest), pad, dtype=np.int64)
        depths = np.full((len(trees), longest), PADDING, dtype=np.int64)
        sees = np.zeros((len(trees), longest, longest), dtype=bool)
        for row, tree in enumerate(trees):
            ids[row, : len(tree)] = tree.ids
            own, deep = sees[row], depths[row]
            for place, parent in enumerate(tree.parents):
                if parent >= 0:
                    own[place] = own[parent]
                    deep[place] = deep[parent]
                own[place, place] = True
                deep[place] += 1
            own[len(tree) :, 0] = True
        made = (torch.from_numpy(each).to(model.cfg.device) for each in (ids, depths, sees))
        return cls(*made)


def in_equal_parts(found: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Parts of at most so many, as equal as can be: a short last pass costs more than its share."""
    n = -(-len(found) // most)
    for number in range(n):
        yield found[number * len(found) // n : (number + 1) * len(found) // n]


def run_trees(
    prefix: CachedPrefix,
    trees: PaddedTrees,
    prompt_lengths: Sequence[int],
    where: Bool[Tensor, "rows pos"] | None = None,
    *,
    stop_at_layer: int | None = None,
) -> Iterable[Float[Tensor, "part d_vocab"]]:
    """Logits of trees that go on from one beginning, row after row, in parts; exact for models that `can_branch`.

    The pass is over when this returns. Read the parts under the hooks that it was made under.

    Args:
        prefix: What all texts begin with.
        trees: What comes after it.
        prompt_lengths: By row, how many tokens of each text are its prompt, the beginning among them.
        where: The positions whose logits are returned; none for None, where only hooks look at the pass.
        stop_at_layer: The block at which to stop, where no logits are asked for; None to run all.
    """
    model, rows, dtype = prefix.model, len(trees.ids), _dtype(prefix.model)
    sees = torch.cat([trees.sees.new_ones(rows, trees.ids.shape[1], prefix.length), trees.sees], dim=2)[:, None]
    positions = torch.where(trees.depths == PADDING, PADDING, trees.depths + prefix.length)
    options: dict[str, object] = {
        "attention_mask": torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(
            ~sees, torch.finfo(dtype).min
        ),
        "position_ids": positions.clamp(min=0),
    }
    options |= {"use_cache": False} if prefix.cache is None else {"past_key_values": prefix.repeated(rows)}
    told = torch.tensor(prompt_lengths, device=positions.device)
    tokens = PaddedTokens(trees.ids, trees.depths != PADDING)
    with telling(model, told, positions):
        if where is None and stop_at_layer is not None and stop_at_layer < model.cfg.n_layers:
            forward(model, trees.ids, **options, stop_at_layer=stop_at_layer)
            return []
        if where is None:
            where = torch.zeros_like(tokens.mask)
            where[0, 0] = True
        return logits_in_parts(model, tokens, where, **options)


def can_branch(model: Model, longest: int) -> bool:
    """Whether a model makes of a tree what it makes of each text alone.

    It is tried once per model. Those that count distances in columns (ALiBi) or take no such mask do not, and a model whose
    layers look back over a window only does as far as the window reaches.

    Args:
        model: The model. What is on it, an editor say, is silenced while it is tried.
        longest: Columns of the longest row of the job, with the beginning before it.
    """
    window = _window(model)
    return (window is None or longest <= window) and _tried(model)


def _window(model: Model) -> int | None:
    """The least number of tokens that a layer looks back over, by the model's configuration; None for all."""
    config = getattr(model.original_model, "config", None)
    held = {} if config is None else config.to_dict()
    parts = [held, *(each for each in held.values() if isinstance(each, Mapping))]
    found = [
        value
        for part in parts
        for name, value in ((str(key), value) for key, value in part.items())
        if ("window" in name or "chunk" in name) and not name.endswith(NO_WINDOWS) and type(value) is int and value > 0
    ]
    return min(found, default=None)


def _dtype(model: Model) -> torch.dtype:
    return next((each.dtype for each in model.original_model.parameters() if each.is_floating_point()), torch.float32)


_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _tried(model: Model) -> bool:
    known = _TRIED.get(model.original_model)
    if known is not None:
        return known
    with without_editors(model), in_eval_mode(model):
        try:
            found = _is_exact(model)
        except (IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            found = False
    if not foreign_hooks(model):  # what these do is not the model's doing
        _TRIED[model.original_model] = found
    return found


def _is_exact(model: Model) -> bool:
    """Whether two texts that part after 20 tokens come out of one row, after a cached beginning and without, as alone."""
    vocabulary = getattr(model.original_model.config, "vocab_size", None) or 64
    ids = torch.arange(20 + 2 * TRIAL).mul(7).remainder(vocabulary).tolist()
    texts = [ids[: 20 + TRIAL], ids[:20] + ids[20 + TRIAL :]]
    padded = PaddedTokens.of(model, texts)
    wanted = torch.cat([*CachedPrefix(model).continued(padded)]).float().view(2, 20 + TRIAL, -1)
    if not bool(wanted.isfinite().all()):
        return False
    _, beginning = CachedPrefix(model).extended(padded.ids[:1, :8], [0])
    for prefix in (CachedPrefix(model), beginning):
        # A short row beside a long one, for padding.
        trees = [TokenTree.of([text[prefix.length :] for text in texts]), TokenTree.of([texts[1][prefix.length :]])]
        where = torch.zeros(2, len(trees[0]), dtype=torch.bool, device=model.cfg.device)
        for row, tree in enumerate(trees):
            where[row, [path[-1] for path in tree.paths]] = True
        found = torch.cat([*run_trees(prefix, PaddedTrees.of(model, trees), [20, 20], where)]).float()
        apart = (found - wanted[[0, 1, 1], -1]).abs().max() / wanted.std()
        if not bool(apart <= (EXACT if _dtype(model).itemsize >= 4 else DRIFT)):
            return False
    return True
