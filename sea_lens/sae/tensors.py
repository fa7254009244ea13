"""Tensors out of files that cannot run code: safetensors, npz without pickles, torch files with weights alone."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sea_lens.cache import load_tensors
from sea_lens.errors import FileFormatError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, by name.

    Raises:
        FileFormatError: If the file is missing or damaged, or holds anything besides tensors and plain values.
    """
    if not path.is_file():
        raise FileFormatError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise FileFormatError(f"{path} is damaged, or holds more than arrays of numbers: {error}") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        told = " ".join(str(error).split())[:160]
        raise FileFormatError(
            f"{path} is damaged, or holds more than tensors, which is not loaded, for it could run code: {told}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise FileFormatError(f"{path} holds a {type(found).__name__}, and tensors by name are expected.")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
