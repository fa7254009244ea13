"""What mkdocs calls: pages from outside of docs/, the reference, the gallery's figures, links and equations."""

from __future__ import annotations

import os
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from docs.building import figures, links, mathematics, reference  # noqa: E402

COLAB = "https://colab.research.google.com/github"
THEIRS = re.compile(r"<(style|script)\b.*?</\1>", re.DOTALL)
COPYING = re.compile(
    r'<div class="zeroclipboard-container">.*?</clipboard-copy>\s*</div>|<div class="clipboard-copy-txt"[^>]*>.*?</div>',
    re.DOTALL,
)
CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
"""A cell of a table, where `|` within code is escaped for GitHub and must not be here."""
CODE = re.compile(r'<div class="highlight-ipynb[^"]*"><pre>(.*?)</pre></div>', re.DOTALL)
SOURCES: dict[str, str] = {}
"""Page -> the file of the repository that it shows, where that is not the page itself."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in the patterns of the navigation."""
    config.nav = _filled(config.nav)
    return config


def _pages() -> list[str]:
    known = [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    notebooks = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tutorials").glob("*.ipynb"))]
    return [*known, *notebooks, *links.TAKEN_IN.values(), *(name for name, _ in reference.pages())]


def _filled(entries: list[Any]) -> list[Any]:
    known, found = _pages(), []
    for entry in entries:
        if isinstance(entry, dict):
            ((title, inside),) = entry.items()
            found.append({title: _filled(inside) if isinstance(inside, list) else inside})
        elif "*" in entry:
            found += [name for name in known if fnmatch(name, entry) and not name.endswith("/index.md")]
        elif entry in known:
            found.append(entry)
    return found


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not in docs/, before mkdocs-jupyter looks for notebooks."""
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        place = f"tutorials/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls
        files.append(File(*place))
    for source, page in links.TAKEN_IN.items():
        if not (ROOT / "docs" / page).exists():
            SOURCES[page] = source
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, text in reference.pages():
        files.append(File.generated(config, page, content=text))
    for page in figures.pages():
        for name, png in figures.draw(page).items():
            files.append(File.generated(config, name, content=png))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links for the site, and the gallery's figures."""
    name = page.file.src_uri
    if name.endswith(".ipynb"):
        return markdown
    if not name.startswith(("reference/", "changelog")):
        markdown = links.to_reference(markdown, reference.paths())
    repository = (config.repo_url or "").rstrip("/")
    markdown = markdown.replace("git clone REPOSITORY", f"git clone {repository or 'REPOSITORY'}")
    markdown = links.for_site(markdown, SOURCES.get(name, f"docs/{name}"), name, repository)
    return figures.with_figures(markdown, name)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations; notebooks without their own styles and scripts, and with a link that opens them."""
    if not page.file.src_uri.endswith(".ipynb"):
        return mathematics.of_page(CELL.sub(lambda found: found[0].replace("\\|", "|"), html))
    html = CODE.sub(r'<div class="highlight"><pre><code>\1</code></pre></div>', COPYING.sub("", THEIRS.sub("", html)))
    html = mathematics.of_notebook(html)
    repository = (config.repo_url or "").rstrip("/")
    html = links.for_notebook(html, page.file.src_uri, repository)
    if "github.com/" in repository:
        place = f"{repository.partition('github.com/')[2]}/blob/main/{page.file.src_uri}"
        html = f'<p><a class="md-button" href="{COLAB}/{place}">Open in Colab</a></p>\n{html}'
    return html
