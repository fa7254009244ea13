"""Words of a command line as values of Python types: numbers in their bounds, choices, tuples, registered values."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from sea_lens.cli.flags import in_a_word
from sea_lens.editing.registry import registered_values
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.sites import named_layers

BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("batch_size", "draws", "k", "max_new_tokens", "n", "n_questions"), (1, math.inf)),
    **dict.fromkeys(("n_folds", "random_editors"), (2, math.inf)),
    **dict.fromkeys(("control", "n_shuffles", "num_fewshot", "temperature", "top_k"), (0, math.inf)),
    "seed": (0, 2**32 - 1),
    "tau": (0, 1),
}
"""By an option's name, its least and its greatest value. They are checked before anything else happens."""
OPEN: Mapping[str, tuple[float, float]] = {"confidence": (0, 1), "limit": (0, math.inf), "max_kl": (0, math.inf)}
"""The same where the bounds themselves are left out."""
LONGEST_CHOICE = 60
"""Characters of the words that an option may have, beyond which the help does not list them beside its name."""


class _Nothing:
    """None that was typed, and not left out."""


NONE = _Nothing()
"""The value of the word `none`, until a command gets it as None."""


@dataclass(frozen=True)
class Words:
    """How a word of the command line becomes a value.

    Attributes:
        read: Reads the word; raises a bare ValueError if it is not what is expected, and an InputError that says more.
        expects: What is expected, for messages.
        flag: The option, for messages.
        marks_none: Whether the word `none` is `NONE`, so that it differs from an option that is left out.
    """

    read: Callable[[str], Any]
    expects: str
    flag: str = ""
    marks_none: bool = False

    def __call__(self, word: Any) -> Any:
        """The value of a word; a default is no word and stays what it is."""
        if not isinstance(word, str):
            return word
        try:
            value = self.read(word)
            return NONE if value is None and self.marks_none else value
        except ValueError as error:
            told = str(error) if isinstance(error, InputError) else f"{word!r} was given; expected {self.expects}."
            raise typer.BadParameter(told, param_hint=f"'{self.flag}'") from error


def words_of(hint: Any, name: str = "") -> Words | None:
    """How a type is written on the command line; None if it has no form in words.

    Args:
        hint: Numbers, texts, paths, choices, tuples, unions of them, and classes or protocols with registered values.
        name: Of the option, for its bounds.
    """
    if name in NAMED:
        return NAMED[name]
    origin, parts = get_origin(hint), get_args(hint)
    if hint is NoneType:
        return _choice({"none": None})
    if hint is bool:
        return _choice({"true": True, "false": False})
    if hint in (int, float):
        return _number(hint, name)
    if hint in (str, Path):
        return Words(hint, "a text")
    if origin is Literal:
        return _choice({part: part for part in parts})
    if origin in (Union, UnionType):
        readers = [words_of(one, name) for one in sorted(parts, key=_precedence)]
        known = [reader for reader in readers if reader is not None]
        if all(reader.expects == "none" for reader in known):
            return None
        return Words(lambda word: _first(known, word), " or ".join(reader.expects for reader in known))
    if origin is tuple or is_list(hint):
        length = len(parts) if origin is tuple and Ellipsis not in parts else None
        inner = words_of(parts[0], name)
        return inner and Words(lambda word: _several(inner, word, length), f"{inner.expects}, with commas between")
    return _registered(hint) if isinstance(hint, type) else None


def is_list(hint: Any) -> bool:
    """Whether a type is a list or sequence of what has a form in words."""
    origin = get_origin(hint)
    lists = isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple
    return lists and words_of(get_args(hint)[0]) is not None


def metavar(hint: Any) -> str:
    """A type's name in the help."""
    if hint in (int, float, str, Path):
        return {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}[hint]
    if get_origin(hint) is Literal:
        words = "|".join(map(str, get_args(hint)))
        return words if len(words) <= LONGEST_CHOICE else "WORD"
    if get_origin(hint) in (Union, UnionType):
        readable = [one for one in get_args(hint) if one is not NoneType and words_of(one) is not None]
        return "|".join(dict.fromkeys(map(metavar, readable)))
    return "A,B" if get_origin(hint) is tuple or is_list(hint) else "NAME[:NUMBER]"


def _choice(values: Mapping[str, Any]) -> Words:
    return Words(lambda word: values[word] if word in values else _refuse(), ", ".join(values))


def _number(kind: type, name: str) -> Words:
    low, high = OPEN.get(name) or BOUNDS.get(name, (-math.inf, math.inf))
    what = "a whole number" if kind is int else "a finite number"
    if name in OPEN:
        what += " above zero" if high == math.inf else f" inside ({low}, {high})"
    elif high < math.inf:
        what += f" from {low} to {high}"
    elif low > -math.inf:
        what += f" from {low} on"

    def read(word: str) -> Any:
        number = kind(word)
        inside = low < number < high if name in OPEN else low <= number <= high
        return number if math.isfinite(number) and inside else _refuse()

    return Words(read, what)


def _registered(kind: type) -> Words | None:
    """Registered values of a class or a protocol: `tanh`, or `tanh:4` with its fields in order."""
    if not getattr(kind, "in_words", True):
        return None
    known = {in_a_word(name): cls for name, cls in registered_values(kind).items()}

    def read(word: str) -> Any:
        name, *given = word.split(":")
        if name not in known or len(given) > len(fields(known[name])):
            return _refuse()
        hints = get_type_hints(known[name])
        readers = [words_of(hints[one.name]) for one in fields(known[name])]
        return known[name](*(reader.read(text) for reader, text in zip(readers, given, strict=False) if reader))

    return Words(read, f"{', '.join(known)} or one with its parameter, as in NAME:2") if known else None


def _precedence(hint: Any) -> int:
    """Which member of a union reads a word first: a text takes any."""
    order = [NoneType, bool, int, float]
    return order.index(hint) if hint in order else 9 if hint in (str, Path) else 5


def _several(inner: Words, word: str, length: int | None) -> tuple[Any, ...]:
    found = tuple(map(inner.read, word.split(",")))
    return found if length in (None, len(found)) else _refuse()


def _first(known: Sequence[Words], word: str) -> Any:
    for reader in known:
        try:
            return reader.read(word)
        except InputError:
            raise
        except ValueError:
            continue
    return _refuse()


def _folder(word: str) -> Path:
    path = Path(word).absolute()
    if len(os.fsencode(path)) > 3000 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise InputError("the name is too long for a folder. Give a shorter one.")
    there = next(one for one in [path, *path.parents] if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{there} is {'write-protected' if there.is_dir() else 'a file'}. Give another folder.")
    return Path(word)


def _layers(word: str) -> str:
    with suppress(ModelMismatchError):  # which layers there are is the model's to say
        named_layers(word, 10**6)
    return word


def _refuse() -> Any:
    raise ValueError


NAMED: dict[str, Words] = {
    "out": Words(_folder, "a folder"),
    "layers": Words(_layers, "all, first:N, last:N, or a list such as 3,5,10-20"),
}
"""Options that are read in their own way, by name."""
