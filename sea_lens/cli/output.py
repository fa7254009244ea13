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

from sea_lens.cache import write_text
from sea_lens.cli.app import console
from sea_lens.tables import readable

UNFINISHED = "unfinished"
"""Folder of batches that a killed command goes on from; gone once the results are written."""


def write(out: Path, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Figure]) -> None:
    """Writes tables and figures under their names, and says so."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_text(out / f"{name}.csv", table.to_csv())
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    finish(out, [*(f"{name}.csv" for name in tables), *(f"{name}.png" for name in figures)])


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
