"""Several edits as one editor: their order, what follows what at a site, one card for two, and the lines that show them."""

from __future__ import annotations

from collections.abc import Mapping

from sea_lens.editing.affine import in_sequence
from sea_lens.editing.card import EditorCard
from sea_lens.editing.edits import KEY, Edit, key_width_of
from sea_lens.editing.keyed import OUT, KeyedEdit
from sea_lens.editing.where import Where
from sea_lens.errors import InputError
from sea_lens.models.bridge import UNKNOWN_MODEL
from sea_lens.models.sites import Site, named_sites


def in_order(
    given: Mapping[Site, Edit] | Mapping[int, Edit] | Mapping[str, Edit], where: Where | None
) -> dict[Site, Edit]:
    """Edits as a pass comes to them.

    Raises:
        InputError: If there are none, or none that are edits, their widths differ at one site, one that reads keys is not at
            `mlp_out`, or a condition reads a site after them.
    """
    if not isinstance(given, Mapping) or not all(isinstance(edit, Edit) for edit in given.values()):
        raise InputError(
            f"An editor is made of edits by layer or site: {{3: AffineEdit(...)}}; {given!r:.80} was given."
        )
    edits = {Site.of(site): edit for site, edit in given.items()}
    if not edits:
        raise InputError("An editor needs at least one layer, and no layer is left. Check the layers asked for.")
    pairs = [str(site) for site in edits if site.is_per_pair]
    if pairs:
        raise InputError(
            f"{pairs[0]} holds a number per pair of tokens, and an edit is one of an activation per token. Edit "
            "attn.hook_z, which it makes."
        )
    widths: dict[str, set[int]] = {}
    for site, edit in edits.items():
        widths.setdefault(site.name, set()).add(edit.width)
    odd = {name: sorted(found) for name, found in widths.items() if len(found) > 1}
    if odd:
        raise InputError(f"All edits of one site must share one width; they have {odd}.")
    astray = [site for site, edit in edits.items() if key_width_of(edit) is not None and site.name != OUT]
    if astray:
        raise InputError(
            f"An edit that reads {KEY} edits {OUT} of the same layer, and {', '.join(map(str, astray))} was given. Give "
            "'blocks.LAYER.hook_mlp_out'."
        )
    reads = None if where is None else where.reads
    if reads is not None and min(edits) < reads:
        raise InputError(
            f"The condition reads {reads}, which comes after the first edit, {min(edits)}. Read an earlier site."
        )
    return dict(sorted(edits.items()))


def edits_in_sequence(first: Mapping[Site, Edit], second: Mapping[Site, Edit]) -> dict[Site, Edit]:
    """The edits of both; at a site of both the second after the first, as one where they can be one."""
    edits = {**first, **second}
    for site in first.keys() & second.keys():
        one, other = first[site], second[site]
        if isinstance(one, KeyedEdit) and isinstance(other, KeyedEdit):
            edits[site] = one.then(other)
        else:
            edits[site] = in_sequence(one, other)
    return edits


def card_of_both(first: EditorCard, second: EditorCard) -> EditorCard:
    """Where an editor comes from that is the sum of two."""
    return EditorCard(
        f"{first.method} + {second.method}",
        {"parts": [dict(first.settings), dict(second.settings)]},
        first.token,
        first.model or second.model,
        versions=first.versions,
    )


def summary_of(edits: Mapping[Site, Edit], card: EditorCard, where: Where | None) -> str:
    """An editor's repr: a line for all, and one for each site, or for all sites of which the same is said."""
    origin = UNKNOWN_MODEL if card.model is None else card.model.name
    strengths = sorted({edit.strength for edit in edits.values()})
    names = sorted({site.name for site in edits})
    widths = sorted({edit.width for edit in edits.values()})
    how = "site after site " if card.in_sequence else ""
    head = (
        f"Editor({card.method}, fitted {how}on {origin}, {', '.join(names)}, width {', '.join(map(str, widths))}, "
        f"{'every position' if where is None else where}, "
        f"strength {', '.join(f'{strength:g}' for strength in strengths)})"
    )
    alike: dict[str, list[Site]] = {}
    for site, edit in edits.items():
        found = card.reports.get(site)
        alike.setdefault(f"{edit.summary}{'' if found is None else found}", []).append(site)
    by_site = {site: said for said, sites in alike.items() for site in sites}
    lines = []
    if len(names) == 1:
        for site in edits:
            lines.append(f"  {f'layer {site.layer:>2}' if site.layer is not None else site}: {by_site[site]}")
    else:  # an editor of a direction has the same edit at many sites
        lines = [f"  {sites[0] if len(sites) == 1 else named_sites(sites)}: {said}" for said, sites in alike.items()]
    return "\n".join([head, *lines])
