"""Editors on disk: `editor.safetensors` beside `config.json`, bound together by a digest. No code is ever loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from sea_lens.editor_card import JSON, EditorCard
from sea_lens.edits import Edit, LowRankEdit
from sea_lens.errors import FileFormatError, InputError
from sea_lens.tensor_files import load_tensors, save_tensors, write_text

FORMAT = "sea_lens.editor/1"
TENSORS = "editor.safetensors"
CONFIG = "config.json"


def write_editor_files(folder: Path, edits: Mapping[int, Edit], card: EditorCard, positions: int | None) -> None:
    """Writes the tensors, then the JSON with a digest over both."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, JSON] = {}
    for layer, edit in edits.items():
        if not isinstance(edit, LowRankEdit):
            raise InputError(
                f"Layer {layer} holds a {type(edit).__name__}, which is not saved. Save the editor it was made from."
            )
        tensors[f"{layer}.directions"] = edit.directions
        tensors[f"{layer}.eigenvalues"] = edit.eigenvalues
        if edit.shift is not None:
            tensors[f"{layer}.shift"] = edit.shift
        facts[str(layer)] = {
            "strength": edit.strength,
            "restore_norm": edit.restore_norm,
            "kept": edit.kept,
            "shifted": edit.shift is not None,
        }
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


def read_editor_files(folder: Path) -> tuple[dict[int, LowRankEdit], EditorCard, int | None]:
    """Reads edits, card and positions.

    Raises:
        FileFormatError: If a file is missing, truncated, changed since it was written, or not an editor's.
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
            int(layer): LowRankEdit(
                tensors[f"{layer}.directions"],
                tensors[f"{layer}.eigenvalues"],
                tensors[f"{layer}.shift"] if facts["shifted"] else None,
                strength=facts["strength"],
                restore_norm=facts["restore_norm"],
                kept=facts["kept"],
            )
            for layer, facts in config["edits"].items()
        }
        return edits, EditorCard.from_json(config["card"]), config["positions"]
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


def _digest(config: dict[str, JSON], tensors: Path) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(tensors.read_bytes())
    return digest.hexdigest()
