"""Links as they stand in the repository, made into links of the site."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
TAKEN_IN = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "sea_lens/worlds/README.md": "worlds.md",
}
"""Files from outside of docs/ and the pages that show them."""
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def page_of(path: str) -> str | None:
    """The page that shows a file of the repository, relative to docs/; None where none does."""
    if path in TAKEN_IN:
        return TAKEN_IN[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.startswith("tutorials/") and path.endswith(".ipynb") else None


def for_site(markdown: str, source: str, page: str, repository: str) -> str:
    """Markdown with links that work on the site.

    Args:
        markdown: The text of a page.
        source: The file it comes from, relative to the repository.
        page: The page that shows it, relative to docs/.
        repository: Its address; links to files that no page shows lead there, and are plain text if it is empty.
    """

    def linked(found: re.Match[str]) -> str:
        target, _, anchor = found[2].partition("#")
        if "://" in target or target.startswith("mailto:") or not target:
            return found[0]
        path = os.path.normpath(PurePosixPath(source).parent / target).replace(os.sep, "/")
        shown = page_of(path)
        if shown is None and not (ROOT / path).exists():
            return found[0]  # the strict build says so
        if shown is None:
            return f"]({repository}/blob/main/{path})" if repository else "](" + NOWHERE + ")"
        start = PurePosixPath(page).parent
        return f"]({os.path.relpath(shown, start).replace(os.sep, '/')}{'#' if anchor else ''}{anchor})"

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(linked, part) for part in parts[::2]]
    text = "".join(parts)
    return text if repository else re.sub(rf"\[([^\[\]]+)\]\({NOWHERE}\)", r"\1", text)


NOWHERE = "nowhere:"
HREF = re.compile(r'href="([^":]+\.(?:ipynb|md|py))(#[^"]*)?"')
NAME = re.compile(r"(?<![\[`])`sl\.([\w.]+)(\([^`]*\))?`(?![\]`])")


def for_notebook(html: str, source: str, repository: str) -> str:
    """A notebook's page with links that work on the site, where each page is a folder."""

    def linked(found: re.Match[str]) -> str:
        path = os.path.normpath(PurePosixPath(source).parent / found[1]).replace(os.sep, "/")
        shown, anchor = page_of(path), found[2] or ""
        if shown is None:
            return f'href="{repository}/blob/main/{path}"' if repository else ""
        folder = shown.rpartition(".")[0]
        start = source.rpartition(".")[0]
        return f'href="{os.path.relpath(folder, start).replace(os.sep, "/")}/{anchor}"'

    return HREF.sub(linked, html)


def to_reference(markdown: str, paths: Mapping[str, str]) -> str:
    """Markdown in which public names, such as `sl.SEA`, lead to the reference.

    Args:
        markdown: The text of a page.
        paths: Public name -> where its docstring is.
    """

    def linked(found: re.Match[str]) -> str:
        return f"[{found[0]}][{paths[found[1]]}]" if found[1] in paths else found[0]

    fenced = re.compile(r"(^```.*?^```$|^#.*$|\[[^\]\n]*\]\([^)\n]*\))", re.MULTILINE | re.DOTALL)
    parts = fenced.split(markdown)
    parts[::2] = [NAME.sub(linked, part) for part in parts[::2]]
    return "".join(parts)
