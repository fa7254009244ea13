"""How wide an attention head is, for methods that edit heads."""

from __future__ import annotations

from sea_lens.errors import InputError
from sea_lens.models.activations import Activations
from sea_lens.models.sites import Site
from sea_lens.wording import setting


def head_width(activations: Activations, site: Site, d_head: int | None = None) -> int:
    """Coordinates of a head at a site where heads lie side by side.

    Args:
        activations: Whose model says how many heads there are.
        site: `attn.hook_z` of a layer; another one only with `d_head`.
        d_head: The width, where it is given.

    Raises:
        InputError: If the width is not known, or does not divide the site's.
    """
    width = activations[activations.roles[0]][site].shape[1]
    if d_head is None:
        n_heads = None if activations.model is None else activations.model.n_heads
        if site.name != "attn.hook_z" or n_heads is None:
            raise InputError(
                f"{site} has no known attention heads. Collect activations with {setting('site', 'attn.hook_z')}, or give "
                f"{setting('d_head')}."
            )
        d_head = width // n_heads
    if width % d_head:
        raise InputError(
            f"Heads of width {d_head} do not divide the width {width} of {site}. Give another {setting('d_head')}."
        )
    return d_head
