"""The code of the pages runs, in their order, and prints what they say; what they claim of data and tables holds."""

import re
from pathlib import Path

import pytest

import sea_lens as sl
from sea_lens.analysis import effects
from sea_lens.data.layouts import LAYOUTS
from sea_lens.editing import registry
from sea_lens.evaluation import benchmark
from sea_lens.methods import method

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *("README.md", "sea_lens/worlds/README.md", "CONTRIBUTING.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]
RUN_BY_THE_BUILD = {"docs/gallery.md"}
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"\s*<!-- not run: .+ -->\s*")
PRINTED = re.compile(r"`(\d+\.\d% \[[^`]+\])`")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text):
    """Every python block with the line it starts on, but for those that a comment directly above says are not run."""
    found = BLOCK.finditer("\n" + text)
    return [
        (text[: match.start("code") - 1].count("\n") + 1, match["code"])
        for match in found
        if not NOT_RUN.fullmatch(match["before"])
    ]


def test_blocks_are_found_and_left_out_as_marked():
    text = (
        "one\n\n```python\na = 1\n```\n\n<!-- not run: downloads -->\n```python\nb = 2\n```\n\n```python\nc = 3\n```\n"
    )
    assert blocks(text) == [(4, "a = 1\n"), (13, "c = 3\n")]
    assert blocks("```python\nfirst = 1\n```\n\n    ```python\n") == [(2, "first = 1\n")]
    assert blocks("<!-- not run: -->\n```python\na = 1\n```\n") == [(3, "a = 1\n")]


def test_no_block_is_missed():
    for name in PAGES:
        text = read(name)
        marked = len(re.findall(r"^<!-- not run: .+ -->\n```python$", text, re.MULTILINE))
        assert len(blocks(text)) + marked == text.count("```python")


@pytest.fixture
def registries():
    """What the pages register is gone afterwards: other tests count what the library itself has."""
    benchmark.benchmarks()  # which are registered when first asked for
    tables = [method.METHODS, effects.EFFECTS, benchmark._REGISTERED, registry._BY_NAME, registry._BY_CLASS]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.mark.usefixtures("without_type_checks", "shared_models", "registries")
@pytest.mark.parametrize("name", [name for name in PAGES if name not in RUN_BY_THE_BUILD and "```python" in read(name)])
def test_every_block_runs_and_prints_what_the_page_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = read(name)
    namespace = {"__name__": "__main__"}
    for line, code in blocks(text):
        exec(compile("\n" * (line - 1) + code, str(ROOT / name), "exec"), namespace)
    printed = capsys.readouterr().out
    assert [said for said in PRINTED.findall(text) if said not in printed] == []


def anchors(text):
    """Headings as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    dead = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "../../actions/")):  # on GitHub, of whichever repository this is
            continue
        other = page.parent / target if target else page
        found = other.exists() and (not anchor or anchor in anchors(other.read_text(encoding="utf-8")))
        dead += [] if found else [f"{target}#{anchor}"]
    assert dead == []


def test_what_is_said_of_centering():
    worlds = (ROOT / "sea_lens/worlds/README.md").read_text(encoding="utf-8")
    number = r"(\d\.\d{3})"
    by_setting = re.findall(rf"^ *\| (\d) \|{f' {number} [|]' * 6}$", worlds, re.MULTILINE)
    plain = dict(re.findall(rf"^\| \**(\d)\**[^|]*\| {number} \|", worlds, re.MULTILINE))
    assert len(by_setting) == len(plain) == 6
    rows = {seed: [float(each) for each in shares] for seed, *shares in by_setting}
    uncentered_wins = [sum(row[k] > row[k + 3] for row in rows.values()) for k in range(3)]
    below_plain = sum(row[2] < float(plain[seed]) for seed, row in rows.items())
    assert uncentered_wins == [3, 6, 6]
    assert below_plain == 3
    said = " ".join(read("docs/concepts/mathematics.md").split())
    assert "for all six at explained variances of 0.9 and of 0.998, and for three of six at 0.5" in said
    assert "below the unedited model on three of the six" in said


def test_every_layout_is_described():
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/data.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(LAYOUTS)


def test_what_is_said_of_halueval(shared_data):
    rows = sl.Demonstrations.from_halueval(shared_data / "halueval_qa_500.json")
    words = {role: sum(len(getattr(row, role).split()) for row in rows) for role in ("positive", "negative")}
    assert round(words["negative"] / words["positive"], 1) == 4.5
    assert "4.5 times as long as the right ones" in read("docs/data.md")
