"""Editors that add one vector at each layer, as the control vectors of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.cache import whole_file
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit
from sea_lens.errors import InputError
from sea_lens.models.bridge import UNKNOWN_MODEL
from sea_lens.wording import either

ARCHITECTURE = "controlvector"
SITE = "resid_post"


def export_control_vector(editor: Editor, path: str | Path, *, model_hint: str | None = None) -> Path:
    """Writes an editor as a control vector in GGUF: `llama-server -m model.gguf --control-vector path` then edits by it.

    llama.cpp adds `direction.N` to every token's residual stream after block N, counted from 0, which is this package's
    layer N at `resid_post`. So the numbers are the same; only a `direction.0` is refused there, and layer 0 cannot be
    exported. Layers without a direction are left alone. The strength is in the vectors: the exported file at llama.cpp's
    scale 1 is the editor as it is, and `--control-vector-scaled path 0.5` is `editor.scaled(0.5)`.

    Fits on real models spare the first token and massive ones, which llama.cpp cannot: export `editor.at_positions("all")`,
    and measure that edit, as it is another.

    Args:
        editor: One that adds a vector to every token, such as `MeanDifference` fits and `AffineEdit.of_shift` is.
        path: The file to write, `.gguf`.
        model_hint: What the file says that it is for; the name of the editor's model if left out. llama.cpp does not read it.

    Returns:
        The path.

    Raises:
        InputError: If an edit is anything but a shift of `resid_post`, of all tokens and from layer 1 on (with the reason),
            or the package `gguf` is missing.

    Example:
        >>> warmer = sl.Editor({2: sl.AffineEdit.of_shift(torch.ones(128), strength=0.5)})
        >>> sl.export_control_vector(warmer, "warmer.gguf").name  # doctest: +SKIP
        'warmer.gguf'

    Source: `src/llama-adapter.cpp` and `common/common.cpp` of llama.cpp. repeng's `ControlVector.export_gguf` agrees.
    """
    check_arguments(export_control_vector, locals())
    vectors = control_vectors(editor)
    if find_spec("gguf") is None:
        raise InputError('Writing GGUF needs the package gguf. Run `pip install "sea-lens[gguf]"`.')
    from gguf import GGUFWriter

    known = None if editor.card.model is None else editor.card.model.name
    with whole_file(Path(path)) as file:
        writer = GGUFWriter(file, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or known or UNKNOWN_MODEL)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def control_vectors(editor: Editor) -> dict[int, Float[Tensor, " width"]]:
    """What an editor adds after each layer, in float32 on the CPU, its strength included.

    Raises:
        InputError: If it does anything else.
    """
    if editor.where is not None:
        raise InputError(
            f"A control vector is added to every token, and this editor edits {editor.where}. If you mean to edit all, "
            + either('export editor.at_positions("all")', "give --all-tokens")
            + ", and measure that."
        )
    found: Mapping[int, Tensor | None] = {
        site.layer if site.layer is not None else -1: _vector(edit, str(site), site.name)
        for site, edit in editor.edits.items()
        if not edit.is_identity
    }
    vectors = {layer: vector for layer, vector in found.items() if vector is not None}
    if 0 in vectors:
        raise InputError(
            "llama.cpp has no control vector at layer 0, and this editor edits it. "
            + either("Export editor.at_layers(...) of the others", "Fit one of other --layers")
            + ", and measure that."
        )
    if not vectors:
        raise InputError("This editor changes nothing, so there is nothing to export.")
    return vectors


def _vector(edit: Edit, site: str, name: str) -> Tensor:
    """What one edit adds.

    Raises:
        InputError: If it does anything else.
    """
    why = None
    if name != SITE:
        why = f"is not at {SITE}"
    elif not isinstance(edit, AffineEdit):
        why = f"is a {type(edit).__name__}, which adds another vector to each token"
    elif edit.rank:
        why = f"has rank {edit.rank}: what it adds depends on the token"
    elif edit.keep != 1:
        why = f"keeps {edit.keep:g} of the activation"
    elif edit.restore_norm:
        why = "restores each token's norm"
    if why is not None or not isinstance(edit, AffineEdit) or edit.shift is None:
        raise InputError(
            f"A control vector only adds one vector to the residual stream, and the edit {site} {why}. Editors of "
            "MeanDifference or PCADifference at resid_post can be exported."
        )
    return (edit.strength * edit.shift.detach()).to("cpu", torch.float32).contiguous()
