"""Editors on disk: `editor.safetensors` beside `config.json`, bound together by a digest. No code is ever loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from sea_lens.cache import load_tensors, save_tensors, write_text
from sea_lens.editing.card import JSON, EditorCard
from sea_lens.editing.edits import Edit, LowRankEdit
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods.sea.feature_space import KNOWN, FeatureMap, FeatureSpaceEdit, parameters_of
from sea_lens.methods.sea.published import PublishedEdit

SavedEdit = LowRankEdit | FeatureSpaceEdit | PublishedEdit
FORMAT = "sea_lens.editing.editor/1"
TENSORS = "editor.safetensors"
CONFIG = "config.json"


def write_editor_files(folder: Path, edits: Mapping[int, Edit], card: EditorCard, positions: int | None) -> None:
    """Writes the tensors, then the JSON with a digest over both."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, JSON] = {}
    for layer, edit in edits.items():
        their_tensors, facts[str(layer)] = _write_edit(edit, layer)
        tensors |= {f"{layer}.{name}": tensor for name, tensor in their_tensors.items()}
    save_tensors({name: tensor.cpu() for name, tensor in tensors.items()}, folder / TENSORS, {"format": FORMAT})
    config: dict[str, JSON] = {
        "format": FORMAT,
        "library_name": "sea_lens",
        "positions": positions,
        "edits": facts,
        "card": card.to_json(),
    }
    config["sha256"] = _digest(config, folder / TENSORS)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def read_editor_files(
    folder: Path, feature_map: FeatureMap | None = None
) -> tuple[dict[int, SavedEdit], EditorCard, int | None]:
    """Reads edits, card and positions.

    Args:
        folder: Where they are.
        feature_map: Stands in for a feature map that is not one of ours, of which the file holds only the name.

    Raises:
        FileFormatError: If a file is missing, truncated, changed since it was written, or not an editor's, or if it names a
            feature map that is not ours and none is given.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{folder / CONFIG} could not be read as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise FileFormatError(f"{folder} does not hold an editor of sea_lens ({FORMAT}).")
    tensors, _ = load_tensors(folder / TENSORS)
    if config.pop("sha256", None) != _digest(config, folder / TENSORS):
        raise FileFormatError(
            f"The editor in {folder} was changed after it was saved (its digest does not match). Save or fetch it anew."
        )
    try:
        edits = {
            int(layer): _read_edit(facts, {name: tensors[f"{layer}.{name}"] for name in facts["tensors"]}, feature_map)
            for layer, facts in config["edits"].items()
        }
        return edits, EditorCard.from_json(config["card"]), config["positions"]
    except FileFormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"The editor in {folder} is damaged: {error}") from error


def fetch_editor_folder(
    model_id: str,
    revision: str | None,
    cache_dir: str | Path | None,
    force_download: bool,
    local_files_only: bool,
    token: str | bool | None,
) -> Path:
    """The local folder of an editor: the folder itself, or the hub cache's after a download of its two files.

    Raises:
        FileFormatError: If it is neither a folder nor the name of a repository.
    """
    if Path(model_id).is_dir():
        return Path(model_id)
    try:
        paths = [
            hf_hub_download(
                model_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            for name in (CONFIG, TENSORS)
        ]
    except HFValidationError as error:
        raise FileFormatError(f"{model_id} is neither a folder nor the name of a repository: {error}") from error
    except LocalEntryNotFoundError as error:
        raise FileFormatError(
            f"There is no folder {model_id}, and no editor of that name in the hub's cache; the hub could not be asked. "
            "Check the path, or go online to fetch it."
        ) from error
    except HfHubHTTPError as error:
        raise FileFormatError(f"There is no folder {model_id}, and the hub has no such editor: {error}") from error
    return Path(paths[0]).parent


def _write_edit(edit: Edit, layer: int) -> tuple[dict[str, Tensor], dict[str, JSON]]:
    """The tensors of an edit, and all else about it."""
    if isinstance(edit, LowRankEdit):
        tensors = {"directions": edit.directions, "eigenvalues": edit.eigenvalues}
        if edit.shift is not None:
            tensors["shift"] = edit.shift
        facts: dict[str, JSON] = {"kind": "low rank", "restore_norm": edit.restore_norm, "kept": edit.kept}
    elif isinstance(edit, FeatureSpaceEdit):
        parts = [_write_edit(part, layer) for part in edit.parts]
        tensors = {
            f"{index}.{name}": tensor for index, (found, _) in enumerate(parts) for name, tensor in found.items()
        }
        facts = {
            "kind": "feature space",
            "feature_map": type(edit.feature_map).__name__,
            "parameters": dict(parameters_of(edit.feature_map))
            if _is_ours(edit.feature_map)
            else str(edit.feature_map),
            "parts": [part for _, part in parts],
            "unit": edit.unit,
            "weight": edit.weight,
            "restore_norm": edit.restore_norm,
        }
    elif isinstance(edit, PublishedEdit):
        tensors = {"kept": edit.kept, "removed": edit.removed}
        facts = {"kind": "published", "feature_function": edit.feature_function}
    else:
        raise InputError(
            f"Layer {layer} holds a {type(edit).__name__}, which is not saved. Save the editor it was made from."
        )
    return tensors, {**facts, "strength": edit.strength, "tensors": list(tensors)}


def _read_edit(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], feature_map: FeatureMap | None) -> SavedEdit:
    if facts["kind"] == "low rank":
        return _read_low_rank(facts, tensors)
    if facts["kind"] == "published":
        return PublishedEdit(tensors["kept"], tensors["removed"], facts["feature_function"], facts["strength"])
    if facts["kind"] != "feature space":
        raise FileFormatError(f"It holds an edit of a kind that this version does not know: {facts['kind']!r}.")
    return FeatureSpaceEdit(
        _feature_map(facts["feature_map"], facts["parameters"], feature_map),
        tuple(_read_low_rank(part, tensors, f"{index}.") for index, part in enumerate(facts["parts"])),
        unit=facts["unit"],
        weight=facts["weight"],
        strength=facts["strength"],
        restore_norm=facts["restore_norm"],
    )


def _read_low_rank(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = "") -> LowRankEdit:
    return LowRankEdit(
        tensors[f"{prefix}directions"],
        tensors[f"{prefix}eigenvalues"],
        tensors.get(f"{prefix}shift"),
        strength=facts["strength"],
        restore_norm=facts["restore_norm"],
        kept=facts["kept"],
    )


def _is_ours(feature_map: FeatureMap) -> bool:
    return type(feature_map) is KNOWN.get(type(feature_map).__name__)


def _feature_map(name: str, parameters: Mapping[str, float] | str, own: FeatureMap | None) -> FeatureMap:
    """One of ours out of its parameters; one of the user's out of what they give, checked against its saved text."""
    if not isinstance(parameters, str):
        ours = KNOWN[name](**parameters)
        if own is not None and own != ours:
            raise FileFormatError(
                f"The editor was fitted with {ours}, and feature_map={own} was given. Leave that out."
            )
        return ours
    if own is None or type(own).__name__ != name:
        raise FileFormatError(
            f"The editor was fitted with a feature map of its maker's own, {name}, and files hold no code. Give it: "
            f"from_pretrained(..., feature_map={name}(...))."
        )
    if " at 0x" not in parameters and str(own) != parameters:  # the text of an object that tells its parameters
        raise FileFormatError(f"The editor was fitted with {parameters}, and feature_map={own} was given.")
    return own


def _digest(config: dict[str, JSON], tensors: Path) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(tensors.read_bytes())
    return digest.hexdigest()
