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
    columns = "l" * left + "r" * (len(frame.columns) - left)
    # Outside of formulas, LaTeX's old fonts have another sign in the place of <.
    return str(frame.to_latex(index=False, escape=True, column_format=columns)).replace("& <", "& $<$")


def readable(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """All cells as text, index included: numbers rounded, intervals beside what they are of, names without underscores."""

    def in_words(name: object, value: object) -> str:
        return p_text(value) if str(name).endswith("p_value") else text(value, digits)

    frame = table.reset_index()
    for middle, low, high in INTERVALS:
        if {middle, low, high} <= set(frame):
            spans = zip(frame[middle], frame.pop(low), frame.pop(high), strict=True)
            frame[middle] = [
                f"{text(value, digits)} [{text(least, digits)}, {text(most, digits)}]" for value, least, most in spans
            ]
    out = pd.DataFrame({str(name).replace("_", " "): [in_words(name, v) for v in frame[name]] for name in frame})
    for name in table.index.names:
        key = str(name if name is not None else "index").replace("_", " ")
        out[key] = [cell.replace("_", " ") for cell in out[key]]
    return out.rename(columns={"p value": "p"})


def p_text(value: object) -> str:
    """A p-value; below 0.001 only that it is, since the least that resamples can tell depends on their number."""
    return "<0.001" if isinstance(value, float) and value < 0.001 else text(value)


def text(value: object, digits: int = 3) -> str:
    """One cell."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.{digits}g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None or value is pd.NA else str(value)
