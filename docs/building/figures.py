"""Draws figures by the code that stands in a page, and puts each below its code.

Pages with the comment `<!-- figures -->` are run; every block that assigns `figure` shows it.
`python -m docs.building.figures FOLDER` draws them all without building the site.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parents[1]
MARK = "<!-- figures -->"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DRAWS = re.compile(r"^figure = .*?\b(plot_\w+)|^(figure) = ", re.MULTILINE)


def figure_of(code: str) -> str:
    """What the figure of a block is called: the plotting function, or `figure`; empty where a block draws nothing."""
    drawn = DRAWS.findall(code)
    return "" if not drawn else drawn[-1][0] or drawn[-1][1]


def pages() -> list[str]:
    """The pages whose figures are drawn, relative to docs/."""
    found = (path for path in sorted(PAGES.rglob("*.md")) if MARK in path.read_text(encoding="utf-8"))
    return [path.relative_to(PAGES).as_posix() for path in found]


def place(page: str, number: int, code: str) -> str:
    """Where the figure of a block lies, relative to docs/."""
    return f"figures/{page.removesuffix('.md').replace('/', '-')}-{number}-{figure_of(code)}.png"


def draw(page: str) -> dict[str, bytes]:
    """The figures of a page as PNG, by their places."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    drawn: dict[str, bytes] = {}
    text, here = (PAGES / page).read_text(encoding="utf-8"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            for number, code in enumerate(BLOCK.findall(text)):
                exec(compile(code, page, "exec"), namespace)
                if figure_of(code):
                    buffer = BytesIO()
                    namespace["figure"].savefig(buffer, format="png", dpi=110, bbox_inches="tight")
                    drawn[place(page, number, code)] = buffer.getvalue()
        finally:
            os.chdir(here)
    return drawn


def with_figures(markdown: str, page: str) -> str:
    """The page with each figure below the code that draws it."""
    root = "../" * page.count("/")
    blocks = iter(enumerate(BLOCK.findall(markdown)))

    def shown(match: re.Match[str]) -> str:
        number, code = next(blocks)
        name = figure_of(code)
        return match[0] if not name else f"{match[0]}\n\n![What {name} draws]({root}{place(page, number, code)})\n"

    return BLOCK.sub(shown, markdown) if MARK in markdown else markdown


if __name__ == "__main__":
    for page in pages():
        for name, png in draw(page).items():
            target = Path(sys.argv[1]) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(png)
