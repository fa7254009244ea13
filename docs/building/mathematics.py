"""Equations as MathML, which browsers draw without a script."""

from __future__ import annotations

import re
from html import escape, unescape

from latex2mathml.converter import convert

MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
MARKDOWN_CELL = re.compile(r'(<div class="jp-RenderedHTMLCommon jp-RenderedMarkdown.*?</div>)', re.DOTALL)
DOLLARS = re.compile(r"(\$\$?)(?!\s)([^$]+?)\1", re.DOTALL)


def as_mathml(latex: str, display: str) -> str:
    """One equation, with its source for those who copy it."""
    source = unescape(latex).strip()
    drawn = convert(source, display=display)
    return drawn.replace("<math ", f'<math title="{escape(source, quote=True)}" ', 1)


def of_page(html: str) -> str:
    """A page with the equations that markdown marked drawn."""
    return MARKED.sub(lambda found: as_mathml(found[2], "block" if found[1] == "div" else "inline"), html)


def of_notebook(html: str) -> str:
    """A notebook's page with the equations of its markdown cells drawn."""
    parts = MARKDOWN_CELL.split(html)
    parts[1::2] = [
        DOLLARS.sub(lambda found: as_mathml(found[2], "block" if found[1] == "$$" else "inline"), part)
        for part in parts[1::2]
    ]
    return "".join(parts)
