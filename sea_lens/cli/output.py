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
from sea_lens.evaluation.tables import p_text

INTERVALS = (
    ("mean", "low", "high"),
    ("change", "low", "high"),
    ("value", "low", "high"),
    ("control", "control_low", "control_high"),
)

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
    frame = table.reset_index()
    if not pd.api.types.is_numeric_dtype(frame.iloc[:, 0]):
        frame.isetitem(0, [str(name).replace("_", " ") for name in frame.iloc[:, 0]])
    for mean, low, high in INTERVALS:
        if {mean, low, high} <= set(frame):
            cells = zip(frame[mean], frame.pop(low), frame.pop(high), strict=True)
            frame[mean] = [
                _cell(middle) if pd.isna(least) else f"{_cell(middle)} [{_cell(least)}, {_cell(most)}]"
                for middle, least, most in cells
            ]
    for name in frame:
        if str(name).endswith("p_value"):
            frame[name] = [p_text(value) for value in frame[name]]
    drawn = Table(title=escape(title))
    for column in frame.columns:
        drawn.add_column(str(column).replace("_", " ").replace("p value", "p"), overflow="fold")
    for row in frame.itertuples(index=False):
        drawn.add_row(*(escape(_cell(value)) for value in row))
    console.print(drawn)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is pd.NA else str(value)
