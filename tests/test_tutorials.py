"""The tutorials run as they stand, in this process and on models loaded once, and show what is stored in them."""

import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot

TUTORIALS = sorted((Path(__file__).resolve().parents[1] / "tutorials").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
DIGEST = re.compile(r"\b[0-9a-f]{16}\b")
"""Of tensors: the last bits of a fit are the machine's."""
COMPARED = ("text/html", "text/markdown")
"""Tables; how wide they print as plain text depends on the terminal."""


class Shown(DisplayHook):
    """Keeps what the last line of a cell shows, in all its forms, where a terminal would print one."""

    def write_output_prompt(self):
        pass

    def write_format_data(self, format_dict, md_dict=None):
        self.shell.shown = format_dict


class Shell(InteractiveShell):
    """A kernel's shell without a kernel."""

    displayhook_class = Shown
    shown = None

    def run(self, source):
        """Runs a cell; returns its outputs as notebooks have them."""
        self.shown = None
        with capture_output() as captured:
            self.run_cell(source).raise_error()
        for number in pyplot.get_fignums():
            pyplot.figure(number).canvas.draw()
        pyplot.close("all")
        found = [
            {"output_type": "stream", "text": captured.stdout},
            *({"data": each.data} for each in captured.outputs),
        ]
        return found if self.shown is None else [*found, {"data": self.shown}]


def shown(outputs):
    """What people read of a cell's outputs: printed text and tables."""
    printed = "".join(output["text"] for output in outputs if output.get("output_type") == "stream")
    tables = [
        output["data"][kind] for output in outputs if "data" in output for kind in COMPARED if kind in output["data"]
    ]
    return re.sub(r"<style.*?</style>", "", "\n".join([printed, *tables]), flags=re.DOTALL)


def differences(now, stored):
    """Words that are others, and numbers that are further apart than rounding on another machine explains."""
    now, stored = (DIGEST.sub("digest", text) for text in (now, stored))
    if NUMBER.sub("#", now).split() != NUMBER.sub("#", stored).split():
        return [(now, stored)]
    pairs = zip(map(float, NUMBER.findall(now)), map(float, NUMBER.findall(stored)), strict=True)
    return [pair for pair in pairs if pair[0] != pytest.approx(pair[1], rel=0.05, abs=0.05)]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """The imports and the models of this process serve all notebooks."""
    monkeypatch.chdir(tmp_path)
    Shell.clear_instance()
    yield Shell.instance()
    Shell.clear_instance()


def test_differences_are_seen():
    assert differences("edited 100.0% [98.4]", "edited 99.9% [98.4]") == []
    assert differences("edited 100.0% [98.4]", "edited 44.2% [98.4]") == [(100.0, 44.2)]
    assert differences("edited 1", "swapped 1") == [("edited 1", "swapped 1")]
    assert differences("a\n1 2", "a\n1") == [("a\n1 2", "a\n1")]


def test_there_are_tutorials():
    assert len(TUTORIALS) == 6


@pytest.mark.usefixtures("without_type_checks", "shared_models")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_it_runs_and_shows_what_is_stored(path, shell):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert cell.execution_count is not None
        outputs = shell.run(cell.source)
        if "varies" not in cell.metadata.get("tags", []):
            assert differences(shown(outputs), shown(cell.outputs)) == []
    assert any(cell.outputs for cell in cells)
