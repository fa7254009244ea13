"""The page on the command line."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from sea_lens.cli.app import command
from sea_lens.cli.inputs import named
from sea_lens.cli.options import HELP, Options
from sea_lens.cli.output import say
from sea_lens.page.blocks import blocks_of, gradio
from sea_lens.page.ready import desk_of

HELP |= {
    "host": "Address to listen on; 127.0.0.1 is this machine alone.",
    "port": "Port to listen on.",
    "browser": "Open the page in a browser.",
}


@command("Using")
def page(
    model: str,
    editors: Annotated[
        Optional[list[str]],
        typer.Argument(help="Editor folders or hub names, or NAME=FOLDER; none for organism.", metavar="EDITORS"),
    ] = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = False,
    *,
    loading: Options,
) -> None:
    """Play with editors on a page: both answers, tokens, damage."""
    gradio()  # before a model is loaded
    shown = blocks_of(desk_of(model, named(editors or [], "editors"), **loading))
    say(f"The page is at http://{host}:{port} on this machine. Ctrl-C ends it.")
    shown.launch(server_name=host, server_port=port, inbrowser=browser, quiet=True)
