"""What a release is made of agrees with itself, and the README's links survive it."""

import re
import runpy
import subprocess
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]


def test_one_version_everywhere(sea_lens):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {VERSION}\n" in citation
    assert f"\n## {VERSION}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert sea_lens("--version") == (0, f"sea-lens {metadata('sea-lens')['Version']}\n", "")


def test_every_python_that_is_promised_is_tested():
    promised = {word.rpartition(" ")[2] for word in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", word)}
    for workflow in ("test.yml", "release.yml"):
        text = (ROOT / ".github" / "workflows" / workflow).read_text(encoding="utf-8")
        assert set(re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", text)[1])) == promised
    assert PROJECT["requires-python"] == f">={min(promised, key=lambda one: int(one.split('.')[1]))}"


def test_package_data_are_what_git_knows():
    ran = subprocess.run(["git", "ls-files", "sea_lens"], capture_output=True, text=True, cwd=ROOT)
    if ran.returncode:
        pytest.skip("this is no checkout of git")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    kept = {path for one in patterns["sea_lens"] for path in (ROOT / "sea_lens").glob(one)}
    others = {ROOT / path for path in ran.stdout.split() if not path.endswith(".py")}
    assert {str(path) for path in others - kept if path.exists()} == set()


def test_links_are_absolute_after_the_step_of_a_release():
    absolute = runpy.run_path(str(ROOT / ".ci" / "absolute_links.py"))["absolute"]
    given = (
        "[![t](../../actions/a.svg)](../../actions/a) [a](docs/b.md#c) ![f](docs/f.png) [p](https://x.org/y) [h](#top)"
    )
    house = "https://github.com/o/n"
    assert absolute(given, house, "v1") == (
        f"[![t]({house}/actions/a.svg)]({house}/actions/a) [a]({house}/blob/v1/docs/b.md#c) "
        f"![f]({house}/raw/v1/docs/f.png) [p](https://x.org/y) [h](#top)"
    )
    readme = absolute((ROOT / "README.md").read_text(encoding="utf-8"), house, "v1")
    assert [
        target for target in re.findall(r"\]\(([^)\s]+)\)", readme) if not target.startswith(("https://", "#"))
    ] == []
