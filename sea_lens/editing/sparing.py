"""Sparing attention sinks: which tokens editors leave alone, and how that goes with chosen positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.cache import digest
from sea_lens.editing.edits import may_be_looked_at
from sea_lens.editing.registry import register_value
from sea_lens.editing.where import Both, ByPosition, Mask, Positions, Where, where_of
from sea_lens.errors import InputError
from sea_lens.models.passes import Pass
from sea_lens.models.sinks import Sinks
from sea_lens.models.sites import Site


@register_value("not massive")
@dataclass(frozen=True)
class NotMassive(ByPosition):
    """All tokens but attention sinks: the first one, and tokens of massive norm (`sea_lens.models.sinks`).

    Attributes:
        first: Whether the first token is spared.
        limits: By hook name, the norm above which a token is spared.
    """

    first: bool
    limits: tuple[tuple[str, float], ...] = ()
    _by_name: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", dict(self.limits))  # every hook of a pass asks

    @classmethod
    def of(cls, sinks: Sinks | None) -> NotMassive | None:
        """Of a model's attention sinks; None where it has none."""
        return None if sinks is None else cls(sinks.first, tuple(sorted(sinks.limits.items())))

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """Every token, or every one but the first."""
        return seen.positions >= (1 if self.first else 0)

    def spared(self, site: Site, read: Float[Tensor, "batch pos width"]) -> Mask | None:
        """Tokens whose norm is above the site's limit."""
        limit = self._by_name.get(site.hook_name)
        if limit is None:
            return None
        norms: Tensor = torch.linalg.vector_norm(read.detach().float(), dim=-1)
        if norms.numel() and may_be_looked_at(norms):
            largest = norms if norms.numel() == 1 else norms.amax()
            if float(largest) <= limit:
                return None
        return norms > limit

    def __str__(self) -> str:
        return "all but the first token and massive ones" if self.first else "all but massive tokens"


def parts_of(where: Where | None) -> tuple[Where | None, NotMassive | None]:
    """A choice without what it spares, and what it spares."""
    if isinstance(where, NotMassive):
        return None, where
    if isinstance(where, Both):
        (one, spared), (other, also) = parts_of(where.one), parts_of(where.other)
        rest = one if other is None else other if one is None else Both(one, other)
        return rest, spared or also
    return where, None


def placed(before: Where | None, positions: Positions) -> Where | None:
    """The choice for new positions. What was spared stays spared, unless every token is asked for.

    Args:
        before: The choice so far.
        positions: As of `where_of`.
    """
    chosen, (_, spared) = where_of(positions), parts_of(before)
    return chosen if chosen is None or spared is None or parts_of(chosen)[1] else Both(chosen, spared)


def in_common(one: Where | None, other: Where | None) -> Where | None:
    """The choice of two editors that are added, which spares what either does.

    Raises:
        InputError: If they choose different tokens otherwise.
    """
    (rest, spared), (theirs, also) = parts_of(one), parts_of(other)
    if digest(rest) != digest(theirs):
        raise InputError(
            "Editors of different positions cannot be added. Attach one inside the other: "
            "with one.attached(model), other.attached(model)."
        )
    found = [each for each in (spared, also) if each is not None]
    if not found:
        return rest
    limits: dict[str, float] = {}
    for name, limit in (pair for each in found for pair in each.limits):
        limits[name] = min(limit, limits.get(name, limit))
    both = NotMassive(any(each.first for each in found), tuple(sorted(limits.items())))
    return both if rest is None else Both(rest, both)
