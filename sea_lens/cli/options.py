"""Options from signatures: keywords of functions and fields of dataclasses, with their types, defaults and docs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import wraps
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Optional,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import typer

from sea_lens.cli.flags import word_for
from sea_lens.cli.words import LONGEST_CHOICE, NAMED, NONE, is_list, metavar, words_of

Options = dict[str, Any]
"""Keywords of a library function, as they were given on the command line."""
NEVER = frozenset({"folder", "progress"})
"""Keywords that a command settles itself."""
STAYS_PLURAL = {"layers"}
"""One `--layers` is a set of layers, so it keeps its name where it may be repeated."""


PANELS: Mapping[str, str] = {
    "settings": "Settings of the method",
    **dict.fromkeys(("reading", "asking", "talking", "rows"), "Data and prompts"),
    **dict.fromkeys(("generation", "drawing", "directing", "reading_out"), "What is shown"),
    **dict.fromkeys(("options", "run", "probing", "tuning", "comparing", "sizing"), "Measuring"),
    **dict.fromkeys(("biasing", "studying", "fitting"), "Measuring"),
    "benchmarks": "Benchmarks, at least one",
    "collecting": "Activations",
    "loading": "Model",
}
"""The group that the help lists a part's options in, by the part's name."""


@runtime_checkable
class Part(Protocol):
    """Several options that a command takes as one parameter."""

    def options(self) -> list[inspect.Parameter]:
        """The options as typer reads them."""

    def value(self, given: Mapping[str, Any]) -> Any:
        """What the command gets, made from the options' values by name."""


SHARED: dict[str, Part] = {}
"""Parts by the parameter's name, for every command that has one of the name."""
HELP: dict[str, str] = {}
"""The help of arguments and options by name, as commands name them."""


@dataclass(frozen=True)
class Of:
    """The keywords of a function, or the fields of a dataclass, as options.

    A keyword without a type, or whose type has no form in words, such as a function, is left out.

    Attributes:
        source: The function or the dataclass. Its docstring's `Args:` or `Attributes:` are the help.
        only: Names to take; all that have defaults if empty.
        without: Names to leave out.
        repeated: Whether every option may be given several times, for a list of values to try.
        defaults: Defaults other than the source's.
        builds: Whether the command gets an instance of the dataclass, and not the values by name.
    """

    source: Callable[..., Any]
    only: Sequence[str] = ()
    without: Sequence[str] = ()
    repeated: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    builds: bool = False

    def options(self) -> list[inspect.Parameter]:
        """The options as typer reads them."""
        hints, docs = get_type_hints(self.source, include_extras=True), _written(self.source)
        taken = [(name, usual) for name, usual in self.usual().items() if name in hints]
        found = [
            option(name, hints[name], usual, _for_people(docs.get(name, ""), usual is None), self.repeated)
            for name, usual in taken
        ]
        return [one for one in found if one is not None]

    def value(self, given: Mapping[str, Any]) -> Any:
        """The values by name, or the instance that is made from them."""
        # An option that two parts share has no default if theirs differ: each part has its own.
        usual = self.usual()
        kept = {name: given[name] for name in usual if given.get(name) is not None}
        if not self.repeated:
            kept = {name: usual[name] for name in usual if name in given} | kept
        for name, value in kept.items():
            if isinstance(value, list) and len(value) == 1 and isinstance(usual[name], str):
                kept[name] = value[0]
        kept = {name: None if value is NONE else value for name, value in kept.items()}
        return self.source(**kept) if self.builds else kept

    def usual(self) -> dict[str, Any]:
        """The defaults by name."""
        if isinstance(self.source, type) and is_dataclass(self.source):
            taken = {one.name: one.default for one in fields(self.source) if one.init and one.default is not MISSING}
        else:
            parameters = inspect.signature(self.source).parameters.values()
            taken = {one.name: one.default for one in parameters if one.default is not one.empty}
        left_out = NEVER.union(self.without)
        names = self.only or [name for name in taken if name not in left_out]
        return {name: self.defaults.get(name, taken[name]) for name in names}


def spread(command: Callable[..., None], **parts: Part) -> Callable[..., None]:
    """A command as typer reads it. `HELP` has the help of its own parameters.

    Parameters without a default are arguments, those with one are options. A parameter that is annotated with a dataclass is
    spread into the dataclass's fields.

    Args:
        command: The function.
        **parts: Other parameters to spread, by name; besides `SHARED`.
    """
    shown: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[Part, list[str]]] = {}
    for one in inspect.signature(command, eval_str=True).parameters.values():
        part = parts.get(one.name) or SHARED.get(one.name)
        if part is None and isinstance(one.annotation, type) and is_dataclass(one.annotation):
            part = Of(one.annotation, builds=True)
        own = [_parameter(one, HELP.get(one.name, ""))] if part is None else part.options()
        for parameter in own if part is not None else ():
            get_args(parameter.annotation)[1].rich_help_panel = PANELS.get(one.name)
        for parameter in own:
            known = shown.setdefault(parameter.name, parameter)
            if known.default != parameter.default:
                kind, info = get_args(known.annotation)
                shown[parameter.name] = known.replace(default=None, annotation=Annotated[Optional[kind], info])
        if part is not None:
            groups[one.name] = part, [parameter.name for parameter in own]

    @wraps(command)
    def spread_out(**given: Any) -> None:
        made = {name: part.value({key: given[key] for key in keys}) for name, (part, keys) in groups.items()}
        inside = {key for _, keys in groups.values() for key in keys}
        own = {name: None if value is NONE else value for name, value in given.items() if name not in inside}
        command(**own, **made)

    order = sorted(shown.values(), key=lambda one: one.default is not one.empty)
    spread_out.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]  # what typer reads
    spread_out.__annotations__ = {one.name: one.annotation for one in order}
    return spread_out


def option(name: str, hint: Any, default: Any, text: str, repeated: bool = False) -> inspect.Parameter | None:
    """One option as typer reads it; None if its type has no form in words.

    Args:
        name: The keyword.
        hint: Its type.
        default: Its default.
        text: The help.
        repeated: Whether it may be given several times, for a list of values.
    """
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    lists = [] if repeated else [get_args(one)[0] for one in members if is_list(one)]
    inner, many = (lists or [hint])[0], repeated or bool(lists)
    flag = f"--{name.replace('_', '-')}"
    if lists and name.endswith("s") and name not in STAYS_PLURAL:
        flag = flag[:-1]
    takes_none = NoneType in members and not many
    kinds = [one for one in (members if not lists else [inner]) if one is not NoneType and words_of(one, name)]
    annotation: Any = kinds[0] if len(kinds) == 1 else None
    settings: dict[str, Any] = {"help": text or None}
    if annotation is str:
        settings["metavar"] = "TEXT"
    if annotation is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    elif name in NAMED or takes_none or (annotation is not str and (many or not _fits_the_help(annotation))):
        words = words_of(inner, name)
        if words is None:
            return None
        told = f"{metavar(inner)}|none" if takes_none and default is not None else metavar(inner)
        settings |= {"parser": replace(words, flag=flag, marks_none=not many), "metavar": told}
        annotation = str
    if many:
        annotation, settings["show_default"] = list[annotation], default not in (None, (), [])
        if repeated:
            default = None
        elif default is not None:
            default = [default] if isinstance(default, str) else list(default)
    kind: Any = Optional[annotation] if default is None else annotation
    made = Annotated[kind, typer.Option(flag, **settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=made)


def as_options(taken: Of, given: Mapping[str, Any]) -> str:
    """Values as they are typed; those that are the defaults, or that have no option, are left out.

    Args:
        taken: The options.
        given: Values by their names in Python.
    """
    usual, words = taken.usual(), []
    for one in taken.options():
        value = given.get(one.name, usual[one.name])
        if _as_tuple(value) == _as_tuple(usual[one.name]):
            continue
        kind, info = get_args(one.annotation)
        flag, _, off = str(info.default).partition("/")  # typer keeps the flag there
        if off and isinstance(value, bool):
            words.append(flag if value else off)
        elif get_origin(kind) is list and isinstance(value, tuple | list):
            words += [f"{flag} {word_for(part)}" for part in value]
        else:
            words.append(f"{flag} {word_for(value)}")
    return " ".join(words)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # files have no tuples


def _fits_the_help(annotation: Any) -> bool:
    """Whether an option's values are words that have room beside its name, where typer shows them."""
    return get_origin(annotation) is Literal and len("|".join(map(str, get_args(annotation)))) <= LONGEST_CHOICE


def docs_of(source: Callable[..., Any]) -> dict[str, str]:
    """The texts under `Args:` and `Attributes:` of a Google-style docstring, by name; a class has its bases' too."""
    return {name: _for_people(told) for name, told in _written(source).items()}


def _written(source: Callable[..., Any]) -> dict[str, str]:
    """The same as they are written."""
    found: dict[str, str] = {}
    for one in reversed(source.__mro__) if isinstance(source, type) else [source]:
        text = inspect.cleandoc(one.__doc__ or "")
        for section in re.findall(r"^(?:Args|Attributes):\n((?: .*\n?|\n)+)", text, re.M):
            entries = re.findall(r"^ {4}\**(\w+): (.*(?:\n {5,}.*)*)", section, re.M)
            found |= dict(entries)
    return found


def _parameter(one: inspect.Parameter, text: str) -> inspect.Parameter:
    """A command's own parameter as typer reads it."""
    if get_origin(one.annotation) is Annotated:
        return one.replace(kind=one.KEYWORD_ONLY)
    if one.default is one.empty:
        return one.replace(
            kind=one.KEYWORD_ONLY,
            annotation=Annotated[one.annotation, typer.Argument(help=text, metavar=one.name.upper())],
        )
    found = option(one.name, one.annotation, one.default, text)
    assert found is not None, f"{one.name} of type {one.annotation} has no form in words"
    return found


def _for_people(text: str, is_left_out: bool = True) -> str:
    """A docstring's words on the command line: no quotes of code, and None is an option that is left out, or the word."""
    plain = re.sub(r'`+"?(.*?)"?`+', r"\1", " ".join(text.split()))
    if not is_left_out:
        return re.sub(r"\bNone\b", "none", plain)
    return re.sub(r"(^|\. )l(?=eft out)", r"\1L", re.sub(r"\bNone\b", "left out", plain))
