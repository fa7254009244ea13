"""Checks a built site: every link inside leads to a page and an anchor, and nothing is loaded from elsewhere.

`python -m docs.building.check site`
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}
SHEETS = {"stylesheet", "preload", "modulepreload", "icon"}


class Found(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes one tag."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and SHEETS & set(given.get("rel", "").split()):
            self.loaded.append(given["href"])
        self.loaded += [given[name] for kind, name in LOADED if kind == tag and name in given]


def read(path: Path) -> Found:
    """What stands in one page."""
    found = Found()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def faults(site: Path) -> list[str]:
    """A line per dead link and per thing loaded from elsewhere."""
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html"))}
    said = []
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        if here.name == "404.html":  # its links begin at the root of wherever the site is put
            continue
        outside = [link for link in page.loaded if urlsplit(link).netloc]
        said += [f"{here} loads {link} from elsewhere" for link in outside]
        inside = [link for link in page.links + page.loaded if not urlsplit(link).scheme and not urlsplit(link).netloc]
        for link in dict.fromkeys(inside):
            target, anchor = urldefrag(unquote(link))
            other = (path.parent / target.partition("?")[0]).resolve() if target else path
            other = other / "index.html" if other.is_dir() else other
            if not other.exists():
                said.append(f"{here} links to {link}, which is not there")
            elif anchor and other in pages and anchor not in pages[other].anchors:
                said.append(f"{here} links to {link}, which has no such anchor")
    return said


if __name__ == "__main__":
    found = faults(Path(sys.argv[1]))
    print("\n".join(found) or "All links inside lead somewhere, and nothing is loaded from elsewhere.")
    sys.exit(bool(found))
