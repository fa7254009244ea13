"""ONE resumable store for long jobs: a folder, what made it, numbered pieces; files whole or absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sea_lens.errors import FileFormatError


def claim_folder(folder: Path, job: str, manifest: Mapping[str, object]) -> None:
    """Starts a job in a folder, by writing its manifest there as `{job}.json`, or takes up one with the same manifest.

    Args:
        folder: Where; made if it is not there.
        job: What it is of, in a word.
        manifest: All that decides the job's result, as plain JSON values.

    Raises:
        FileFormatError: If the folder holds another one.
    """
    path = folder / f"{job}.json"
    wanted = json.loads(json.dumps(manifest))
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} could not be read: {error}. Delete the folder to start anew.") from error
        if not isinstance(found, dict):
            raise FileFormatError(f"{path} is not a {job}'s. Delete the folder to start anew.")
        different = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        if different:
            raise FileFormatError(
                f"{folder} holds a {job} that differs in {', '.join(different)}. Choose another folder, or "
                "delete this one."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=1) + "\n")


class Shards:
    """The folder of a running job: a manifest and one file a finished batch, each whole or absent.

    Attributes:
        folder: Where.
        job: What it is of, in a word: the manifest is `{job}.json`.
        shapes: Of the batches, in order.
    """

    def __init__(
        self, folder: Path, job: str, manifest: Mapping[str, object], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """Starts a job, or takes up one with the same manifest.

        Raises:
            FileFormatError: If the folder holds another one.
        """
        self.folder, self.job, self.shapes = folder, job, shapes
        claim_folder(folder, job, manifest)

    def _path(self, number: int) -> Path:
        return self.folder / f"batch-{number:06d}.safetensors"

    def read(self, number: int) -> Tensor | None:
        """A finished batch; None where it is missing or damaged, and so to be done again."""
        try:
            found = load_tensors(self._path(number))[0].get("batch")
        except FileFormatError:
            return None
        return found if found is not None and tuple(found.shape) == self.shapes[number] else None

    def write(self, number: int, batch: Tensor) -> None:
        """Keeps a finished batch."""
        save_tensors({"batch": batch}, self._path(number), {"job": self.job})

    def clear(self) -> None:
        """Removes the batches, once what they were for is whole."""
        for number in range(len(self.shapes)):
            self._path(number).unlink(missing_ok=True)


def fingerprint(*values: object) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the contents of values, whatever device tensors are on.

    Args:
        values: Tensors, plain values, dataclasses (without what they keep for speed, which has `init=False`), other objects,
            and lists and mappings of all these.
    """
    digest = hashlib.sha256()
    _update(digest, values, ())
    return digest.hexdigest()[:16]


def _update(digest: hashlib._Hash, value: object, inside: tuple[int, ...]) -> None:
    if id(value) in inside:  # an object that refers back to what holds it
        return
    inside = (*inside, id(value))
    digest.update(f"<{type(value).__qualname__} ".encode())
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().resolve_conj().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, str | int | float | complex | bytes):
        digest.update(repr(value).encode())
    elif isinstance(value, list | tuple):
        for part in value:
            _update(digest, part, inside)
    else:
        for name, part in _parts(value).items():
            digest.update(f"{name!r}=".encode())
            _update(digest, part, inside)
    digest.update(b">")


def _parts(value: object) -> Mapping[object, object]:
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    # Not repr(), which holds an address where nobody wrote a better one; a function has only its name.
    return {"name": getattr(value, "__qualname__", ""), **getattr(value, "__dict__", {})}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes beside the path and renames, so that a kill never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(_apart(tensors), partial, metadata)
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file the same way."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the header's metadata.

    Raises:
        FileFormatError: If the file is missing, truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"{path} is missing, truncated or not a safetensors file: {error}") from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, which safetensors refuses to write."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in seen else tensor.contiguous()
        seen.add(memory)
    return apart
