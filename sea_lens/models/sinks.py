"""Attention sinks: the first token and a few others, whose residual state is many times as long as that of all others.

Their state is the model's own machinery (Xiao et al., arXiv 2309.17453; Sun et al., arXiv 2402.17762), and no demonstration
says anything of it: edits spare them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sea_lens.models.bridge import Model
from sea_lens.models.hooks import foreign_hooks, states_at, without_editors
from sea_lens.models.neutral import neutral_texts
from sea_lens.models.passes import tracked
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens, all_token_ids

MASSIVE = 5.0
"""A token is massive where its norm is this many times the median. Ordinary tokens of the embedded models and stories260K
reach 3.9. The first token of SmolLM2-135M is at 191 in layer 11, that of Gemma 3 270M at 16 in layer 6, and a few
delimiters of SmolLM2 are at 5 to 11 in layers 2 to 8."""
N_TEXTS, LONGEST = 4, 256
"""Texts that are looked at, and tokens of each."""


@dataclass(frozen=True)
class Sinks:
    """The attention sinks of a model: the first token, and tokens of massive norm.

    Attributes:
        first: Whether the first token of a text is one, at any layer.
        limits: By hook name, the norm above which a token is massive; none for sites outside the residual stream.
    """

    first: bool
    limits: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return {"first": self.first, "limits": dict(self.limits)}

    @classmethod
    def from_json(cls, found: object) -> Sinks | None:
        """Reads `to_json`'s values; None for None.

        Raises:
            ValueError: If they are something else.
        """
        if found is None:
            return None
        if not isinstance(found, dict) or not isinstance(found["first"], bool):
            raise ValueError(f"massive tokens are not {found!r:.60}")
        return cls(found["first"], {str(name): float(limit) for name, limit in dict(found["limits"]).items()})


_FOUND: WeakKeyDictionary[nn.Module, Sinks | None] = WeakKeyDictionary()


def find_sinks(model: Model) -> Sinks | None:
    """Looks for attention sinks in a few neutral texts, at every layer; None where there are none. Tried once per model.

    Args:
        model: The model; editors that are attached to it do not act.
    """
    if model.original_model in _FOUND:
        return _FOUND[model.original_model]
    with without_editors(model):
        found = _look(model, _rows(model))
    if not foreign_hooks(model):  # what these do is not the model's doing
        _FOUND[model.original_model] = found
    return found


def _rows(model: Model) -> list[list[int]]:
    texts = neutral_texts(model)[:N_TEXTS]
    if texts:
        return [row[: min(LONGEST, model.cfg.n_ctx)] for row in all_token_ids(model, texts)]
    # Of a language that the sample is not in: tokens from all over the vocabulary.
    n = min(64, model.cfg.n_ctx)
    return [[(7919 * (text * n + place)) % model.cfg.d_vocab for place in range(n)] for text in range(N_TEXTS)]


@torch.no_grad()
def _look(model: Model, rows: Sequence[Sequence[int]]) -> Sinks | None:
    names = ("resid_post", "resid_mid", "resid_pre")
    sites = [Site(layer, name) for layer in range(model.cfg.n_layers) for name in names]
    sites = [site for site in sites if site.hook_name in model.hook_dict]
    norms: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def measure(site: Site) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: object) -> None:
            norms[site].append(site.read(tensor)[0].float().norm(dim=-1).cpu())

        return hook

    with model.hooks(fwd_hooks=[(site.hook_name, measure(site)) for site in sites]), tracked(model):
        for row in rows:  # one at a time, so that nothing depends on padding
            tokens = PaddedTokens.of(model, [row])
            states_at(model, tokens, torch.zeros_like(tokens.mask))
    first, others, limits = False, False, dict[str, float]()
    for site, found in norms.items():
        if not found:
            continue
        rest = torch.cat([each[1:] for each in found])
        limit = MASSIVE * float(rest.median())
        first = first or any(float(each[0]) > limit for each in found)
        others = others or bool((rest > limit).any())
        limits[site.hook_name] = limit
    return Sinks(first, limits) if first or others else None
