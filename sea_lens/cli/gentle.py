"""What `sea-lens fit` does unasked, so that a first fit neither does nothing nor breaks the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sea_lens.cli.options import Options
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.method import MethodEntry
from sea_lens.models.bridge import Model
from sea_lens.models.damage import DamageMeter

KL = 0.1
"""What a fit costs at most, unasked, in nats per token of neutral text."""
FIRST: Mapping[str, Mapping[str, Any]] = {"sea": {"explained_variance": 0.5, "center": True}}
"""By method, settings for a first fit that is scaled by what it costs. As published (0.998, uncentered), both of SEA's
subspaces are little more than the mean in real models, and such an edit moves most layers by under 1 %."""

ON_REAL_MODELS: Mapping[str, str] = {
    "sea": "note: on SmolLM2-135M-Instruct and Gemma 3 270M SEA changed preferences by at most 0.3 nats per token within a "
    "KL of 0.5 in eleven of twelve trials (0.6 in one), and mean difference by 1.6 to 6.9 (docs/real_models.md). "
    "`sea-lens study` compares both on your model."
}
"""By method, what is known of it on real models, where it is not good."""


def left_open(entry: MethodEntry) -> dict[str, None]:
    """Settings whose default depends on whether the model is there to scale by."""
    return dict.fromkeys(FIRST.get(entry.name, {}))


def settled(entry: MethodEntry, settings: Options, has_model: bool) -> Options:
    """Settings with those that were left out: the first ones where the model is there, and else the method's own."""
    first = FIRST.get(entry.name, {})
    if not first:
        return settings
    found = {name: value for name, value in settings.items() if name not in first or value is not None}
    by_ranks = found.get("ranks") is not None
    for name, value in first.items():
        if name not in found and has_model and not (by_ranks and name == "explained_variance"):
            found[name] = value
    return found


@contextmanager
def fit_to_scale(kl: float | None, strength: float | None) -> Iterator[None]:
    """Without the warning that edits compound where the edit is scaled next, and what it would cost is said."""
    with warnings.catch_warnings():
        if kl is not None and strength is None:
            warnings.filterwarnings("ignore", "(?s).*and edits compound", SeaLensWarning)
        yield


def scaled_for(model: Model, editor: Editor, kl: float | None, strength: float | None) -> tuple[Editor, str]:
    """An editor at a strength, or, for None, at the largest up to 1 that costs no more than a KL; and what to say of it.

    Without a KL it stays as it was fitted.
    """
    if strength is not None:
        return editor.scaled(strength), f"strength {strength:g}, as asked for"
    if kl is None:
        return editor, "not scaled, as asked for by --kl none"
    try:
        cost = DamageMeter.of(model).measure(editor).kl
    except InputError as error:
        return editor, f"not scaled: {error}"
    if cost <= kl:
        return editor, f"at strength 1 it costs {cost:.2g} nats per token of neutral text, within --kl {kl:g}"
    scaled = editor.scaled_to(model, kl=kl)
    site = editor.sites[0]
    factor = scaled[site].strength / editor[site].strength
    told = (
        f"scaled to strength {factor:.2g}, where it costs {kl:g} nats per token of neutral text; at strength 1 it costs "
        f"{cost:.3g}{', which breaks the model' if cost > 1 else ''} (--strength 1 leaves it there)"
    )
    return scaled, told
