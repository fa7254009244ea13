"""Texts of a model side by side, each with as much of the screen as the others."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from sea_lens.cli.output import console, harmless, keeps

NARROWEST = 24
"""Characters below which a column of prose is hard to read: then texts stand below each other."""


def show_texts(texts: Mapping[str, str], title: str = "") -> None:
    """Shows texts by their names: side by side in columns of one width, or below each other where that is too narrow.

    Args:
        texts: The texts by name.
        title: What stands above them.
    """
    if keeps(title, [dict(texts)]):
        return
    shown = {harmless(name): harmless(text, "\n") or "(nothing)" for name, text in texts.items()}
    beside = console.width // max(1, len(shown)) >= NARROWEST + 3 and len(shown) <= 3
    drawn = Table(box=box.ROUNDED, expand=beside, show_header=beside, show_lines=not beside)
    if title:
        console.print(Text(harmless(title, "\n")), style="bold")
    if beside:
        for name in shown:
            drawn.add_column(Text(name), ratio=1, overflow="fold")
        drawn.add_row(*map(Text, shown.values()))
    else:
        drawn.add_column(no_wrap=True)
        drawn.add_column(overflow="fold")
        for name, text in shown.items():
            drawn.add_row(Text(name), Text(text))
    console.print(drawn)
