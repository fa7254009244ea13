"""What commands show and leave behind: tables that fit the screen, CSV and PNG files, and nothing unfinished."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sea_lens.cache import write_text
from sea_lens.editing.editor import Editor
from sea_lens.editing.files import CONFIG, TENSORS
from sea_lens.results import Result, readable

console = Console()
WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
"""Lines break at spaces alone, so that names of files and options stay whole."""
UNFINISHED = "unfinished"
"""Folder of batches that a killed command continues from. It is gone once the results are written."""


def harmless(text: str, kept: str = "") -> str:
    """A text whose control characters are shown as escapes, so that a terminal does not obey them."""
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)


@dataclass
class Told:
    """What a command under `--json` tells: kept until its end, and printed as one object.

    Attributes:
        error: Why the command failed, as stderr says it; None where it did not.
        lines: What else would say in words, the verdict first.
        tables: What else would be drawn, as rows.
        results: Results as they are saved, by their kind.
        files: What was written, inside `folder`.
        folder: Where.
        notes: What else would say on stderr.
    """

    error: str | None = None
    lines: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    folder: str | None = None
    notes: list[str] = field(default_factory=list)


_ASKED: ContextVar[Told | None] = ContextVar("asked", default=None)
"""What a command line with `--json` tells, until it is known which command runs."""
_TOLD: ContextVar[Told | None] = ContextVar("told", default=None)
_NOTED: ContextVar[set[str] | None] = ContextVar("noted", default=None)
"""Notes of the command that runs, each of which is said once."""


def as_json(command: Callable[..., None]) -> Callable[..., None]:
    """A command with an option `--json`: one JSON object on stdout in the place of lines and tables."""

    @wraps(command)
    def with_json(*, as_json: bool = False, **given: Any) -> None:
        told = _ASKED.get() or Told() if as_json else None
        tokens = _TOLD.set(told), _NOTED.set(set())
        try:
            command(**given)
        finally:
            _TOLD.reset(tokens[0])
            _NOTED.reset(tokens[1])
        if told is not None:
            _print(told)

    signature, about = inspect.signature(command), "Print one JSON object to stdout, and nothing else there; "
    told = f"{about}after a failure its error says why."
    flag = Annotated[bool, typer.Option("--json", help=told, rich_help_panel="Output")]
    added = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag)
    with_json.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    with_json.__annotations__ = {**command.__annotations__, "as_json": flag}
    return with_json


@contextmanager
def failures_as_json(words: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """Inside the block, gives what prints a failure as JSON: of a command line with `--json`; else it prints nothing.

    The object has all keys that a command's own has, with what it told until then.

    Args:
        words: The command line.
    """
    given = words[: words.index("--")] if "--" in words else words
    told = Told() if "--json" in given else None
    token = _ASKED.set(told)

    def fail(message: str) -> None:
        if told is not None:
            told.error = message
            _print(told)

    try:
        yield fail
    finally:
        _ASKED.reset(token)


def _print(told: Told) -> None:
    """One object, on one line; in ASCII where stdout cannot show all of it."""
    plain = _plain(asdict(told))
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(plain, allow_nan=False)
    typer.echo(text)


def _plain(value: Any) -> Any:
    """As JSON can have it: no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows in full precision, with its index where that has names."""
    named = any(name is not None for name in table.index.names)
    frame = table.reset_index() if named else table
    return [dict(zip(map(str, frame), row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def record(*results: Result) -> None:
    """Keeps results for `--json`, whole."""
    told = _TOLD.get()
    for result in results if told is not None else ():
        plain = {one.name: getattr(result, one.name) for one in fields(result)}  # type: ignore[arg-type]
        kept = {name: value for name, value in plain.items() if isinstance(value, bool | int | float | str)}
        told.results.append({"kind": type(result).__name__, **kept, "table": rows_of(result.table)})  # type: ignore[union-attr]


def keeps(title: str, rows: list[dict[str, Any]]) -> bool:
    """Keeps rows for `--json`, and tells whether it did: then nothing is drawn.

    Args:
        title: What they are.
        rows: A dictionary per row.
    """
    told = _TOLD.get()
    if told is not None:
        told.tables.append({"title": title, "rows": rows})
    return told is not None


def say(text: str, indent: int | None = None) -> None:
    """Prints lines.

    Args:
        text: Lines.
        indent: What a line that is wider than the screen goes on with, in spaces; None leaves it to the terminal.
    """
    told = _TOLD.get()
    if told is not None:
        told.lines += [line for line in text.split("\n") if line]
        return
    for line in harmless(text, "\n").split("\n"):
        if indent is None or len(line) <= console.width:
            typer.echo(line)
            continue
        for part in wrap(line, console.width, subsequent_indent=" " * indent, **WHOLE):
            typer.echo(part)


def note(text: str) -> None:
    """Says once, on stderr, what is no mistake and yet good to know."""
    noted, told = _NOTED.get(), _TOLD.get()
    if noted is not None and text in noted:
        return
    if noted is not None:
        noted.add(text)
    if told is not None:
        told.notes.append(text)
        return
    for part in wrap(harmless(f"note: {text}"), console.width, **WHOLE):
        typer.echo(part, err=True)


def conclude(*sentences: str) -> None:
    """Says what a result comes to: the first lines of a command."""
    for sentence in sentences:
        say(sentence, indent=0)


def show(table: pd.DataFrame, title: str = "", lines: bool = False) -> None:
    """Shows a table: numbers to three digits, an interval in the cell of its mean.

    No cell is cut and no word is broken. Columns that do not fit the screen come below, with the first column again.

    Args:
        table: Any table.
        title: What stands above it.
        lines: Whether to draw lines between rows.
    """
    if _TOLD.get() is not None:
        keeps(title, rows_of(table))
        return
    frame = readable(table)
    cells = {str(name): [harmless(cell, "\n") for cell in frame[name]] for name in frame}
    # Each column's widest word and widest cell; beside a cell stand two spaces and a line.
    words = {name: max(map(len, " ".join([name, *column]).split()), default=1) for name, column in cells.items()}
    whole = {
        name: max(len(line) for cell in [name, *column] for line in cell.split("\n")) for name, column in cells.items()
    }
    least = {name: min(width, console.width // 2 - 4) for name, width in words.items()}
    first, *others = cells
    blocks = [[first]]
    for name in others:
        if len(blocks[-1]) > 1 and sum(least[one] + 3 for one in [*blocks[-1], name]) >= console.width:
            blocks.append([first])
        blocks[-1].append(name)
    for number, block in enumerate(blocks):
        widths = {name: least[name] for name in block}
        while sum(widths.values()) + 3 * len(block) + 1 < console.width:
            name = max(block, key=lambda one: whole[one] - widths[one])
            if whole[name] <= widths[name]:
                break
            widths[name] += 1
        drawn = Table(title=Text(title) if title and not number else None, show_lines=lines)
        for name in block:
            drawn.add_column(Text(name), overflow="fold", width=widths[name])
        for row in zip(*(cells[name] for name in block), strict=True):
            drawn.add_row(*map(Text, row))
        console.print(drawn)


def write(
    out: Path, figures: Mapping[str, Figure], *results: Result, tables: Mapping[str, pd.DataFrame] | None = None
) -> None:
    """Writes results, further tables and figures under their names, and says so.

    Args:
        out: The folder.
        figures: Pictures by name.
        *results: Results, which save themselves.
        tables: Tables by name.
    """
    written = [path for result in results for path in result.save(out)]
    record(*results)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in (tables or {}).items():
        write_text(out / f"{name}.csv", table.to_csv())
        written.append(out / f"{name}.csv")
    draw(out, figures)
    finish(out, [*written, *(out / f"{name}.png" for name in figures)])


def draw(out: Path, figures: Mapping[str, Figure]) -> None:
    """Writes figures under their names."""
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)


def wrote(out: Path, written: Sequence[Path]) -> bool:
    """Keeps the names of written files for `--json`, and tells whether it did.

    Args:
        out: The folder of the command.
        written: Files in it.
    """
    told = _TOLD.get()
    if told is not None:
        told.folder = str(out)
        told.files += [str(path.relative_to(out)) for path in written if str(path.relative_to(out)) not in told.files]
    return told is not None


def save_editor(editor: Editor, out: Path, inside: str = "") -> None:
    """Saves an editor in the folder of a command, or in one inside it.

    Args:
        editor: The editor.
        out: The folder.
        inside: The name of the one inside.
    """
    folder = out / inside
    editor.save_pretrained(folder)
    wrote(out, [folder / name for name in (CONFIG, TENSORS, "README.md")])


def finish(out: Path, written: Sequence[Path]) -> None:
    """Clears away what a killed command would continue from, and says what was written."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    names = [path.relative_to(out) for path in written]
    if wrote(out, written):
        return
    inside = dict.fromkeys(f"{name.parts[0]}/" for name in names if len(name.parts) > 1)
    say(f"{', '.join([*(str(name) for name in names if len(name.parts) == 1), *inside])} in {out}", indent=4)
