"""Models in GGUF files, llama.cpp's format: dequantized once, and kept on disk as an ordinary folder.

transformers reads the files (its own reader, or the `gguf` package). No code of a file is run, and nothing is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sea_lens.cache import whole_folder
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.bridge import Model
from sea_lens.models.gguf_files import GGUF, check_magic
from sea_lens.models.gguf_tokens import check_tokenizer
from sea_lens.versions import versions_of

CACHE_VARIABLE = "SEA_LENS_CACHE"
FACTS = "gguf.json"
UNKNOWN_TYPE = re.compile(r"(\d+)\)? is not a valid GGMLQuantizationType")
MADE_AS = 2
"""Folders made before this are made anew: their tokenizers were not checked."""


def dequantized(model: GGUF, dtype: torch.dtype) -> Path:
    """The folder of a model with plain weights, made unless it is there. It is whole or absent, however a process ends.

    Folders lie in `models` in the folder that the environment variable `SEA_LENS_CACHE` names, or in the user's cache
    (`~/.cache/sea_lens`), and are told apart by the content of the file and the dtype.

    Raises:
        InputError: If the file is no GGUF, damaged, or in parts, or a library is missing.
        ModelMismatchError: If transformers does not know its architecture, or makes a wrong tokenizer of it.
    """
    dtype = torch.float32 if dtype == torch.float64 else dtype  # which holds all that a file has
    check_magic(model)
    kept, key = cache_folder() / "models", f"{model.sha256()[:16]}-{str(dtype).removeprefix('torch.')}-{MADE_AS}"
    found = next(kept.glob(f"*-{key}"), None)
    if found is not None:
        return found
    missing = [library for library in ("gguf", "accelerate") if find_spec(library) is None]
    if missing:
        raise InputError(f'Reading {model.name} needs {" and ".join(missing)}. Run `pip install "sea-lens[gguf]"`.')
    folder = kept / f"{re.sub(r'[^A-Za-z0-9_-]', '-', model.name.removesuffix('.gguf'))[:80]}-{key}"
    try:
        with whole_folder(folder) as made:
            _convert(model, made, dtype)
    except OSError as error:
        raise InputError(
            f"{folder} could not be written: {error}. Let the variable {CACHE_VARIABLE} name a folder with room."
        ) from error
    return folder


def apply_facts(model: Model, folder: Path, name: str) -> None:
    """Gives a model the name it was asked for by, and no beginning token where its file wants none."""
    model.cfg.model_name = name
    begins = json.loads((folder / FACTS).read_text(encoding="utf-8"))["add_bos_token"]
    if begins is not None:
        model.cfg.default_prepend_bos = begins


def cache_folder() -> Path:
    """Where what was made from downloaded files is kept."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sea_lens"
    return Path(os.environ.get(CACHE_VARIABLE) or usual).expanduser()


def _convert(model: GGUF, folder: Path, dtype: torch.dtype) -> None:
    """Writes an ordinary checkpoint with a file's values.

    Raises:
        InputError: If the file is damaged.
        ModelMismatchError: If transformers does not know its architecture, or makes a wrong tokenizer of it.
        OSError: If there is no room.
    """
    source = folder / "source"  # apart from other files, of which transformers would take a tokenizer
    source.mkdir()
    file = source / model.name
    if model.assemble is not None:
        model.assemble(file)
    else:
        try:
            file.symlink_to(model.pieces[0].resolve())
        except OSError:  # as Windows asks for a privilege
            shutil.copyfile(model.pieces[0], file)
    with _one_sentence(model):
        facts, tokens = _facts(file, dtype)
        read, tokenizer = _read(file, dtype)
    check_tokenizer(model.name, tokenizer, tokens)
    # What was read from GGUF refuses to be saved, so that its weights go into a plain model of the same kind.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    with torch.device("meta"):
        plain = type(read)(read.config)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(source)


def _read(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model with plain weights, and its tokenizer.

    Raises:
        InputError: If the file lacks weights, which transformers would fill with random ones, or has no layers.
    """
    import transformers

    options: dict[str, Any] = {"gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **options)
    if hasattr(transformers, "GgufConfig"):  # newer releases would keep weights packed, and fetch code that reads them
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), dtype=dtype, output_loading_info=True, **options
    )
    missing = sorted({*report["missing_keys"], *(str(one) for one in report.get("mismatched_keys", ()))})
    if missing:
        raise InputError(f"{file.name} lacks {len(missing)} of its weights, such as {missing[0]}. Fetch it anew.")
    if not getattr(model.config, "num_hidden_layers", 1):
        raise InputError(f"{file.name} says that it has no layers, so it is damaged. Fetch it anew.")
    return model, tokenizer


def _facts(file: Path, dtype: torch.dtype) -> tuple[dict[str, Any], list[str]]:
    """What is kept of a file's header beside the weights, and its tokens."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    begins, tokens = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("add_bos_token", "tokens"))
    facts = {
        "file": file.name,
        "dtype": str(dtype),
        "add_bos_token": None if begins is None else bool(begins.contents()),
        "tensor_types": dict(Counter(one.tensor_type.name for one in reader.tensors)),
        "made_with": versions_of("sea-lens", "transformers", "gguf"),
    }
    return facts, [] if tokens is None else tokens.contents()


@contextmanager
def _one_sentence(model: GGUF) -> Iterator[None]:
    """Says in one sentence why a file could not be read."""
    try:
        yield
    except (MemoryError, ImportError, InputError):
        raise
    except Exception as error:  # readers fail in many ways on bytes that are not what they should be
        told = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        kind = UNKNOWN_TYPE.search(told)
        if kind is not None:
            told = f"its weights are of type {kind[1]}, which gguf {version('gguf')} does not know"
        if "supported" in told or kind is not None or isinstance(error, NotImplementedError):
            raise ModelMismatchError(
                f"transformers {version('transformers')} cannot read {model.name}: {told}. Load the model's own "
                "repository on the hub in place of the GGUF file."
            ) from error
        # What the readers say of such bytes is about themselves; it is kept as the cause.
        raise InputError(f"{model.name} is damaged, or was cut short. Fetch it anew.") from error
