"""Fingerprints of objects made of tensors and plain values: the same for equal contents, in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor


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
