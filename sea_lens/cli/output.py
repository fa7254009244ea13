"""What commands show and leave behind: tables within 80 columns, CSV and PNG files, and nothing unfinished."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import typer
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from sea_lens.cli.app import console
from sea_lens.results import Result, readable

UNFINISHED = "unfinished"
"""Folder of batches that a killed command goes on from; gone once the results are written."""


def write(
    out: Path, results: Sequence[Result], figures: Mapping[str, Figure], by_folder: Mapping[str, Result] | None = None
) -> None:
    """Saves results, further ones in folders of their own, and figures under their names; says what it wrote."""
    places = [(out, result) for result in results] + [(out / name, one) for name, one in (by_folder or {}).items()]
    written = [path for folder, result in places for path in result.save(folder)]
    for name, figure in figures.items():
        written.append(out / f"{name}.png")
        figure.savefig(written[-1], dpi=150)
    finish(out, [str(path.relative_to(out)) for path in written])


def finish(out: Path, written: Sequence[str]) -> None:
    """Clears away what was kept for going on after a kill, and says what is there."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    typer.echo(f"{', '.join(written)} are in {out}")


def show(table: pd.DataFrame, title: str) -> None:
    """A table on the screen, within 80 columns: numbers to three digits, an interval in the cell of its mean."""
    frame = readable(table)
    drawn = Table(title=escape(title))
    for column in frame.columns:
        drawn.add_column(str(column), overflow="fold")
    for row in frame.itertuples(index=False):
        drawn.add_row(*map(escape, row))
    console.print(drawn)
