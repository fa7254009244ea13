"""The words of messages: an argument is named as it is where the user stands, in Python or on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Surface = Callable[[str, "object"], "str | None"]
"""What a place calls an argument: given its name in Python and its value, or `UNSET` for the argument alone. None where the
place has no such argument."""


class _Unset:
    """No value."""


UNSET = _Unset()
_SURFACE: ContextVar[Surface | None] = ContextVar("surface", default=None)


def setting(name: str, value: object = UNSET) -> str:
    """An argument, alone or with a value: `seed=3` in Python, `--seed 3` on the command line.

    Args:
        name: The parameter as Python has it.
        value: What to set it to; the parameter alone if left out.

    Example:
        >>> from sea_lens.wording import setting
        >>> setting("max_kl"), setting("max_kl", None)
        ('max_kl', 'max_kl=None')
    """
    surface = _SURFACE.get()
    told = None if surface is None else surface(name, value)
    if told is not None:
        return told
    return name if value is UNSET else f"{name}={value!r}"


def option(name: str, value: object) -> str:
    """An option of a file's layout: `direction=None` in Python, `--reader-option direction=none` on the command line.

    Args:
        name: The option.
        value: What to set it to.
    """
    return either(f"{name}={value!r}", f"--reader-option {name}={str(value).lower() if value is None else value}")


def either(python: str, command: str) -> str:
    """One of two phrases: the first in Python, the second on the command line.

    Args:
        python: What a user of Python does.
        command: What a user of the command line does.

    Example:
        >>> from sea_lens.wording import either
        >>> either("Call with_chat_template(model).", "Give --chat.")
        'Call with_chat_template(model).'
    """
    return python if _SURFACE.get() is None else command


@contextmanager
def speaking(surface: Surface) -> Iterator[None]:
    """Inside the block, messages are in the words of a surface.

    Args:
        surface: What it calls arguments.
    """
    token = _SURFACE.set(surface)
    try:
        yield
    finally:
        _SURFACE.reset(token)
