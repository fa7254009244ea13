"""Tables as Markdown and LaTeX, an interval in the cell of its number."""

from __future__ import annotations

import pandas as pd

INTERVALS = (("value", "low", "high"), ("change", "low", "high"), ("score", "low", "high"))


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A GitHub-flavoured Markdown table, its index first, numbers to `digits` significant digits."""
    frame = readable(table, digits)
    cells = [list(frame.columns), ["---"] * len(frame.columns), *frame.values.tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)


def latex(table: pd.DataFrame, digits: int = 3) -> str:
    """A LaTeX `tabular` with booktabs rules, its index first, numbers to `digits` significant digits."""
    frame = readable(table, digits)
    left = len(table.index.names)
    return str(frame.to_latex(index=False, escape=True, column_format="l" * left + "r" * (len(frame.columns) - left)))


def readable(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """All cells as text, index included: numbers rounded, intervals beside what they are of, names without underscores."""
    frame = table.reset_index()
    for middle, low, high in INTERVALS:
        if {middle, low, high} <= set(frame):
            spans = zip(frame[middle], frame.pop(low), frame.pop(high), strict=True)
            frame[middle] = [
                f"{text(value, digits)} [{text(least, digits)}, {text(most, digits)}]" for value, least, most in spans
            ]
    out = pd.DataFrame({str(name).replace("_", " "): [text(v, digits) for v in frame[name]] for name in frame})
    for name in table.index.names:
        key = str(name if name is not None else "index").replace("_", " ")
        out[key] = [cell.replace("_", " ") for cell in out[key]]
    return out.rename(columns={"p value": "p"})


def text(value: object, digits: int = 3) -> str:
    """One cell."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.{digits}g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None or value is pd.NA else str(value)
