"""What a caller gives, against the types that a function says it takes: one check for all, in words that name the fix."""

from __future__ import annotations

import inspect
import math
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeIs, get_protocol_members

from sea_lens.errors import InputError
from sea_lens.wording import setting

P = TypeVar("P")


@dataclass(frozen=True)
class Bounds:
    """What a number must lie between.

    Attributes:
        low: The least value.
        high: The greatest value.
        open_low: Whether the least value is itself left out.
        open_high: The same of the greatest.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def hold(self, number: Any) -> bool:
        """Whether a number is finite and between them."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return bool(-math.inf < number < math.inf and above and below)

    def __str__(self) -> str:
        if self.low == -math.inf:
            return ""
        if self.open_low and self.open_high and self.high < math.inf:
            return f" inside ({self.low:g}, {self.high:g})"
        if self.open_low:
            return " above zero" if self.high == math.inf else f" above {self.low:g}, up to {self.high:g}"
        return f" from {int(self.low)} to {int(self.high)}" if self.high < math.inf else f" from {int(self.low)} on"


FREE, POSITIVE, COUNT = Bounds(), Bounds(0.0, open_low=True), Bounds(1.0)
BOUNDS: Mapping[str, Bounds] = {
    **dict.fromkeys(("max_new_tokens", "save_every", "d_head", "n_heads", "max_layers"), COUNT),
    "folds": Bounds(2.0),
    "most": COUNT,
    **dict.fromkeys(("num_fewshot", "temperature", "examples", "tolerance", "top_k"), Bounds(0.0)),
    **dict.fromkeys(("seed", "seeds"), Bounds(0.0, 2.0**32 - 1)),
    "confidence": Bounds(0.0, 1.0, open_low=True, open_high=True),
    "repetition": Bounds(0.0, 1.0),
    "top_p": Bounds(0.0, 1.0, open_low=True),
    **dict.fromkeys(("eps", "limit", "max_kl", "mean_norm"), POSITIVE),
    "tau": Bounds(0.0, 1.0),
}
"""By the name of a parameter, which is the same in the whole package, what its numbers lie between.

Where a function says more about a number out of bounds (such as how many rows there are), it checks it itself.
"""

MADE_BY = {
    "Activations": "collect_activations(model, demonstrations) collects them",
    "Demonstrations": "Demonstrations.from_jsonl(path) and from_lists(...) make them",
    "Editor": "SEA().fit(activations) makes one, and Editor.from_pretrained(folder) reads one",
    "EditsModels": "SEA().fit(activations) makes one, and Editor.from_pretrained(folder) reads one",
    "SAE": "load_sae(folder) reads one",
    "Questions": "Questions.from_jsonl(path) and from_lists(...) make them",
    "Where": "such as WhenAligned(site, direction)",
}
"""Where the things of this package come from, for messages."""
CHECKED_FIRST: dict[str, Callable[[object], None]] = {}
"""Functions that refuse what a parameter of a name cannot be. `models.bridge` says here what a `model` is."""


def check_arguments(function: Callable[..., object], given: Mapping[str, object]) -> None:
    """Checks what a function was called with against its annotations and the bounds of its parameters' names.

        check_arguments(measure, locals())  # the first line of `measure`

    Args:
        function: The function.
        given: Its arguments by name; other names are let be.

    Raises:
        InputError: If an argument is of another type or out of bounds: what was given, and what is expected.

    Example:
        >>> def ask(questions: Sequence[str], max_new_tokens: int = 8) -> None:
        ...     check_arguments(ask, locals())
        >>> ask(["Why?"], max_new_tokens=0)
        Traceback (most recent call last):
        sea_lens.errors.InputError: max_new_tokens must be a whole number from 1 on, and 0 was given.
    """
    hints = _hints(function)
    for name, check in CHECKED_FIRST.items():
        if name in hints and name in given and not (given[name] is None and _fits(None, hints[name], name)):
            check(given[name])
    for name, hint in hints.items():
        if name not in given or name in CHECKED_FIRST or _fits(given[name], hint, name):
            continue
        elsewhere = [other for other in hints if other != name and _is_ours(hints[other])]
        own = inspect.signature(function).parameters.values()
        names = [one.name for one in own if one.kind is not one.KEYWORD_ONLY and one.name not in ("self", "cls")]
        fits_elsewhere = given[name] is not None and any(_fits(given[name], hints[other], other) for other in elsewhere)
        order = f" The order is ({', '.join(names)})." if fits_elsewhere and name in names else ""
        raise InputError(_sentence(name, given[name], hint) + order)


def check_fields(value: Any) -> None:
    """Checks the fields of a dataclass in the same way; the first line of `__post_init__`.

    Raises:
        InputError: If a field is of another type or out of bounds.
    """
    hints = _hints(value.__class__)
    for field in fields(value):
        if field.name in hints and not _fits(getattr(value, field.name), hints[field.name], field.name):
            said = _sentence(field.name, getattr(value, field.name), hints[field.name])
            raise InputError(f"{type(value).__name__}: {said}")


def as_folder(value: object, name: str = "folder") -> None:
    """Checks that a value can name a file or a folder.

    Raises:
        InputError: If it cannot.
    """
    if not _is_path(value):
        raise InputError(_sentence(name, value, Union[str, os.PathLike]))  # noqa: UP007


@cache
def _hints(owner: Any) -> dict[str, Any]:
    """Annotations by parameter or field. Ones that only type checkers can resolve are left out, and not checked."""
    found: dict[str, Any] = {}
    inner = inspect.unwrap(owner)
    owners = [one for one in inner.__mro__ if one is not object] if isinstance(inner, type) else [inner]
    for one in reversed(owners):
        space = getattr(one, "__globals__", None) or vars(sys.modules[one.__module__])
        for name, hint in getattr(one, "__annotations__", {}).items():
            if name == "return" or "ClassVar" in str(hint):
                continue
            try:
                found |= typing.get_type_hints(types.SimpleNamespace(__annotations__={name: hint}), space)
            except (NameError, TypeError, AttributeError):
                continue
    return found


def follows(value: object, protocol: type[P]) -> TypeIs[P]:
    """Whether a value has every member of a protocol, also those that `__getattr__` gives it, as it does submodules.

    From Python 3.12 `isinstance` overlooks these: no model and no tokenizer would pass.

    Args:
        value: Anything.
        protocol: A runtime-checkable protocol.
    """
    return all(hasattr(value, member) for member in _members(protocol))  # type: ignore[arg-type]


@cache
def _members(protocol: type) -> frozenset[str]:
    return frozenset(get_protocol_members(protocol))


def _fits(value: object, hint: Any, name: str) -> bool:
    """Whether a value is of a type, as deep as a list's entries."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or hint is object or isinstance(hint, TypeVar | str) or hint is inspect.Parameter.empty:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if origin in (Union, types.UnionType):
        if any(map(_names_path, parts)):
            parts = tuple(one for one in parts if one is not str)
        without_parentheses = isinstance(value, type) and any(
            follows(value, part) for part in parts if _is_protocol(part)
        )
        return not without_parentheses and any(_fits(value, part, name) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if hint is str:
        return isinstance(value, str) and (name != "stop" or value != "")
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool) and BOUNDS.get(name, FREE).hold(value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and BOUNDS.get(name, FREE).hold(value)
    if _names_path(hint):
        return _is_path(value)
    if origin is tuple and Ellipsis not in parts:
        return (
            isinstance(value, tuple | list)
            and len(value) == len(parts)
            and all(_fits(one, part, name) for one, part in zip(value, parts, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            (parts[0] is not str or isinstance(key, str)) and _fits(one, parts[1], name) for key, one in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Iterable):
        if isinstance(value, str | bytes | Mapping | Set) or not isinstance(value, Iterable):
            return False
        # Others may be read only once, or make what they hold when asked.
        is_read = isinstance(value, list | tuple) or (parts[0] is str and isinstance(value, Sequence))
        entries = value if is_read else ()
        return all(_fits(one, parts[0], name) for one in entries)
    if origin is not None:
        return callable(value) if getattr(origin, "__name__", "") == "Callable" else isinstance(value, origin)
    return _is_instance(value, hint)


def _is_instance(value: object, hint: Any) -> bool:
    array = getattr(hint, "array_type", None)  # an annotation of a tensor's shape
    if array is not None:
        return isinstance(value, array)
    if hint is torch.dtype:
        return isinstance(value, torch.dtype) and value.is_floating_point
    if not isinstance(hint, type):
        return True
    if getattr(hint, "_is_protocol", False):
        return not _is_protocol(hint) or (follows(value, hint) and not isinstance(value, type))
    return isinstance(value, hint)


def _is_protocol(hint: Any) -> bool:
    """Whether a hint is a protocol that values can be checked against."""
    return bool(getattr(hint, "_is_protocol", False) and getattr(hint, "_is_runtime_protocol", False))


def _names_path(hint: Any) -> bool:
    return get_origin(hint) is None and isinstance(hint, type) and issubclass(hint, os.PathLike)


def _is_path(value: object) -> bool:
    named = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    return isinstance(named, str) and bool(named) and "\0" not in named


def _is_ours(hint: Any) -> bool:
    """Whether a class of this package is in a hint."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(isinstance(one, type) and one.__module__.startswith("sea_lens") for one in parts)


def _sentence(name: str, value: object, hint: Any) -> str:
    return f"{setting(name)} must be {_expected(hint, name)}, and {shown(value)} was given."


def shown(value: object) -> str:
    """A value as messages show it: plain ones in full where short, others by their class."""
    if isinstance(value, type):
        return f"the class {value.__name__} (without its parentheses)"
    if value is None or isinstance(value, str | int | float | list | tuple | dict | bytes | os.PathLike | torch.dtype):
        return reprlib.repr(value)
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return f"a{'n' * (kind[0] in 'AEIO')} {kind}"


def _expected(hint: Any, name: str) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is None or hint is types.NoneType:
        return "None"
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(_expected(part, name) for part in parts if part is not types.NoneType)
        return " or ".join(words) + (", or None" if types.NoneType in parts else "")
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if hint is bool:
        return "True or False"
    if hint in (int, float):
        finite = "a whole number" if hint is int else "a finite number" if name not in BOUNDS else "a number"
        return f"{finite}{BOUNDS.get(name, FREE)}"
    if hint is str:
        return "a text" if name != "stop" else "a text that is not empty"
    if _names_path(hint):
        return "a path"
    if origin is tuple and Ellipsis not in parts:
        return f"a tuple of {len(parts)}, each {_expected(parts[0], name)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping (a dict) of {_each(parts[1], name)}"
    if isinstance(origin, type) and issubclass(origin, Iterable) and parts:
        return f"a list of {_each(parts[0], name)}"
    if hint is torch.dtype:
        return "a floating-point torch.dtype, such as torch.float32"
    if origin is not None:
        return "a function" if getattr(origin, "__name__", "") == "Callable" else str(origin.__name__)
    if getattr(hint, "array_type", None) is not None:
        return "a tensor"
    if hint is Tensor:
        return "a tensor"
    kind = getattr(hint, "__name__", str(hint))
    kind = {"EditsModels": "Editor", "ndarray": "array", "DataFrame": "pandas.DataFrame"}.get(kind, kind)
    article = "" if kind.endswith("s") else "an " if kind[0] in "AEIOU" else "a "
    made = MADE_BY.get(kind)
    return f"{article}{kind}" + (f" ({made})" if made else "")


def _each(hint: Any, name: str) -> str:
    """The entries of a list in words."""
    if hint is Tensor:
        return "tensors"
    plain = {
        str: "texts" if name != "stop" else "texts that are not empty",
        int: "whole numbers",
        float: "finite numbers",
    }
    if hint in plain:
        return plain[hint] + (str(BOUNDS.get(name, FREE)) if hint is not str else "")
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping) and name == "prompt":
        return 'messages, such as {"role": "user", "content": "Hello"}'
    kinds = {str(part) for part in get_args(hint)} if get_origin(hint) in (Union, types.UnionType) else set()
    return " or ".join(sorted(_each(part, name) for part in get_args(hint))) if kinds else _expected(hint, name)
