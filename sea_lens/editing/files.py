"""Editors on disk: `editor.safetensors` beside `config.json`, bound together by a digest. No code is ever loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from sea_lens.cache import load_tensors, save_tensors, write_text
from sea_lens.editing.card import EditorCard
from sea_lens.editing.edits import Edit
from sea_lens.editing.registry import edit_of_0_1, from_plain, to_plain
from sea_lens.editing.where import From, Where
from sea_lens.errors import FileFormatError, reason_of
from sea_lens.models.hub import check_repository
from sea_lens.models.loading import NAMED
from sea_lens.models.sites import Site, named_sites

FORMAT = "sea_lens.editor/2"
FORMAT_OF_0_1 = "sea_lens.editor/1"
TENSORS = "editor.safetensors"
CONFIG = "config.json"
ALIGNMENT = 64
"""Bytes that the memory of a tensor of torch's own begins at a multiple of, on the CPU."""
MODEL_CARD = """---
{{ card_data }}
---

An activation editor made with sea_lens: method {{ method }}, fitted on {{ fitted_on }}, editing {{ sites }}.
Settings, demonstrations and versions stand in `config.json` under `card`.

```python
import sea_lens as sl

model = sl.load_model("{{ model }}")  # or where your folder of it is
editor = sl.Editor.from_pretrained("{{ folder }}")  # or its name on the hub
print(sl.generate(model, [{"role": "user", "content": "..."}], editor))  # or a plain text
```

<!-- written by sea_lens, and again whenever an editor is saved here; without this line, the file stays as it is -->
"""
WRITTEN = "<!-- written by sea_lens, "
CACHED = re.compile(r"-[0-9a-f]{16}-\w+$")
"""What the cache adds to a GGUF file's name: the file's digest and the dtype."""


def write_editor_files(folder: Path, edits: Mapping[Site, Edit], card: EditorCard, where: Where | None) -> None:
    """Writes the tensors, then the JSON with a digest over both.

    Raises:
        InputError: If an edit, a setting or the choice of tokens cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {
        "format": FORMAT,
        "library_name": "sea_lens",
        "edits": {site.hook_name: to_plain(edit, tensors, site.hook_name) for site, edit in edits.items()},
        "where": to_plain(where, tensors, "where"),
        "card": card.to_json(),
    }
    save_tensors(tensors, folder / TENSORS, {"format": FORMAT})
    config["sha256"] = _digest(config, folder / TENSORS)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    readme = folder / "README.md"
    if readme.exists() and WRITTEN in readme.read_text(encoding="utf-8", errors="replace"):
        readme.unlink()  # of the editor before; the hub's mixin writes one where there is none


def words_of_card(card: EditorCard, sites: Iterable[Site], folder: Path) -> dict[str, str]:
    """What fills in the model card of an editor that is saved to a folder."""
    n, model = card.n_demonstrations, "MODEL" if card.model is None else CACHED.sub("", card.model.name)
    words = {
        "method": card.method,
        "fitted_on": ("" if n is None else f"{n:,} demonstrations with ") + ("a model" if model == "MODEL" else model),
        "sites": named_sites(list(sites)),
        "model": word if (word := model.removeprefix("sea-lens-")) in NAMED else model,
        "folder": folder.resolve().name,
    }
    return {name: re.sub(r"[`\"\n\r]", " ", text) for name, text in words.items()}


def read_editor_files(folder: Path) -> tuple[dict[Site, Edit], EditorCard, Where | None]:
    """Reads edits, card and choice of tokens, of this version and of 0.1.

    Raises:
        FileFormatError: If a file is missing, truncated, changed since it was written, or not an editor's, or if it
            holds a kind of edit that is not registered.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{folder / CONFIG} could not be read as JSON: {reason_of(error)}") from error
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, FORMAT_OF_0_1):
        raise FileFormatError(f"{folder} does not hold an editor of sea_lens ({FORMAT}).")
    tensors = {name: _aligned(tensor) for name, tensor in load_tensors(folder / TENSORS)[0].items()}
    if config.pop("sha256", None) != _digest(config, folder / TENSORS):
        raise FileFormatError(
            f"The editor in {folder} was changed after it was saved (its digest does not match). Save or fetch it anew."
        )
    try:
        card = EditorCard.from_json(config["card"])
        if config["format"] == FORMAT_OF_0_1:
            return (
                _edits_of_0_1(config, tensors),
                card,
                None if config["positions"] is None else From(config["positions"]),
            )
        edits = {Site.of(site): from_plain(plain, tensors) for site, plain in config["edits"].items()}
        where = from_plain(config["where"], tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        raise FileFormatError(f"The editor in {folder} is damaged: {error}") from error
    if not edits:
        raise FileFormatError(f"The editor in {folder} is damaged: it holds no edit.")
    strange = [type(one).__name__ for one in edits.values() if not isinstance(one, Edit)]
    if strange or not (where is None or isinstance(where, Where)):
        raise FileFormatError(
            f"The editor in {folder} is damaged: it holds {strange or type(where).__name__} as an edit."
        )
    return edits, card, where


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor where torch would have put it: sums over memory that begins elsewhere are rounded in another order."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _edits_of_0_1(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[Site, Edit]:
    site = config["card"].get("site", "resid_post")
    return {
        Site(int(layer), site): edit_of_0_1(facts, {name: tensors[f"{layer}.{name}"] for name in facts["tensors"]})
        for layer, facts in config["edits"].items()
    }


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
    if not local_files_only and cache_dir is None:
        check_repository("an editor", model_id, revision, token)
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


def _digest(config: Mapping[str, Any], tensors: Path) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(tensors.read_bytes())
    return digest.hexdigest()
