"""What vLLM's workers are asked to do, by name: attach an editor, detach it, say what it has edited.

vLLM sends names and bytes to its workers without further ado, and functions only under VLLM_ALLOW_INSECURE_SERIALIZATION.
So an editor travels as its two files, and no code does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sea_lens import Editor  # which knows every kind of edit
from sea_lens.editing.files import CONFIG, TENSORS, write_editor_files
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.serving.installing import Installed, install

SERVED = "served"
"""The name of the editor that an engine was made with."""


def attach_to_worker(worker: Any, key: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Installs an editor in a worker.

    Args:
        worker: The worker.
        key: What it is called by `detach_from_worker`.
        files: The editor's files, by name.

    Returns:
        `sites`, the names of those that lie in this worker; `error`, what was wrong, and `kind`, the name of its class.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in (CONFIG, TENSORS):
                (Path(folder) / name).write_bytes(files[name])
            editor = Editor.from_pretrained(folder)
        installed = _installed(worker)[key] = install(worker, editor)
    except (InputError, ModelMismatchError, FileFormatError) as error:
        return {"sites": [], "error": str(error), "kind": type(error).__name__}
    return {"sites": list(installed.report()), "error": None, "kind": None}


def detach_from_worker(worker: Any, key: str) -> dict[str, bool]:
    """Takes an editor off; by name of each site of this worker, whether it has edited a token."""
    installed = _installed(worker).pop(key, None)
    if installed is None:
        return {}
    installed.remove()
    return installed.report()


def install_served(worker: Any, name: str, fingerprint: str) -> list[str]:
    """Installs the editor that an engine is to serve.

    Args:
        worker: The worker.
        name: The editor's folder, or its repository on the hub.
        fingerprint: What it was where the engine was made.

    Returns:
        The names of the sites that lie in this worker.

    Raises:
        FileFormatError: If it cannot be read, or is another editor here.
    """
    installed = _installed(worker)
    if SERVED not in installed:
        editor = Editor.from_pretrained(name)
        if editor.fingerprint != fingerprint:
            raise FileFormatError(
                f"{name} holds {editor.fingerprint} for this worker, and {fingerprint} where the engine was made. Put the "
                "same editor there on every node."
            )
        installed[SERVED] = install(worker, editor)
    return list(installed[SERVED].report())


def files_of(editor: Editor) -> dict[str, bytes]:
    """An editor's files, by name.

    Raises:
        InputError: If it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_editor_files(Path(folder), editor.edits, editor.card, editor.where)
        return {name: (Path(folder) / name).read_bytes() for name in (CONFIG, TENSORS)}


def _installed(worker: Any) -> dict[str, Installed]:
    found: dict[str, Installed] = vars(worker).setdefault("_sea_lens", {})
    return found
