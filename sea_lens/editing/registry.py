"""Kinds of edit, and how objects made of tensors and plain values are written and read without running code.

A new kind of edit is a frozen dataclass with the members of `Edit`, under `@register_edit("its kind")`. Its fields are
then saved and loaded as they are: tensors, numbers, texts, edits, and values whose classes `@register_value` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.errors import FileFormatError, InputError

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class _Registered:
    name: str
    cls: Any


_BY_NAME: dict[str, _Registered] = {}
_BY_CLASS: dict[type, _Registered] = {}
_OF_0_1: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]] = {}
_PLAIN = {"bool": (bool,), "int": (int,), "float": (float, int), "str": (str,)}


def register_edit(kind: str) -> Callable[[T], T]:
    """Registers a kind of edit, so that editors with it are saved and loaded.

    Example:
        >>> @sl.register_edit("halving")
        ... @dataclass(frozen=True, eq=False)
        ... class Halving:
        ...     width: int
        ...     strength: float = 1.0
        ...     rank, token_local, directions, gains, summary = 0, True, None, None, "halves activations"
        ...     @property
        ...     def is_identity(self): return self.strength == 0
        ...     def scaled(self, factor): return Halving(self.width, self.strength * factor)
        ...     def __call__(self, h): return h * (1 - self.strength / 2)
        >>> sl.Editor({0: Halving(128)}).scaled(0.5)[0](torch.ones(2, 128)).mean()
        tensor(0.7500)

    Args:
        kind: The name that files know it by.

    Returns:
        A decorator, which registers the class and gives it back.

    Raises:
        InputError: If another class has that name.
    """
    check_arguments(register_edit, locals())
    return _registering(kind)


def register_value(name: str) -> Callable[[T], T]:
    """Registers a frozen dataclass whose instances may stand in a field of an edit, such as a feature map.

    Args:
        name: The name that files know it by.

    Returns:
        A decorator, which registers the class and gives it back.

    Raises:
        InputError: If another class has that name.

    Example:
        >>> @sl.register_value("doubled")
        ... @dataclass(frozen=True)
        ... class Doubled:
        ...     domain = (-torch.inf, torch.inf)
        ...     def forward(self, x): return 2 * x
        ...     def inverse(self, y): return y / 2
        >>> sl.SEA(0.9, center=True, feature_map=Doubled()).fit(activations).layers
        [0, 1, 2, 3]
    """
    check_arguments(register_value, locals())
    return _registering(name)


def reads_files_of_0_1(kind: str) -> Callable[[Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]], Any]:
    """Registers how an edit of version 0.1's files is read: a function of its facts and its tensors."""

    def register(read: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]) -> Any:
        _OF_0_1[kind] = read
        return read

    return register


def _registering(name: str) -> Callable[[T], T]:
    if not name:
        raise InputError("What is registered needs a name that is not empty.")

    def register(cls: T) -> T:
        if not (isinstance(cls, type) and is_dataclass(cls)):
            raise InputError(
                f"What files hold is a frozen dataclass, and {cls!r:.80} is none: put @dataclass(frozen=True) under it."
            )
        known = _BY_NAME.get(name)
        if known is not None and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(
                f"The name {name!r} is taken by {known.cls.__module__}.{known.cls.__qualname__}. Choose another."
            )
        cls.kind = name  # type: ignore[attr-defined]
        _BY_NAME[name] = _BY_CLASS[cls] = _Registered(name, cls)
        return cls

    return register


def registered_values(kind: type) -> dict[str, Any]:
    """The registered classes that are of a type, or have the members of a protocol, by name."""
    members = [name for name in vars(kind) if not name.startswith("_")] if getattr(kind, "_is_protocol", False) else []
    return {
        name: known.cls
        for name, known in _BY_NAME.items()
        if kind in known.cls.__mro__ or (members and all(hasattr(known.cls, member) for member in members))
    }


def to_plain(value: Any, tensors: dict[str, Tensor] | None = None, path: str = "") -> Any:
    """A value as JSON; its tensors go into `tensors` under their path.

    Args:
        value: Of plain values, tensors, lists, mappings, and instances of registered classes.
        tensors: Where tensors go; None where there must be none.
        path: What to call the value in messages, and its tensors.

    Raises:
        InputError: If it holds something else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and tensors is not None:
        tensors[path] = value.detach().cpu()
        return {"tensor": path}
    if isinstance(value, list | tuple):
        return [to_plain(part, tensors, f"{path}.{number}") for number, part in enumerate(value)]
    if isinstance(value, Mapping):
        return {"mapping": {str(key): to_plain(part, tensors, f"{path}.{key}") for key, part in value.items()}}
    known = _BY_CLASS.get(type(value))
    if known is None:
        raise InputError(
            f"{path or 'This'} is a {type(value).__name__}, which cannot be saved: files hold no code. "
            "Register its class with @sea_lens.register_edit or @sea_lens.register_value."
        )
    given = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
    given = value.to_fields() if hasattr(value, "to_fields") else given  # an edit that saves itself in less room
    found = {name: to_plain(part, tensors, f"{path}.{name}") for name, part in given.items()}
    return {"kind": known.name, "fields": found}


def from_plain(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Reads what `to_plain` wrote. Lists come back as tuples.

    Raises:
        FileFormatError: If it names a class that is not registered, or a field of another type.
    """
    if isinstance(plain, list):
        return tuple(from_plain(part, tensors) for part in plain)
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "mapping" in plain:
        return {key: from_plain(part, tensors) for key, part in plain["mapping"].items()}
    known = _BY_NAME.get(plain["kind"])
    if known is None:
        raise FileFormatError(
            f"It holds a {plain['kind']!r}, which is not known here, and files hold no code. "
            "Import the module that registers it."
        )
    given = {name: from_plain(part, tensors) for name, part in plain["fields"].items()}
    for one in fields(known.cls):
        expected = _PLAIN.get(str(one.type).removesuffix(" | None"))
        value = given.get(one.name)
        if expected is None or one.name not in given or (value is None and str(one.type).endswith("None")):
            continue
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            raise FileFormatError(f"The {one.name} of a {plain['kind']!r} is not of type {one.type}: {value!r}.")
    make = getattr(known.cls, "from_fields", known.cls)
    return make(**given)


def edit_of_0_1(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """An edit out of a file of version 0.1.

    Raises:
        FileFormatError: If its kind is not known.
    """
    read = _OF_0_1.get(facts["kind"])
    if read is None:
        raise FileFormatError(f"It holds an edit of a kind that this version does not know: {facts['kind']!r}.")
    return read(facts, tensors)
