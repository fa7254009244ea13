"""Names of version 0.1 that go away in the next version."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sea_lens.arguments import check_arguments
from sea_lens.editing.editor import Editor
from sea_lens.methods.grid import check_settings
from sea_lens.methods.sea.sea import SEA, Share
from sea_lens.models.activations import Activations


def fit_sea(
    activations: Activations,
    explained_variance: Share = 0.998,
    *,
    layers: Iterable[int] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    **settings: Any,
) -> Editor:
    """`SEA(explained_variance, ...).fit(activations)`, as version 0.1 called it. It goes away in the next version.

    Args:
        activations: As for `SEA.fit`.
        explained_variance: As for `SEA`.
        layers: Layers to fit; all that `activations` has for None.
        dtype: As for `SEA.fit`.
        progress: As for `SEA.fit`.
        **settings: The other settings of `SEA`.

    Returns:
        The editor, with one edit per site.

    Raises:
        InputError: As `SEA` and `SEA.fit`.
        ModelMismatchError: If a layer is not there.

    Example:
        >>> sl.fit_sea(activations, 0.9, center=True).layers
        [0, 1, 2, 3]
    """
    check_arguments(fit_sea, locals())
    chosen = activations if layers is None else activations.at_sites(layers)
    check_settings(SEA, settings)
    return SEA(explained_variance, **settings).fit(chosen, dtype=dtype, progress=progress)
