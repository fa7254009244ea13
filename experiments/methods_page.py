"""Writes the table of docs/methods.md, from what stands on the methods: `python -m experiments.methods_page`."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

import sea_lens.methods  # noqa: F401  # registers every method
from sea_lens.cells import to_markdown
from sea_lens.methods.budget import method_rows
from sea_lens.methods.method import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
PAPER = re.compile(r"([^;\s][^;]*?),? arXiv (\d{4}\.\d{5})")
"""A paper that is named before its number on arXiv, of which there may be several between semicolons."""
BEGINS, ENDS = "<!-- the table begins -->\n", "<!-- the table ends -->\n"


def table() -> str:
    """A row per method that ships: equation, source, sites, what it needs, when to use it."""
    own = {name: entry for name, entry in METHODS.items() if entry.cls.__module__.startswith("sea_lens.")}
    rows = pd.DataFrame(method_rows(own)).sort_values("method")
    rows = rows.assign(
        **{name: [f"`{cell}`" for cell in rows[name]] for name in ("method", "equation")},
        source=[PAPER.sub(r"[\1](https://arxiv.org/abs/\2)", cell) for cell in rows["source"]],
        **{"when to use it": [cell[0].lower() + cell[1:].rstrip(".") for cell in rows["when to use it"]]},
    )
    return to_markdown(rows)


def parts() -> tuple[str, str, str]:
    """The page before, in and after its table."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGINS)
    inside, after = rest.split(ENDS)
    return before, inside, after


if __name__ == "__main__":
    before, _, after = parts()
    PAGE.write_text("".join([before, BEGINS, table(), ENDS, after]), encoding="utf-8")
