"""ONE resumable store for long jobs: a folder, what made it, its pieces and rows; files whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sea_lens.errors import FileFormatError, InputError, reason_of

if TYPE_CHECKING:
    JSON = str | int | float | bool | None | list["JSON"] | dict[str, "JSON"]
else:  # beartype cannot resolve recursive aliases
    JSON = str | int | float | bool | None | list | dict

HOUR = 3600.0
TORN = " torn\n"
"""Ends a line that a kill cut short, so that the next row begins on a line of its own. No JSON ends so."""


class Store:
    """The folder of a resumable job: a manifest of what decides its result, named tensors, and rows of JSON.

    Every file is whole or absent, whenever a process is killed, and several processes may work on one job.

    Attributes:
        path: The folder.
        job: A word for the job, which begins the names of all its files: several jobs may share a folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> store = Store.within(mkdtemp(), "scores", {"model": "gpt2", "seed": 0})
        >>> store.write(0, {"scores": torch.ones(2)})
        >>> store.read(0), store.read(1)
        ({'scores': tensor([1., 1.])}, None)
        >>> store.append(["question 3", 0.5])
        >>> store.rows()
        [['question 3', 0.5]]
    """

    def __init__(self, folder: str | Path, job: str, facts: Mapping[str, object]) -> None:
        """Starts a job in a folder, or takes up one with the same facts.

        Args:
            folder: Made if it is missing.
            job: A word for the job.
            facts: All that decides the job's result, as plain JSON values; written to `{job}.json`.

        Raises:
            FileFormatError: If the folder holds a job with other facts, or its manifest is damaged.
        """
        self.path, self.job, self._checked_rows = Path(folder), job, False
        wanted = _plain(facts)
        self._made_by = digest(wanted)
        manifest = self.path / f"{job}.json"
        if not manifest.exists():
            write_text(manifest, json.dumps(wanted, indent=1) + "\n")
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            told = reason_of(error)
            raise FileFormatError(f"{manifest} could not be read: {told}. Delete the folder to start anew.") from error
        if not isinstance(found, dict):
            raise FileFormatError(f"{manifest} is not a {job}'s. Delete the folder to start anew.")
        different = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        if different:
            raise FileFormatError(
                f"{self.path} holds a {job} that differs in {', '.join(different)}. Choose another folder, or delete "
                "this one."
            )

    @classmethod
    def within(cls, folder: str | Path, job: str, facts: Mapping[str, object]) -> Store:
        """A store in a folder of its own, `folder/{job}-{digest of the facts}`: jobs with other facts lie beside it."""
        return cls(Path(folder) / f"{job}-{digest(_plain(facts))}", job, facts)

    def read(self, piece: int | str) -> dict[str, Tensor] | None:
        """The tensors of a piece; None where it is missing, damaged or of another job."""
        try:
            tensors, metadata = load_tensors(self._file(piece))
        except FileFormatError:
            return None
        return tensors if metadata == self._metadata(tensors) else None

    def write(self, piece: int | str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the tensors of a piece."""
        save_tensors(tensors, self._file(piece), self._metadata(tensors))

    def rows(self) -> list[JSON]:
        """The rows kept, in the order they came; a line that a kill cut short is dropped."""
        try:
            lines = self._rows_file.read_bytes().splitlines(keepends=True)
        except OSError:
            return []
        found: list[JSON] = []
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    found.append(json.loads(line))
                except (ValueError, RecursionError):
                    continue
        return found

    def append(self, row: JSON) -> None:
        """Keeps a row: any JSON value, one line of the file."""
        with self._rows_file.open("ab+", buffering=0) as file:
            if not self._checked_rows and file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(TORN.encode())
            self._checked_rows = True
            file.write((json.dumps(row) + "\n").encode())

    def clear(self) -> None:
        """Removes the pieces and rows, once what they were for is whole. The manifest stays."""
        for path in self.path.glob(f"{self.job}-*.safetensors"):
            path.unlink(missing_ok=True)
        self._rows_file.unlink(missing_ok=True)
        for path in self.path.glob("*.partial"):  # of killed processes; others may be writing theirs
            try:
                if time.time() - path.stat().st_mtime > HOUR:
                    path.unlink()
            except OSError:
                continue

    @property
    def _rows_file(self) -> Path:
        return self.path / f"{self.job}.jsonl"

    def _file(self, piece: int | str) -> Path:
        return self.path / f"{self.job}-{piece if isinstance(piece, str) else f'{piece:06d}'}.safetensors"

    def _metadata(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        return {"made_by": self._made_by, "digest": digest({name: tensors[name] for name in sorted(tensors)})}


def digest(*values: object) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the contents of values, whatever device tensors are on.

    Args:
        values: Tensors, arrays, plain values, dataclasses (without fields of `init=False`, which are kept for speed), other
            objects, functions that can be imported, and lists, sets and mappings of all these.

    Raises:
        InputError: If a function has no name of its own, or a value's contents cannot be read.

    Example:
        >>> digest([1, 2]) == digest([1, 2]) != digest([2, 1])
        True
    """
    found = hashlib.sha256()
    _update(found, values, ())
    return found.hexdigest()[:16]


def name_of(function: Callable[..., object]) -> str:
    """The name that a function can be imported by; with a digest of what is bound to it, where something is.

    Args:
        function: A function, a method, a `functools.partial`, or an object that can be called.

    Raises:
        InputError: If it is a lambda, or was defined inside a function: two of them may have one name.

    Example:
        >>> name_of(json.dumps)
        'json.dumps'
    """
    if isinstance(function, partial):
        return f"{name_of(function.func)} {digest(list(function.args), function.keywords)}"
    owner = getattr(function, "__self__", None)
    if not hasattr(function, "__qualname__"):
        return f"{name_of(type(function))} {digest(function)}"
    name = f"{getattr(function, '__module__', None) or type(owner).__module__}.{function.__qualname__}"
    if "<" in name:
        raise InputError(
            f"{name} has no name that tells it from other functions, so results kept under it could be another's. Define it "
            "with def at the top of a module, or keep no folder."
        )
    bound = owner is not None and not isinstance(owner, type) and not hasattr(owner, "__spec__")
    return f"{name} {digest(owner)}" if bound else name


def _update(found: hashlib._Hash, value: object, inside: tuple[int, ...]) -> None:
    if id(value) in inside:  # an object that refers back to what holds it
        return
    inside = (*inside, id(value))
    found.update(f"<{type(value).__qualname__} ".encode())
    if isinstance(value, Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        flat = value.detach().cpu().resolve_conj().resolve_neg().reshape(-1).contiguous()
        found.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        found.update(f"{value.dtype} {value.shape} ".encode())
        _update(found, value.tolist() if value.dtype.hasobject else value.tobytes(), inside)
    elif value is None or isinstance(value, PLAIN):
        found.update(repr(value).encode())
    elif isinstance(value, list | tuple):
        for part in value:
            _update(found, part, inside)
    elif isinstance(value, set | frozenset):
        _update(found, sorted(digest(part) for part in value), inside)
    elif callable(value) and (hasattr(value, "__qualname__") or isinstance(value, partial)):
        found.update(name_of(value).encode())
    else:
        for name, part in _parts(value).items():
            found.update(f"{name!r}=".encode())
            _update(found, part, inside)
    found.update(b">")


PLAIN = str | int | float | complex | bytes | np.generic | torch.dtype | torch.device | PurePath


def _parts(value: object) -> Mapping[Any, object]:
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    if not hasattr(value, "__dict__"):  # not repr(), which may hold an address
        raise InputError(
            f"The contents of a {type(value).__qualname__} cannot be read, so nothing can be kept under them. Give a "
            "dataclass, or plain values."
        )
    return vars(value)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, whoever else writes it at the same time."""
    with whole_file(path) as file:
        save_file(_apart(tensors), file, dict(metadata))


def write_text(path: Path, text: str) -> None:
    """Writes a text file the same way."""
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file of this process only, beside the path, that takes the path's place at the end."""
    if not path.name:
        raise InputError(f"{path} is a folder. Give the name of a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path.parent} is a file, or lies in one. Give the name of a folder.") from error
    file = path.with_name(f"{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield file
        file.replace(path)
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder. Give the name of a file in it.") from error
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder of this process only, beside the path, that takes the path's place at the end, whole.

    Where another process was first, its folder stays. What killed processes left beside it is removed after an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        if time.time() - max(one.stat().st_mtime for one in (left, *left.rglob("*"))) > HOUR:
            shutil.rmtree(left, ignore_errors=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    folder.mkdir()
    try:
        yield folder
        try:
            folder.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory: safetensors refuses to write others."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in seen else tensor.contiguous()
        seen.add(memory)
    return apart


def _plain(facts: Mapping[str, object]) -> dict[str, JSON]:
    """Facts as they are read back from a file."""
    found: dict[str, JSON] = json.loads(json.dumps(dict(facts), sort_keys=True))
    return found
