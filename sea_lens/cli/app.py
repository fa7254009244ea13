"""What every command hangs on and prints to."""

from __future__ import annotations

import typer
from rich.console import Console

app = typer.Typer(
    name="sea-lens",
    help="Edit what a language model says by editing its residual stream, and see why the edit works.\n\n"
    "Start with `sea-lens demo`. With a model and demonstrations of your own: `sea-lens fit`, then `sea-lens generate`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
