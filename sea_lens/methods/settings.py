"""The settings of a tuning: sets of layers, which settings come to the same edit, and the table's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace

from sea_lens.cache import digest
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit
from sea_lens.errors import InputError
from sea_lens.methods.method import Method, settings_of
from sea_lens.methods.tuning import TunedEditors, View
from sea_lens.models.damage_limits import DamageLimits
from sea_lens.models.sites import Site, check_layers, named_layers
from sea_lens.statistics import Proportion

UNEDITED = "unedited"
"""The key of settings that edit nothing."""


@dataclass(frozen=True)
class Measured:
    """What is measured of an edit.

    Attributes:
        right: Questions that the edited model has right, of those it was asked.
        n: Questions that it was asked.
        kl: See `Damage.kl`.
        perplexity_ratio: See `Damage.perplexity_ratio`.
    """

    right: int
    n: int
    kl: float
    perplexity_ratio: float

    def is_within(self, limits: DamageLimits) -> bool:
        """Whether the damage is within limits."""
        return self.kl <= limits.kl and self.perplexity_ratio <= limits.perplexity_ratio

    @property
    def score(self) -> float:
        """The share that is right; NaN of no questions."""
        return self.right / self.n if self.n else math.nan

    @property
    def columns(self) -> dict[str, float]:
        """The score, its 95 % Wilson interval (all there is, of no questions), of how many questions, and the damage."""
        low, high = Proportion(self.right, self.n).interval() if self.n else (0.0, 1.0)
        return {
            "score": self.score,
            "low": low,
            "high": high,
            "n": self.n,
            "kl": self.kl,
            "perplexity_ratio": self.perplexity_ratio,
        }


def layer_sets(
    layers: Sequence[str | Sequence[int]] | None, collected: Sequence[int], n_layers: int
) -> dict[str, list[int]]:
    """Layers by the name that the table calls them."""
    by_default = layers is None
    if layers is None:
        parts = sorted({max(1, n_layers * quarters // 4) for quarters in (1, 2, 3)} - {n_layers})
        layers = ["all", *(f"first:{n}" for n in parts), *(f"last:{n}" for n in parts)]
    sets = {}
    for given in layers:
        name = given if isinstance(given, str) else ",".join(map(str, given))
        chosen = named_layers(given, n_layers) if isinstance(given, str) else check_layers(given, n_layers)
        found = [layer for layer in chosen if layer in collected]
        partly = name == "all" or name.startswith(("first:", "last:"))  # as views, these mean the layers there are
        if not found and by_default and name != "all":
            continue
        if (not found and name != "all") or (found != chosen and not partly):
            raise InputError(f"Layers {name} were asked for; activations are there of {list(collected)}.")
        sets[name] = found
    return sets


def sites_of(fit: Editor, sets: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, ...] | None]:
    """By the name of a set of layers, the sites that a fit edits there; without the sets where it edits none."""
    found: dict[str, tuple[str, ...] | None] = {}
    for name, layers in sets.items():
        sites = tuple(str(site) for site in fit.sites if site.layer in layers)
        if name == "all" or sites:
            found[name] = None if name == "all" else sites
    return found


def keys_and_editors(editors: TunedEditors) -> tuple[list[str], dict[str, Editor]]:
    """A digest of what each editor does, so that equal ones are measured once; and by digest, the editor.

    Equal edits of different fits are one object in these editors, by which runs that share blocks know them, and edits that
    do nothing are left out.
    """
    digests = [
        {str(site): digest(edit) for site, edit in fit.edits.items() if not edit.is_identity} for fit in editors.fits
    ]
    keys: list[str] = []
    found: dict[str, Editor] = {}
    edits: dict[tuple[str, float], Edit] = {}
    for view in editors.views:
        own, fit = digests[view.fit], editors.fits[view.fit]
        does = {site: own[site] for site in view.sites or own if site in own} if view.strength else {}
        keys.append(digest(does, view.strength, fit.where) if does else UNEDITED)
        if does and keys[-1] not in found:
            for site, name in does.items():
                if (name, view.strength) not in edits:
                    edits[name, view.strength] = fit[site].scaled(view.strength)
            found[keys[-1]] = replace(
                fit, edits={Site.of(site): edits[name, view.strength] for site, name in does.items()}
            )
    return keys, found


def shown_settings(methods: Sequence[Method]) -> list[str]:
    """Names of settings that differ between methods of a class, or from their defaults."""
    shown: dict[str, None] = {}
    for cls in dict.fromkeys(map(type, methods)):
        alike = [settings_of(method) for method in methods if type(method) is cls]
        defaults = {one.name: one.default for one in fields(cls)}
        for name in alike[0]:
            usual = alike[0][name] if defaults[name] is MISSING else defaults[name]
            if any(settings[name] != usual for settings in alike):
                shown[name] = None
    return list(shown)


def row_of(
    method: Method, shown: Sequence[str], layers: str, view: View, fit: Editor, measured: Measured
) -> dict[str, object]:
    """A row of the table."""
    settings = settings_of(method)
    cells = {name: settings.get(name) for name in shown}
    plain = {
        name: value if value is None or isinstance(value, bool | int | float | tuple) else str(value)
        for name, value in cells.items()
    }
    reports = [report for site, report in fit.card.reports.items() if view.sites is None or str(site) in view.sites]
    ranks = [
        "+".join(f"{value:g}" for name, value in report.numbers.items() if name.startswith("rank_")) or str(report.rank)
        for report in reports
    ]
    shares = [value for report in reports for name, value in report.numbers.items() if name.startswith("clamped_")]
    return {
        "method": method.name,
        **plain,
        "layers": layers,
        "strength": view.strength,
        "ranks": "  ".join(ranks),
        **({"clamped": max(shares)} if shares else {}),
        **measured.columns,
    }
