"""Numbers and tables as text for people: cells, Markdown, LaTeX."""

from __future__ import annotations

import re

import pandas as pd


def p_text(value: object, digits: int = 3) -> str:
    """A p-value as text; below 0.001 only that it is, because the least possible value depends on the resamples."""
    return "<0.001" if isinstance(value, float) and value < 0.001 else cell_text(value, digits)


def cell_text(value: object, digits: int = 3) -> str:
    """One cell as text: numbers rounded, missing values empty."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, float):
        return number_text(value, digits)
    if isinstance(value, tuple):
        return ", ".join(cell_text(part, digits) for part in value)
    return str(value)


def number_text(value: float, digits: int = 3, sign: str = "") -> str:
    """A number as people read it: no powers of ten up to a billion, and below 0.001 only that it is.

    Args:
        value: The number.
        digits: Significant digits.
        sign: `+` to show that of positive numbers, too.

    Example:
        >>> [number_text(value) for value in (0.12345, 138912.0, 1.2e-05, -1.2e-05, 0.0)]
        ['0.123', '139,000', '<0.001', '>-0.001', '0']
    """
    if pd.isna(value):
        return ""
    if 0 < abs(value) < 0.001:
        return "<0.001" if value > 0 else ">-0.001"
    rounded = float(f"{value:.{digits}g}") + 0.0  # which is no -0.0
    return f"{rounded:{sign},.0f}" if 1000 <= abs(rounded) < 1e9 else f"{rounded:{sign}.{digits}g}"


def to_markdown(frame: pd.DataFrame) -> str:
    """Cells of text, from `readable`, as a GitHub-flavoured table; pandas' own does not escape `|` and line breaks."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.values.tolist()]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in cells)


def to_latex(frame: pd.DataFrame) -> str:
    """Cells of text, from `readable`, as a LaTeX `tabular` with booktabs rules."""
    columns = "l" + "r" * (len(frame.columns) - 1)
    # Outside of formulas, LaTeX's old fonts have another sign in the place of <.
    return re.sub("[<>]", r"$\g<0>$", str(frame.to_latex(index=False, escape=True, column_format=columns)))
