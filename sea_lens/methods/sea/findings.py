"""What to say of an editor of SEA that does next to nothing, or clamps much, and what to try."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from sea_lens.editing.card import FitReport
from sea_lens.editing.editor import Editor
from sea_lens.errors import SeaLensWarning
from sea_lens.models.sites import Site, named_sites
from sea_lens.wording import either, setting

NEARLY_NOTHING = 0.01
"""Share of the norm below which an edit is reported as doing next to nothing."""
NEARLY_ALL = 0.75
"""Share of the sites that may do next to nothing before it is warned about."""
MUCH = 1.0
"""Norms that all sites together move activations by, from which a warning is due. It is a rule of thumb: of 10 fits past it,
on two embedded worlds and SmolLM2 (dequantized Q4), 9 cost over 1 nat per token of neutral text and one 0.86; of 53 below it,
3 cost over 1 nat, one of them at 0.34 norms. What an edit costs does not follow from the activations alone."""
MANY_CLAMPED = 0.01
"""Share of clamped entries above which it is warned about."""


def warn_of(editor: Editor, center: bool) -> None:
    """Warns the caller of a fit if its editor does next to nothing, or clamps much."""
    for text in (_does_nothing(editor, center), _compounds(editor), *_clamps(editor.card.reports)):
        if text:
            warnings.warn(text, SeaLensWarning, stacklevel=3)  # the caller of `fit`


def _does_nothing(editor: Editor, center: bool) -> str:
    found = editor.card.reports
    ranks = ", ".join(
        f"{_range(one[f'rank_{side}'] for one in found.values())} {side}" for side in ("positive", "negative")
    )
    centering = (
        "Activations share a dominant mean, and both subspaces may be little more than it: try "
        f"{setting('center', True)}, at one layer or at a small strength first, for centered edits of many "
        "layers can break a model. "
    )
    remedy = ("Raise" if center else f"{centering}Otherwise raise") + (
        f" {setting('explained_variance')}, give the positive and the negative different {setting('ranks')}, or look at "
        f"{either('demonstrations.check()', 'the demonstrations')} and the token choice. On "
        "SmolLM2-135M-Instruct and Gemma 3 270M no setting of SEA had an effect worth the name, and "
        "MeanDifference had (docs/real_models.md)."
    )
    if editor.is_identity:
        return (
            "This editor edits nothing: at every layer the positive and the negative subspace are the same, so their "
            f"projectors cancel (ranks: {ranks}). {remedy}"
        )
    moved = {site: one.displacement or 0.0 for site, one in found.items()}
    still = [site for site, share in moved.items() if share < NEARLY_NOTHING]
    if len(still) == len(moved):
        return (
            f"This editor edits next to nothing: it moves the neutral activations by at most {max(moved.values()):.2%} of "
            f"their norm at any layer (ranks: {ranks}). {remedy}"
        )
    if len(still) >= NEARLY_ALL * len(moved):
        return (
            f"This editor edits next to nothing at {len(still)} of its {len(moved)} sites: it moves the neutral activations "
            f"by under {NEARLY_NOTHING:.0%} of their norm at {named_sites(still)}. {remedy}"
        )
    return ""


def _range(ranks: Iterable[float]) -> str:
    """One rank, or the lowest and the highest of several: a line, however many layers there are."""
    known = sorted(int(rank) for rank in ranks)
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _compounds(editor: Editor) -> str:
    moved = [one.displacement or 0.0 for one in editor.card.reports.values()]
    if len(moved) < 2 or sum(moved) < MUCH:
        return ""
    return (
        f"This editor moves activations by {sum(moved) / len(moved):.0%} of their norm at each of {len(moved)} sites on "
        f"average, {sum(moved):.2g} norms together, and edits compound. On SmolLM2-135M-Instruct such edits of 15 and 30 "
        "layers cost 2.6 to 13 nats per token, and the text was gone. "
        + either("Take editor.scaled_to(model, kl=0.1), or one layer.", "Give --kl 0.1, or one layer.")
    )


def _clamps(found: Mapping[Site, FitReport]) -> list[str]:
    texts = []
    for what, why in (
        (
            "clamped_activations",
            "lie outside the domain of the feature map, where it saturates, and are edited as if at its end",
        ),
        ("clamped_features", "are edited to where the feature map has no values, and come back as the nearest it has"),
    ):
        shares = {site.layer: one[what] for site, one in found.items() if what in one}
        if any(share > MANY_CLAMPED for share in shares.values()):
            listed = ", ".join(f"layer {layer} {share:.1%}" for layer, share in shares.items() if share > MANY_CLAMPED)
            texts.append(
                f"Entries of the neutral activations {why}: {listed}. Give the feature map a larger scale, or fit at a "
                f"larger {setting('feature_unit')}."
            )
    return texts
