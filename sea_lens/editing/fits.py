"""Whether an editor fits a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import nn

from sea_lens.editing.edits import KEY, Edit, key_width_of
from sea_lens.editing.where import Where
from sea_lens.errors import ModelMismatchError, SeaLensWarning
from sea_lens.models.bridge import UNKNOWN_MODEL, Model, ModelInfo, check_is_model
from sea_lens.models.down_projection import check_key_width
from sea_lens.models.no_model import no_model_error
from sea_lens.models.plain import check_no_virtual_tokens, is_plain, places_of, plain_info
from sea_lens.models.points import points_of
from sea_lens.models.sites import Site, check_layers
from sea_lens.wording import either


def sites_of_edits(edits: Mapping[Site, Edit], where: Where | None) -> list[Site]:
    """Every site that is edited or read."""
    reads = [] if where is None or where.reads is None else [where.reads]
    return [*reads, *(Site(site.layer, KEY) for site, edit in edits.items() if key_width_of(edit) is not None), *edits]


def check_has_points(model: object) -> None:
    """Refuses a model that takes no list of TransformerLens's hooks.

    Raises:
        ModelMismatchError: If it is a plain one, or none.
    """
    if is_plain(model):
        raise ModelMismatchError(
            f"A list of hooks is for a TransformerBridge, and {type(model).__name__} is a plain Hugging Face model, which "
            "has no hook points. Edit it with: with editor.attached(model)."
        )
    check_is_model(model)


def check_fits(
    edits: Mapping[Site, Edit], where: Where | None, ours: ModelInfo | None, model: Model | nn.Module
) -> None:
    """Checks that edits fit a model.

    Args:
        edits: By site.
        where: Which tokens are edited.
        ours: The model they were fitted on, where known.
        model: The model they are for.

    Raises:
        ModelMismatchError: If width, depth or weight processing differ, or the model lacks a layer or a site.
    """
    sites = sites_of_edits(edits, where)
    if is_plain(model):
        theirs = plain_info(model)
        check_sizes(edits, theirs)
        places_of(model, sites)
        if where is not None:
            check_no_virtual_tokens(model)
    elif not hasattr(model, "original_model"):
        raise no_model_error(model)
    else:
        check_is_model(model)
        theirs = ModelInfo.of(model)
        check_sizes(edits, theirs)
        _check_points(edits, sites, model)
    if ours is not None:
        check_origin(ours, theirs)


def check_sizes(edits: Mapping[Site, Edit], theirs: ModelInfo) -> None:
    """Checks that edits fit a model's width and depth.

    Raises:
        ModelMismatchError: If they do not.
    """
    for site, edit in edits.items():
        if site.in_stream and theirs.d_model != edit.width:
            raise ModelMismatchError(
                f"This editor is for d_model {edit.width}, and {theirs.name} has d_model {theirs.d_model}. "
                "Fit an editor on this model."
            )
    layers = [site.layer for site in edits if site.layer is not None]
    if layers:
        check_layers(layers, theirs.n_layers)


def _check_points(edits: Mapping[Site, Edit], sites: Iterable[Site], model: Model) -> None:
    points = points_of(model)
    for site in sites:
        if site.hook_name not in points:
            site.check(model)  # which says what the model has
    for site, edit in edits.items():
        width = key_width_of(edit)
        if width is not None and site.layer is not None:
            check_key_width(model, site.layer, width)


def check_origin(ours: ModelInfo, theirs: ModelInfo) -> None:
    """Checks that a model is of the kind that an editor was fitted on.

    Raises:
        ModelMismatchError: If depth or weight processing differ.

    Warns:
        SeaLensWarning: If the names do, or whether plain prompts get a beginning token.
    """
    if ours.n_layers != theirs.n_layers:
        raise ModelMismatchError(
            f"This editor is for a model of {ours.n_layers} layers ({ours.name}), and {theirs.name} has "
            f"{theirs.n_layers}. Fit an editor on this model."
        )
    if ours.weights != theirs.weights:
        raise ModelMismatchError(
            f"This editor was fitted with {ours.weights} weights, and {theirs.name} has {theirs.weights} ones: "
            "its site holds other values then. Call enable_compatibility_mode() both when fitting and "
            "when editing, or neither time."
        )
    if ours.name not in (theirs.name, UNKNOWN_MODEL):
        warnings.warn(
            f"This editor was fitted on {ours.name} and is used on {theirs.name}.",
            SeaLensWarning,
            stacklevel=6,  # the with statement of `Editor.attached`
        )
    began, begin = ours.beginning_token, theirs.beginning_token
    if began is not None and begin is not None and began != begin:
        warnings.warn(
            f"This editor was fitted {'with' if began else 'without'} a beginning token before plain prompts, and "
            f"{theirs.name} is used {'with' if begin else 'without'} one. "
            + either(f"Set model.cfg.default_prepend_bos = {began} to use it as fitted.", "Fit it on this model."),
            SeaLensWarning,
            stacklevel=6,
        )
