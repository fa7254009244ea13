import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from conftest import EMBEDDED, PNG

from sea_lens import Editor, collect_activations, fit_sea
from sea_lens.cli.app import console
from sea_lens.evaluation import data_efficiency

pytestmark = pytest.mark.usefixtures("without_type_checks")
FIT = ["--max-new-tokens", 1, "--explained-variance", 0.9999, "--layers", "last:1"]


def test_editors_are_compared_in_one_folder(sea_lens, editor_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_width", 80)
    Editor.from_pretrained(editor_folder).scaled(-1.0).save_pretrained(tmp_path / "backwards")
    editors = [f"by hand={editor_folder}", tmp_path / "backwards"]
    options = [
        "--truthfulqa",
        "organism",
        "--perplexity",
        "organism",
        "--n",
        6,
        "--repeats",
        1,
        "--out",
        tmp_path / "o",
    ]
    code, out, err = sea_lens("compare", "organism", *editors, *options)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "o" / "comparison.csv").set_index("editor")
    assert table.index.tolist() == ["unedited", "by hand", "backwards"]
    assert {"TruthfulQA MC1", "texts perplexity", "slowdown", "bytes"} <= set(table)
    assert (tmp_path / "o" / "comparison.png").read_bytes().startswith(PNG)
    assert (tmp_path / "o" / "comparison.md").read_text().startswith("| editor |")
    assert (tmp_path / "o" / "comparison.tex").read_text().startswith("\\begin{tabular}")
    assert (tmp_path / "o" / "evaluations" / "backwards" / "TruthfulQA" / "evaluation.json").exists()
    assert not (tmp_path / "o" / "unfinished").exists()
    assert all(len(line) <= 80 for line in out.split("comparison.json")[0].splitlines())
    assert "TruthfulQA: MC1, 95% intervals" in out


def test_editors_fitted_on_each_source_are_measured_on_each_benchmark(sea_lens, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_width", 80)
    model, world = EMBEDDED["load_bias_organism"]("cpu")
    data = world.demonstrations()
    swapped = tuple(replace(row, positive=row.negative, negative=row.positive) for row in data)
    replace(data, rows=swapped).to_jsonl(tmp_path / "swapped.jsonl")
    sources = ["BBQ=bias-organism", tmp_path / "swapped.jsonl"]
    options = ["--bbq", "bias-organism", "--perplexity", "bias-organism", "--n-questions", 40, "--n", 60]
    code, out, err = sea_lens("transfer", "bias-organism", *sources, *FIT, *options, "--out", tmp_path / "o")
    assert code == 0, err
    matrix = pd.read_csv(tmp_path / "o" / "transfer.csv").set_index("source")
    assert matrix.columns.tolist() == ["BBQ", "texts"]
    assert matrix.loc["BBQ", "BBQ"] > 0.15 > 0 > matrix.loc["swapped.jsonl", "BBQ"]
    assert (tmp_path / "o" / "transfer.png").read_bytes().startswith(PNG)
    assert (tmp_path / "o" / "transfer.md").read_text().startswith("| source |")
    assert (tmp_path / "o" / "transfer.tex").read_text().startswith("\\begin{tabular}")
    facts = json.loads((tmp_path / "o" / "comparison.json").read_text())
    assert list(facts["editors"]) == matrix.index.tolist() == ["BBQ", "swapped.jsonl"]
    answered = data.sample(60, 0).with_neutral_answers(model, 1, progress=False)
    expected = fit_sea(collect_activations(model, answered, [3], progress=False), 0.9999, progress=False)
    assert facts["editors"]["BBQ"] == expected.fingerprint
    assert not (tmp_path / "o" / "unfinished").exists()
    assert "BBQ: accuracy, 95% intervals" in out
    assert all(len(line) <= 80 for line in out.split("comparison.json")[0].splitlines())


def test_fits_on_fewer_demonstrations_are_measured_and_a_killed_run_goes_on(sea_lens, tmp_path, monkeypatch):
    command = ["data-efficiency", "bias-organism", "bias-organism", *FIT, "--bbq", "bias-organism", "--n-questions", 40]
    command += ["--n", 60, "--draws", 2, "--seed", 4, "--size", 5, "--size", 60, "--out", tmp_path / "o"]
    drawn, draw = [], data_efficiency.draw

    def killed(activations, size, seed):
        if drawn:
            raise KeyboardInterrupt
        drawn.append((size, seed))
        return draw(activations, size, seed)

    with monkeypatch.context() as patched:
        patched.setattr(data_efficiency, "draw", killed)
        assert sea_lens(*command)[0] == 130
    monkeypatch.setattr(data_efficiency, "draw", lambda *given: (drawn.append(given[1:]), draw(*given))[1])
    code, out, err = sea_lens(*command)
    assert code == 0, err
    assert drawn == [(5, 4), (5, 5)]  # the first not again
    fits = pd.read_csv(tmp_path / "o" / "fits.csv")
    assert fits["size"].tolist() == [5, 5, 60]
    assert fits["seed"].tolist()[:2] == [4, 5]
    curve = pd.read_csv(tmp_path / "o" / "curve.csv").set_index("size")
    assert curve.loc[60, "change"] > 0.15
    names = ["curve.csv", "curve.md", "curve.png", "curve.tex", "fits.csv", "result.json", "unedited"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    assert (tmp_path / "o" / "curve.png").read_bytes().startswith(PNG)
    assert "BBQ: accuracy, unedited 0." in out
    mean, low, high = (f"{curve.loc[5, name]:.3g}" for name in ("mean", "low", "high"))
    assert re.search(rf"│ 5 +│ 2 +│ {re.escape(f'{mean} [{low}, {high}]')} │", out)


BENCHMARKS = "--truthfulqa --truthfulqa-prompt --bbq --bbq-prompt --crows-pairs --perplexity"
FITTING = (
    "--explained-variance --negative-explained-variance --rank --spectrum --center --no-center --projections --merge "
    "--feature-map --feature-unit --merge-space --format --n --seed --template --chat --answer-ending --max-new-tokens "
    "--token --layers --site --batch-size --device --dtype --out --n-questions --confidence"
)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("compare", f"{BENCHMARKS} --out --repeats --n --seed --confidence --batch-size --device --dtype"),
        ("transfer", f"{BENCHMARKS} {FITTING}"),
        ("data-efficiency", f"{BENCHMARKS} {FITTING} --size --draws"),
    ],
)
def test_help_lists_every_option(sea_lens, command, options):
    code, out, err = sea_lens(command, "--help")
    assert (code, err) == (0, "")
    listed = set(re.findall(r"^ +(--[a-z-]+)(?: / (--[a-z-]+))?", out.split("Options:")[1], flags=re.MULTILINE))
    assert {option for pair in listed for option in pair} - {"--help", ""} == set(options.split())
    assert command in sea_lens("--help")[1]


TRUTH = ["--truthfulqa", "organism"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["compare", "organism", "EDITOR"], "Give at least one benchmark"),
        (["compare", "organism", "EDITOR", "EDITOR", *TRUTH], "Two editors are called 'editor'"),
        (["compare", "organism", "unedited=EDITOR", *TRUTH], "'unedited' is the unedited model's"),
        (["transfer", "organism", "DEMOS"], "Give at least one benchmark"),
        (["transfer", "organism", "DEMOS", "DEMOS", *TRUTH], "Two sources are called 'demos.jsonl'"),
        (["transfer", "organism", "a=nofile.csv", *TRUTH], "nofile.csv could not be read"),
        (["transfer", "organism", "DEMOS", *TRUTH, "--explained-variance", "0"], "(0, 1]"),
        (["transfer", "organism", "bias-organism", *TRUTH], "does not know the words of 'bias-organism'"),
        (["transfer", "organism", "DEMOS", *TRUTH, "--token", "first"], "--token is last, last_content, mean"),
        (["data-efficiency", "organism", "DEMOS", *TRUTH, "--perplexity", "organism"], "Give one benchmark, and not 2"),
        (["data-efficiency", "organism", "DEMOS", *TRUTH, "--size", "31"], "sizes of 1 to 30"),
        (["data-efficiency", "organism", "DEMOS", *TRUTH, "--draws", "0"], "--draws"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(sea_lens, demos, editor_folder, tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    places = {"EDITOR": str(editor_folder), "DEMOS": str(demos)}
    for word, place in places.items():
        arguments = [given.replace(word, place) for given in arguments]
    code, _, err = sea_lens(*arguments)
    assert code == 2
    assert part in err
    assert err.splitlines()[-1].startswith("error: ")
    assert not any(tmp_path.iterdir())
