"""Fitting site after site: each edit on activations that the edits before it have moved already.

This is how activation transport is fitted (Rodriguez et al., ICLR 2025, arXiv 2410.23054; "incremental" in its code
`apple/ml-act`), for every method here. Fitted all at once, later edits correct what earlier ones have corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.editing.card import FitReport
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.method import Method
from sea_lens.models.activations import TokenChoice
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.collect import collect_activations
from sea_lens.models.distributed import shows
from sea_lens.models.sites import Names, Site, Sites, model_sites
from sea_lens.wording import either


def fit_in_sequence(
    model: Model,
    demonstrations: Demonstrations,
    method: Method,
    *,
    layers: Sites = None,
    token: TokenChoice = "last",
    site: Names = "resid_post",
    batch_size: int = 32,
    progress: bool = True,
) -> Editor:
    """Fits a method at one site after the other, in the order of a pass, each under the edits at the sites before it.

    Positive and negative texts alike are run under these edits, as in ml-act's code. It takes a collection per site, each up
    to that site: for all layers of a model about half as many passes as collecting once, times the number of layers.

    Such an editor is used, saved and scaled as any other. It cannot be fitted again from activations alone, so `refit`
    refuses it. As a control, fit on demonstrations whose sides are exchanged.

    Example:
        >>> in_turn = sl.fit_in_sequence(model, demonstrations, sl.AcT(), token="mean")
        >>> in_turn.card.in_sequence
        True

    Args:
        model: A TransformerBridge with a tokenizer.
        demonstrations: With neutral answers where the method needs them.
        method: With its settings, such as `sl.AcT()`. One that chooses among sites sees one at a time, and is refused.
        layers: Layers to edit, or sites by name, as in `sea_lens.collect_activations`; all layers for None.
        token: Which token's activation stands for a text.
        site: The hook point in a layer, or several.
        batch_size: Rows in one forward pass.
        progress: Whether to show a progress bar.

    Returns:
        An editor with one edit per site; its card says that it was fitted in sequence.

    Raises:
        InputError: If the method chooses among sites, or edits others than it is fitted on; and as the fit and
            `collect_activations` do.
        ModelMismatchError: If the model lacks a layer or a site.
    """
    check_arguments(fit_in_sequence, locals())
    check_is_model(model)
    if getattr(method, "chooses_sites", False):
        raise InputError(
            f"{type(method).__name__} chooses among all sites at once, so it cannot be fitted on one after the other. "
            + either("Call its fit(activations).", "Leave --in-sequence out.")
        )
    editor: Editor | None = None
    reports: Mapping[Site, FitReport] = {}
    for place in tqdm(model_sites(model, layers, site), desc="sites", unit="site", disable=not shows(progress)):
        activations = collect_activations(
            model, demonstrations, [place], token, batch_size=batch_size, editor=editor, progress=False
        )
        fitted = method.fit(activations)
        if fitted.sites != [place]:
            raise InputError(
                f"{type(method).__name__} was fitted on {place} and edits {', '.join(map(str, fitted.sites[:3]))}: it cannot "
                "be fitted on one site after the other. "
                + either("Call its fit(activations).", "Leave --in-sequence out.")
            )
        reports = {**reports, **fitted.card.reports}
        edits = {**({} if editor is None else editor.edits), **fitted.edits}
        editor = Editor(edits, replace(fitted.card, reports=reports, in_sequence=True), fitted.where)
    assert editor is not None  # there are sites, or model_sites has said so
    return editor
