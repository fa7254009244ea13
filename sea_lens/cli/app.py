"""The command line itself: commands in the order of the work, built when they are asked for."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from runpy import run_path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand, TyperGroup

from sea_lens.cli.examples import EXAMPLES
from sea_lens.cli.options import Part, spread
from sea_lens.cli.output import as_json
from sea_lens.errors import InputError

SECTIONS = ("Start", "Data and fitting", "Using", "Looking", "Evaluating")
TALKS = ("chat", "page")
"""Commands that talk with a user and have no result."""
SETTINGS: Any = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Listed:
    """A command before it is built.

    Attributes:
        section: Where the help lists it.
        summary: One line for the help.
        build: Makes what typer runs.
    """

    section: str
    summary: str
    build: Callable[[], Any]


COMMANDS: dict[str, Listed] = {}


def command(section: str, **parts: Part) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a command; its name is the function's, and its parts become options.

    Args:
        section: Where the help lists it.
        **parts: See `spread`.
    """

    def listed(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        COMMANDS[name] = Listed(section, _summary(function), lambda: built(spread(function, **parts), name))
        return function

    return listed


def command_of_each(
    section: str,
    entries: Callable[[], Mapping[str, Any]],
    summary: Callable[[Any], str],
    default: str | Callable[[list[str]], str] | None = None,
) -> Callable[[Callable[[Any], Callable[..., None]]], Callable[[Any], Callable[..., None]]]:
    """Makes a function that makes commands a group: one for each entry of a registry, by its name.

    Args:
        section: Where the help lists the group.
        entries: The registry, read when the group is used.
        summary: One line about an entry.
        default: The entry that is meant where the first word names none; or a function of the words that says which.
    """

    def listed(make: Callable[[Any], Callable[..., None]]) -> Callable[[Any], Callable[..., None]]:
        name = make.__name__.replace("_", "-")

        def build() -> Any:
            group = _group(name, inspect.getdoc(make) or "", Entries)
            group.listed = {word_of(key): one(word_of(key), entry) for key, entry in entries().items()}
            group.default = default
            return group

        def one(key: str, entry: Any) -> Listed:
            return Listed("Commands", summary(entry), lambda: built(make(entry), key, summary(entry)))

        COMMANDS[name] = Listed(section, _summary(make), build)
        return make

    return listed


def word_of(name: str) -> str:
    """A registered name as one word."""
    return name.replace(" ", "-").replace("_", "-")


def built(function: Callable[..., None], name: str, about: str | None = None) -> Any:
    """What typer runs for one function; `about` is its help, for None its docstring."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    shown = function if name in TALKS else as_json(function)
    single.command(name, cls=Grouped, help=about, context_settings=SETTINGS)(shown)
    return typer.main.get_command(single)


class Grouped(TyperCommand):
    """A command whose help lists its options in groups, those of the command itself first, and ends with examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, and each group of options under its name."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for one in self.get_params(ctx):
            told = one.get_help_record(ctx)
            panel = getattr(one, "rich_help_panel", None) or "Options"
            if told is not None:
                groups.setdefault("Arguments" if one.param_type_name == "argument" else panel, []).append(told)
        last = ("Output", "Options") if len(groups["Options"]) == 1 else ("Output",)  # --help alone
        for name, rows in sorted(groups.items(), key=lambda item: item[0] in last):
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Commands to copy."""
        write_examples(ctx.command_path, formatter)


def write_examples(path: str, formatter: Any) -> None:
    """The examples of a command, as they are."""
    given = EXAMPLES.get(path.partition(" ")[2], ())
    if given:
        with formatter.section("Examples"):
            for line in given:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Entries(TyperGroup):
    """A group whose commands are built when they are asked for. Its help cuts no summary."""

    listed: Mapping[str, Listed]
    default: str | Callable[[list[str]], str] | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the work."""
        return list(self.listed)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Builds a command."""
        return self.listed[cmd_name].build() if cmd_name in self.listed else None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the default command before words that name none."""
        wants_help = any(word in ("-h", "--help") for word in args[:1])
        completes = ctx.resilient_parsing  # then a word that is not there yet is no default
        if self.default is not None and not wants_help and not completes and (not args or args[0] not in self.listed):
            args = [self.default if isinstance(self.default, str) else self.default(args), *args]
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Commands to copy."""
        write_examples(ctx.command_path, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The names with their whole summaries, by section."""
        found = dict.fromkeys(one.section for one in self.listed.values())
        sections = [section for section in SECTIONS if section in found] or list(found)
        width = max(map(len, self.listed), default=0)
        for section in sections:
            with formatter.section(section):
                formatter.write_dl(
                    [(f"{key:<{width}}", one.summary) for key, one in self.listed.items() if one.section == section]
                )


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


def _group(name: str, about: str, cls: type[TyperGroup], start: Callable[..., None] | None = None) -> Any:
    """A group; the one with a start is the whole command line, and completes words at the tabulator key."""
    group = typer.Typer(
        cls=cls,
        name=name,
        help=about,
        add_completion=start is not None,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=False,
        invoke_without_command=start is not None,
        context_settings=SETTINGS,
    )
    group.callback()(start if start is not None else lambda: None)
    made: Any = typer.main.get_command(group)
    for one in made.params:
        if one.name == "show_completion":
            one.hidden = True  # --install-completion is what people need
    return made


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sea-lens {version('sea-lens')}")
        raise typer.Exit


def _load(places: list[str] | None) -> list[str] | None:
    """Imports the modules that register a user's own methods, edits and benchmarks."""
    for place in places or ():
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise InputError(f"There is no file {place} to import.")
            run_path(place, run_name=Path(place).stem)
        else:
            sys.path.insert(0, "")
            try:
                import_module(place)
            except ModuleNotFoundError as error:
                raise InputError(f"{place!r} could not be imported: {error}. Give a module or a .py file.") from error
    return places


def _start(
    ctx: typer.Context,
    version: Annotated[
        Optional[bool], typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = None,
    imports: Annotated[
        Optional[list[str]],
        typer.Option(
            "--import", metavar="MODULE", help="Your own methods and benchmarks: a module or .py file.", callback=_load
        ),
    ] = None,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def app() -> Any:
    """The whole command line, as typer runs it."""
    about = (
        "Edit what a language model says, and see why the edit works.\n\n"
        "MODEL is a hub name, folder, GGUF file, smollm2 or organism (embedded)."
    )
    group = _group("sea-lens", about, Entries, _start)
    order = sorted(COMMANDS, key=lambda name: SECTIONS.index(COMMANDS[name].section))
    group.listed = {name: COMMANDS[name] for name in order}
    return group
