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
from typer.exceptions import TyperException

from sea_lens.cli.examples import EXAMPLES
from sea_lens.cli.flags import flags_of
from sea_lens.cli.options import Part, spread
from sea_lens.cli.order import kinds_of, wrong_order
from sea_lens.cli.output import as_json
from sea_lens.errors import InputError
from sea_lens.models.hub import did_you_mean
from sea_lens.wording import speaking

SECTIONS = ("Start", "Data and fitting", "Using", "Looking", "Evaluating")
TALKS = ("chat", "page")
"""Commands that talk with a user and have no result."""
DEFAULTED = "sea_lens.defaulted"
"""Set where a group's default entry was put before the words."""
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
    noun: str = "method",
) -> Callable[[Callable[[Any], Callable[..., None]]], Callable[[Any], Callable[..., None]]]:
    """Makes a function that makes commands a group: one for each entry of a registry, by its name.

    Args:
        section: Where the help lists the group.
        entries: The registry, read when the group is used.
        summary: One line about an entry.
        default: The entry that is meant where the first word names none; or a function of the words that says which.
        noun: What an entry is, for messages.
    """

    def listed(make: Callable[[Any], Callable[..., None]]) -> Callable[[Any], Callable[..., None]]:
        name = make.__name__.replace("_", "-")

        def build() -> Any:
            group = _group(name, inspect.getdoc(make) or "", Entries)
            group.listed = {word_of(key): one(word_of(key), entry) for key, entry in entries().items()}
            group.default, group.noun = default, noun
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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words; where they are too few, too many or in another order, it says what goes where."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        ctx.allow_extra_args, typed = True, list(args)
        try:
            more = super().parse_args(ctx, args)
        except TyperException as error:
            if isinstance(error, typer.BadParameter) and getattr(error.param, "param_type_name", "") == "argument":
                self._refuse(ctx, *self._filled(ctx, typed), " ".join(error.format_message().split()))
            raise
        self._refuse(ctx, *self._filled(ctx, typed), "")
        return more

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; what goes wrong is told in its own options."""
        with speaking(flags_of(self.get_params(ctx))):
            return super().invoke(ctx)

    def _filled(self, ctx: Any, typed: list[str]) -> tuple[list[str], list[str], list[str]]:
        """The words that are no options, the arguments that they fill, and the words that fill none."""
        given, extra, _ = self.make_parser(ctx).parse_args(args=list(typed))
        names: list[str] = []
        words: list[str] = []
        for one in self.get_params(ctx):
            value = given.get(one.name) if one.param_type_name == "argument" else None
            found = [value] if isinstance(value, str) else list(value) if isinstance(value, tuple | list) else []
            names += [one.name] * len(found)
            words += map(str, found)
        return names, words, list(extra)

    def _refuse(self, ctx: Any, names: list[str], words: list[str], extra: list[str], missing: str) -> None:
        """Raises what is to be said of the words, if there is anything."""
        group = ctx.parent.command if ctx.parent is not None else None
        typed = ctx.parent.command_path if ctx.meta.get(DEFAULTED) else ctx.command_path
        if isinstance(group, Entries) and isinstance(group.default, str) and ctx.meta.get(DEFAULTED):
            group.refuse_unknown(ctx.parent.command_path, [*words, *extra], bool(extra))
        order = " ".join(one.name.upper() for one in self.get_params(ctx) if one.param_type_name == "argument")
        if extra:
            told = f"It takes {order}" if order else "It takes no words, only options"
            raise InputError(f"Got {len(extra)} more than `{typed}` takes: {' '.join(extra)}. {told}.")
        told = wrong_order(typed, names, words, [flag for one in self.get_params(ctx) for flag in one.opts])
        if told:
            raise InputError(told)
        if missing:
            raise InputError(
                f"{missing.rstrip('.')}. The order is {order}; `{ctx.command_path} --help` says what each is."
            )

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
    noun = "command"

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
        if args and args[0] not in self.listed and not kinds_of(args[0]) and word_of(args[0].lower()) in self.listed:
            args = [word_of(args[0].lower()), *args[1:]]  # as mean_difference, and SEA
        if self.default is not None and not wants_help and not completes and (not args or args[0] not in self.listed):
            args = [self.default if isinstance(self.default, str) else self.default(args), *args]
            ctx.meta[DEFAULTED] = True
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a word; of an unknown word, it says which are like it and which there are."""
        if not ctx.resilient_parsing and args[0] not in self.listed and not args[0].startswith("-"):
            self.refuse_unknown(ctx.command_path, args, True)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; where none is named, it says which there are."""
        if not ctx._protected_args and not self.invoke_without_command:
            raise InputError(f"Give a {self.noun}: {', '.join(self.listed)}.")
        return super().invoke(ctx)

    def refuse_unknown(self, path: str, words: list[str], is_surely: bool) -> None:
        """Refuses words of which the first is no entry, if it was meant to be one.

        Args:
            path: The words before.
            words: The words.
            is_surely: Whether it is certain that an entry is meant; else an entry that is like the word has to tell.
        """
        if not words:
            return
        first, *others = words
        later = [word for word in others if word_of(word.lower()) in self.listed and not kinds_of(word)]
        if later and self.noun != "command":
            line = " ".join([path, later[0], *(word for word in words if word != later[0])])
            raise InputError(f"The {self.noun} stands first: {line}")
        close = did_you_mean(first, list(self.listed))
        is_thing = bool(kinds_of(first)) or "/" in first
        if not is_surely and (is_thing or not close):
            return
        if is_thing and self.default is not None:
            return  # a model, and words too many
        raise InputError(f"There is no {self.noun} {first!r}.{close} There are: {', '.join(self.listed)}.")

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
