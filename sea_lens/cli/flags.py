"""What the command line calls the arguments of Python, for messages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from sea_lens.wording import UNSET, Surface


def flags_of(params: Iterable[Any]) -> Surface:
    """The surface of one command: its options and arguments by the names that they have in Python.

    Args:
        params: The command's parameters, as typer has them.
    """
    known = {one.name: one for one in params}

    def called(name: str, value: object) -> str | None:
        one = known.get(name)
        if one is None:
            return None
        if one.param_type_name == "argument":
            return name.upper() if value is UNSET else str(value)
        flag = one.opts[0]
        if value is UNSET:
            return str(flag)
        if isinstance(value, bool) and one.secondary_opts:
            return str(flag if value else one.secondary_opts[0])
        return f"{flag} {word_for(value)}"

    return called


def word_for(value: object) -> str:
    """A value as a word of a command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(word_for, value))
    if is_dataclass(value) and hasattr(value, "kind"):  # registered, as a feature map is
        return ":".join([in_a_word(value.kind), *(word_for(getattr(value, one.name)) for one in fields(value))])
    return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))


def in_a_word(kind: str) -> str:
    """A registered name as the command line spells it: `squared-exponential` for `SquaredExponential`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind).lower()
