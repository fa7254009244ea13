"""The code of the READMEs runs, in the order of the page, and prints what the page says."""

import re
from pathlib import Path

import pytest

from sea_lens.analysis import effects
from sea_lens.editing import registry
from sea_lens.evaluation import benchmark
from sea_lens.methods import method

ROOT = Path(__file__).resolve().parents[1]
READMES = ["README.md", "sea_lens/worlds/README.md", "CONTRIBUTING.md"]
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"\s*<!-- not run: .+ -->\s*")
PRINTED = re.compile(r"`(\d+\.\d% \[[^`]+\])`")


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
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
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
@pytest.mark.parametrize("name", READMES)
def test_every_block_runs_and_prints_what_the_page_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / name).read_text(encoding="utf-8")
    namespace = {"__name__": "__main__"}
    for line, code in blocks(text):
        exec(compile("\n" * (line - 1) + code, str(ROOT / name), "exec"), namespace)
    printed = capsys.readouterr().out
    assert [said for said in PRINTED.findall(text) if said not in printed] == []
