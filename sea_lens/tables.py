"""Tables of results: as text for people, and as CSV files that are read back to the last bit."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pandas as pd

from sea_lens.cache import write_text
from sea_lens.errors import FileFormatError

INTERVALS = (
    ("mean", "low", "high"),
    ("value", "low", "high"),
    ("change", "low", "high"),
    ("score", "low", "high"),
    ("control", "control_low", "control_high"),
)
"""Columns of a number and of the ends of its interval."""
Layout = Mapping[str, object]
"""What a CSV file does not say about a table: `index`, the names of its levels, and `columns`, the kind of each."""


def number_text(value: float, digits: int = 3, sign: str = "") -> str:
    """A number to some significant digits; nothing for NaN."""
    return "" if pd.isna(value) else f"{value:{sign}.{digits}g}"


def interval_text(value: float, low: float, high: float, digits: int = 3, sign: str = "") -> str:
    """A number with its interval, as `0.25 [0.1, 0.4]`; the number alone where there is no interval."""
    span = "" if pd.isna(low) else f" [{number_text(low, digits)}, {number_text(high, digits)}]"
    return number_text(value, digits, sign) + span


def p_text(value: object) -> str:
    """A p-value; below 0.001 only that it is, since resamples cannot tell smaller ones apart."""
    return "<0.001" if isinstance(value, float) and value < 0.001 else cell_text(value)


def cell_text(value: object, digits: int = 3) -> str:
    """One cell of a table."""
    if isinstance(value, float):
        return number_text(value, digits)
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "" if value is None or value is pd.NA else str(value)


def readable(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """All cells as text, index included: numbers rounded, intervals beside their numbers, names without underscores."""
    frame = table.reset_index()
    for middle, low, high in INTERVALS:
        if {middle, low, high} <= set(frame):
            spans = zip(frame[middle], frame.pop(low), frame.pop(high), strict=True)
            frame[middle] = [interval_text(*span, digits) for span in spans]
    frame = pd.DataFrame(
        {
            str(name).replace("_", " "): [
                p_text(value) if str(name).endswith("p_value") else cell_text(value, digits) for value in frame[name]
            ]
            for name in frame
        }
    )
    for name in table.index.names:
        key = str(name if name is not None else "index").replace("_", " ")
        frame[key] = [cell.replace("_", " ") for cell in frame[key]]
    return frame.rename(columns={"p value": "p"})


def to_markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A GitHub-flavoured Markdown table of `readable`; pandas' own does not escape `|` or line breaks in cells."""
    frame = readable(table, digits)
    cells = [list(frame.columns), ["---"] * len(frame.columns), *frame.values.tolist()]
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in cells]
    return "".join("| " + " | ".join(row) + " |\n" for row in escaped)


def to_latex(table: pd.DataFrame, digits: int = 3) -> str:
    """A LaTeX `tabular` with booktabs rules of `readable`."""
    frame = readable(table, digits)
    left = len(table.index.names)
    columns = "l" * left + "r" * (len(frame.columns) - left)
    # Outside of formulas, LaTeX's old fonts have another sign in the place of <.
    return str(frame.to_latex(index=False, escape=True, column_format=columns)).replace("& <", "& $<$")


def to_html(title: str, table: pd.DataFrame, digits: int = 3) -> str:
    """What a notebook shows of a result: its title and `readable`."""
    return f"<b>{html.escape(title)}</b>{readable(table, digits).to_html(index=False)}"


def write_table(table: pd.DataFrame, path: Path) -> dict[str, object]:
    """Writes a CSV file whose numbers keep all of their digits.

    Args:
        table: Columns of numbers, truth values, texts, or other JSON values; columns and index levels have names.
        path: The file.

    Returns:
        What `read_table` needs to know besides the file; plain JSON.
    """
    frame = table.reset_index()
    kinds = {str(name): _kind(frame[name]) for name in frame}
    for name, kind in kinds.items():
        if kind == "json":
            frame[name] = ["" if value is None else json.dumps(value, ensure_ascii=False) for value in frame[name]]
    text = frame.to_csv(index=False)
    if "\r" in text:  # which older versions of Python do not quote by themselves
        text = frame.to_csv(index=False, quoting=csv.QUOTE_ALL)
    write_text(path, text)
    return {"index": list(table.index.names), "columns": kinds}


def read_table(path: Path, layout: Layout) -> pd.DataFrame:
    """Reads a table that `write_table` wrote, to the last bit.

    Args:
        path: The file.
        layout: What `write_table` returned.

    Raises:
        FileFormatError: If the file is missing or not that table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            csv.field_size_limit(2**31 - 1)
            header, *rows = csv.reader(StringIO(file.read(), newline=""))
        kinds, index = layout["columns"], layout["index"]
        assert isinstance(kinds, Mapping)
        assert isinstance(index, list)
        cells = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
        frame = pd.DataFrame({name: _column(cells[name], str(kind)) for name, kind in kinds.items()})
        return frame.set_index(list(kinds)[: len(index)]).rename_axis(index)
    except (OSError, ValueError, LookupError, TypeError, AssertionError, csv.Error) as error:
        raise FileFormatError(
            f"{path} is missing or not the table it should be: {error}. Save the result anew."
        ) from error


def _kind(column: pd.Series) -> str:
    if column.dtype.kind in "iufb" or isinstance(column.dtype, pd.Int64Dtype):
        return str(column.dtype)
    if all(value is None or isinstance(value, str) or value is pd.NA or value != value for value in column):
        return "text" if column.notna().all() else "text or none"
    return "json"


def _column(cells: tuple[str, ...], kind: str) -> pd.Series:
    if kind == "text":
        return pd.Series(list(cells))
    if kind == "text or none":
        return pd.Series([cell or None for cell in cells])
    if kind == "json":
        values = [None if cell == "" else json.loads(cell) for cell in cells]
        return pd.Series([tuple(value) if isinstance(value, list) else value for value in values], dtype=object)
    if kind == "bool":
        return pd.Series([cell == "True" for cell in cells])
    if "int" in kind.lower():
        return pd.Series([int(cell) if cell else pd.NA for cell in cells], dtype=kind)
    return pd.Series([float(cell) if cell else float("nan") for cell in cells], dtype=kind)
