"""What a method may try where methods are compared: each as many settings and strengths as every other.

What it tries stands on its class, in optional class variables:

    settings_to_try: ClassVar = {"center": (False, True)}  # crossed, the defaults first; the defaults alone where left out
    strengths_to_try: ClassVar = (1.0, 0.5)  # the first ones first; STRENGTHS where left out
    sites_to_collect: ClassVar = ("attn.hook_z",)  # hook points of a layer; resid_post where left out
    why_not_compared: ClassVar = "it edits facts"  # for methods that no right and wrong answers fit

and for the table of methods `equation`, `when_to_use`, and, where sites and roles do not say it, `where_it_edits` and
`also_needs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from sea_lens.errors import InputError
from sea_lens.methods.method import Method, MethodEntry
from sea_lens.models.sites import Site

TRIALS = 12
"""Settings times strengths that a method tries at every set of layers."""
STRENGTHS = (1.0, 2.0, 0.5, 4.0, 1.5, 0.25, 3.0, 0.75, 6.0, 0.125, 8.0, 1.25)
"""The published strength first, and then ever finer and further."""
RESIDUAL_STREAM = ("resid_post",)


def tried(method: Method, trials: int) -> tuple[list[Method], list[float]]:
    """The settings and the strengths that a method tries, as many pairs as there are trials or the next fewer.

    All settings come first, as far as there are trials; what is left goes to strengths.

    Example:
        >>> methods, strengths = tried(sl.LEACE(), 4)
        >>> [method.shrinkage for method in methods], strengths
        ([True, False], [1.0, 2.0])

    Args:
        method: With the settings that stay as they are.
        trials: How many pairs there may be, at least 1.

    Raises:
        InputError: If there is no trial.
    """
    if trials < 1:
        raise InputError(f"A method needs one trial at least, and {trials} were given.")
    grid: Mapping[str, Sequence[Any]] = getattr(method, "settings_to_try", {})
    settings = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())][:trials]
    strengths = list(getattr(method, "strengths_to_try", STRENGTHS))[: trials // len(settings)]
    return [replace(method, **each) for each in settings], strengths  # type: ignore[type-var]


def own_site(method: Method) -> Site | None:
    """The only site that a method edits, as that of a sparse autoencoder; None for any."""
    site = getattr(method, "site", None)
    return site if isinstance(site, Site) else None


def sites_to_collect(method: Method | type[Any]) -> tuple[str, ...]:
    """The hook points of a layer that a method is fitted on."""
    return tuple(getattr(method, "sites_to_collect", RESIDUAL_STREAM))


def method_rows(entries: Mapping[str, MethodEntry]) -> list[dict[str, str]]:
    """What there is to know of each method: its equation, source, sites, what it needs, and when to use it."""
    return [
        {
            "method": name,
            "equation": str(getattr(entry.cls, "equation", "")),
            "source": entry.source,
            "sites": str(getattr(entry.cls, "where_it_edits", "") or ", ".join(sites_to_collect(entry.cls))),
            "needs": str(getattr(entry.cls, "also_needs", "") or ", ".join(entry.cls.roles)),
            "when to use it": str(getattr(entry.cls, "when_to_use", "")),
        }
        for name, entry in entries.items()
    ]
