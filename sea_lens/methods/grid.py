"""A method at many settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, TypeVar

from sea_lens.errors import InputError

M = TypeVar("M")


def check_settings(cls: object, settings: Iterable[str]) -> None:
    """Raises an InputError if a method's class lacks a setting, or is no class."""
    if not callable(cls):
        raise InputError(f"A method's class is needed, such as SEA, and {cls!r:.80} was given.")
    known = inspect.signature(cls).parameters
    unknown = [name for name in settings if name not in known]
    if unknown:
        name = getattr(cls, "__name__", "The method")
        raise InputError(f"{name} has no setting {', '.join(unknown)}. It has: {', '.join(known)}.")


def grid(cls: Callable[..., M], **settings: Sequence[Any]) -> list[M]:
    """A method at every combination of settings, the last of them varying fastest.

    Example:
        >>> methods = sl.grid(sl.SEA, center=[False, True], explained_variance=[0.5, 0.9])
        >>> [(method.center, method.explained_variance) for method in methods]
        [(False, 0.5), (False, 0.9), (True, 0.5), (True, 0.9)]

    Args:
        cls: The method's class.
        **settings: By name, the values to try.

    Returns:
        One method per combination, for `tune` or `compare_methods`.

    Raises:
        InputError: If a setting has no values, or the method has no such setting.
    """
    for name, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{name} is a list of values to try, with at least one, and {values!r} was given.")
    check_settings(cls, settings)
    return [cls(**dict(zip(settings, values, strict=True))) for values in product(*settings.values())]
