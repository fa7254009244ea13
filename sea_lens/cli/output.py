"""What commands show and leave behind: tables that fit the screen, CSV and PNG files, and nothing unfinished."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sea_lens.cache import write_text
from sea_lens.results import Result, readable

console = Console()
UNFINISHED = "unfinished"
"""Folder of batches that a killed command continues from. It is gone once the results are written."""


def harmless(text: str, kept: str = "") -> str:
    """A text whose control characters are shown as escapes, so that a terminal does not obey them."""
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)


def say(text: str) -> None:
    """Prints lines."""
    typer.echo(harmless(text, "\n"))


def show(table: pd.DataFrame, title: str = "", lines: bool = False) -> None:
    """Shows a table: numbers to three digits, an interval in the cell of its mean.

    No cell is cut and no word is broken. Columns that do not fit the screen come below, with the first column again.

    Args:
        table: Any table.
        title: What stands above it.
        lines: Whether to draw lines between rows.
    """
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


def finish(out: Path, written: Sequence[Path]) -> None:
    """Clears away what a killed command would continue from, and says what was written."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    names = [path.relative_to(out) for path in written]
    inside = dict.fromkeys(f"{name.parts[0]}/" for name in names if len(name.parts) > 1)
    say(f"{', '.join([*(str(name) for name in names if len(name.parts) == 1), *inside])} in {out}")
