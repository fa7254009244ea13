"""The site has a place for every public name, figure and page, and its links are those of the repository, rewritten."""

import re
from pathlib import Path

import pytest

import sea_lens as sl
from docs.building import check, figures, links, reference
from sea_lens import plotting
from sea_lens.plotting import style

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page for _, page in reference.pages())
    names = {name for name in sl.__all__ if name != "plotting"} | {f"plotting.{name}" for name in plotting.__all__}
    assert sorted(name for name in names if f"heading: sl.{name}\n" not in text) == []
    assert sorted(reference.paths()) == sorted(names)


def test_the_reference_begins_with_the_lines_that_examples_go_on_from():
    lines = [line.strip().removeprefix(">>> ") for line in sl.__doc__.splitlines() if ">>>" in line]
    assert reference.first_lines().splitlines() == lines  # which tests/test_examples.py runs
    pages = dict(reference.pages())
    index = pages.pop("reference/index.md")
    assert index.index("\n".join(lines)) < index.index("\n## ")
    assert [page for page, text in pages.items() if "(index.md#api-reference)" not in text] == []


def test_every_figure_is_in_the_gallery_below_code_that_draws_it():
    text = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    drawn = [figures.figure_of(code) for code in figures.BLOCK.findall(text)]
    functions = [name for name in plotting.__all__ if name.startswith("plot_")]
    assert sorted(filter(None, drawn)) == sorted(functions)
    assert [name for name in functions if f"\n### {name}\n" not in text] == []
    assert figures.with_figures(text, "gallery.md").count("![What plot_") == len(functions)


def test_pages_with_figures_are_marked():
    assert figures.pages() == ["concepts/mathematics.md", "gallery.md"]


def is_gray(color):
    channels = bytes.fromhex(color[1:])
    return max(channels) - min(channels) <= 12


def test_the_site_and_the_tutorials_have_the_colors_of_figures():
    """Colors that somebody typed; grays are free."""
    known = {style.PROMOTED, style.SUPPRESSED, style.GREY, style.INK, style.VIOLET, style.GOLD, style.WARNING}
    files = [*(ROOT / "docs/assets").glob("*.svg"), *(ROOT / "tutorials").glob("*.ipynb")]
    typed = {path.name: set(re.findall(r'"(#[0-9a-f]{6})\\?"', path.read_text(encoding="utf-8"))) for path in files}
    others = {name: {one for one in colors - known if not is_gray(one)} for name, colors in typed.items()}
    assert {name: colors for name, colors in others.items() if colors} == {}
    assert sum(map(len, typed.values())) >= 10


def test_every_page_has_a_place():
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f" {page}\n" not in told] == []


def test_every_page_is_linked_from_another():
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}
    led_to = {
        (page.parent / target).resolve()
        for page, text in [*pages.items(), (ROOT / "README.md", (ROOT / "README.md").read_text(encoding="utf-8"))]
        for _, target, _ in links.LINK.findall(text.replace("#", ")"))
        if page != (page.parent / target).resolve()
    }
    assert sorted(page.name for page in pages.keys() - led_to) == []


@pytest.mark.parametrize(
    ("markdown", "source", "page", "found"),
    [
        ("[a](massive.md#b)", "docs/data.md", "data.md", "[a](massive.md#b)"),
        ("[a](docs/data.md)", "CONTRIBUTING.md", "contributing.md", "[a](data.md)"),
        ("[a](../../README.md)", "docs/how-to/chat.md", "how-to/chat.md", "[a](../index.md)"),
        (
            "[a](../tutorials/01_quickstart.ipynb)",
            "docs/massive.md",
            "massive.md",
            "[a](tutorials/01_quickstart.ipynb)",
        ),
        ("[a](../worlds/README.md)", "sea_lens/sae/x.md", "x.md", "[a](worlds.md)"),
        ("[a](../sea_lens/cache.py)", "docs/data.md", "data.md", "[a](https://host/us/it/blob/main/sea_lens/cache.py)"),
        ("[a](https://b.org)", "docs/data.md", "data.md", "[a](https://b.org)"),
        ("`[a](../sea_lens/cache.py)`", "docs/data.md", "data.md", "`[a](../sea_lens/cache.py)`"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(markdown, source, page, found):
    assert links.for_site(markdown, source, page, "https://host/us/it") == found


def test_without_an_address_links_to_code_are_plain_text():
    assert (
        links.for_site("see [a](../sea_lens/cache.py), [b](data.md)", "docs/x.md", "x.md", "") == "see a, [b](data.md)"
    )


def test_names_lead_to_the_reference_and_code_is_left_alone():
    text = "`sl.SEA` and `sl.nothing`\n\n```python\n`sl.SEA`\n```\n# `sl.SEA`\n"
    linked = links.to_reference(text, {"SEA": "x.SEA"})
    assert linked == text.replace("`sl.SEA` and", "[`sl.SEA`][x.SEA] and")


def test_dead_links_and_things_from_elsewhere_are_found(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/index.html").write_text('<h1 id="here">b</h1>', encoding="utf-8")
    (tmp_path / "index.html").write_text(
        '<a href="b/#here"></a><a href="b/#there"></a><a href="c/"></a><script src="https://x.org/y.js"></script>'
        '<a href="https://x.org"></a><a href="b/?q=1"></a>',
        encoding="utf-8",
    )
    assert check.faults(tmp_path) == [
        "index.html loads https://x.org/y.js from elsewhere",
        "index.html links to b/#there, which has no such anchor",
        "index.html links to c/, which is not there",
    ]
