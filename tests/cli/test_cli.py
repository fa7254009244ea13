import inspect
from pathlib import Path

import pytest
from conftest import assert_is_one_error

from sea_lens.analysis.effects import measure_effects
from sea_lens.analysis.layers import ablate_layers
from sea_lens.analysis.probes import probe_activations
from sea_lens.cli.app import COMMANDS, SECTIONS
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.methods.sea.sea import SEA
from sea_lens.models.collect import collect_activations

# --- help ------------------------------------------------------------------------------------------------------------


def test_the_help_fits_a_screen_in_the_order_of_the_work(sea_lens):
    code, out, err = sea_lens("--help", width=80)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert 24 <= len(lines) <= 44
    assert max(map(len, lines)) <= 80
    words = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.startswith("  ")}
    assert [name for name in words if name in COMMANDS] == sorted(
        COMMANDS, key=lambda name: lines.index(next(line for line in lines if line.startswith(f"  {name} ")))
    )
    assert all(words[name] == listed.summary for name, listed in COMMANDS.items())
    assert [line[:-1] for line in lines if line[:-1] in SECTIONS] == list(SECTIONS)
    assert sea_lens("-h", width=80)[1] == sea_lens(width=80)[1] == out


def test_the_version_is_told(sea_lens):
    code, out, _ = sea_lens("--version")
    assert (code, out.startswith("sea-lens 0.")) == (0, True)


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("effects", measure_effects),
        ("ablate", ablate_layers),
        ("probe", probe_activations),
        ("fit sea", SEA),
        ("evaluate bbq", evaluate_bbq),
    ],
)
def test_what_a_function_takes_is_an_option(sea_lens, command, function):
    code, out, err = sea_lens(*command.split(), "--help")
    assert (code, err) == (0, "")
    no_words = {"folder", "progress", "groups"}  # groups are any objects
    takes = [one.name for one in inspect.signature(function).parameters.values() if one.default is not one.empty]
    for name in set(takes) - no_words - {"editor", "edited"}:
        assert f"--{name.replace('_', '-')}" in out or f"--{name[:-1].replace('_', '-')} " in out, name


def test_every_command_has_help_within_the_screen(sea_lens):
    shown = {}
    for name in COMMANDS:
        for words in ([name], [name, "leace"]) if name in ("fit", "tune", "transfer", "data-efficiency") else ([name],):
            code, out, err = sea_lens(*words, "--help", width=80)
            assert (code, err) == (0, "")
            assert max(map(len, out.splitlines())) <= 80
            shown[" ".join(words)] = out
    batch = inspect.signature(collect_activations).parameters["batch_size"].default
    assert "--shrinkage" in shown["fit leace"]
    assert f"[default: {batch}" in " ".join(shown["collect"].split())
    assert "truthfulqa" in shown["evaluate"]
    assert "perplexity" in shown["evaluate"]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(tmp_path, monkeypatch):
    """A folder of bad files, where no model can be loaded."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("sea_lens.cli.inputs.load_model", load)
    monkeypatch.chdir(tmp_path)
    good = '{"prompt": "p", "positive": "a", "negative": "b"}'
    Path("good.jsonl").write_text(good)
    Path("malformed.jsonl").write_text(f'{good}\n{good}\n{{"prompt": \n')
    Path("column.jsonl").write_text('{"prompt": "p", "positive": "a"}\n')
    Path("cell.csv").write_text("prompt,positive,negative\np,a,b\np,a\n")
    Path("folder").mkdir()


FIT = ["fit", "organism", "good.jsonl"]
ABLATE = ["ablate", "organism", "EDITOR", "organism"]
TRUTH = ["evaluate", "truthfulqa", "organism", "organism"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["inspct", "folder"], ["no command 'inspct'. Did you mean inspect?"]),
        (["inspect"], ["Missing argument"]),
        (["inspect", "folder"], ["config.json could not be read"]),
        (["inspect", "nowhere"], ["There is no folder nowhere", "hub"]),
        (["inspect", "two\nlines\x1b[31m"], ["There is no folder two lines\\x1b[31m"]),
        (["--import", "absent.py", "methods"], ["There is no file absent.py"]),
        (["collect", "organism", "nofile.csv", "--out", "o"], ["nofile.csv could not be read"]),
        ([*FIT[:2], "malformed.jsonl"], ["malformed.jsonl, line 3: not valid JSON"]),
        ([*FIT[:2], "column.jsonl"], ["column.jsonl has no column 'negative'", "prompt, positive"]),
        ([*FIT[:2], "cell.csv"], ["cell.csv, line 3: the row does not have the header's 3 cells"]),
        ([*FIT, "--n", "2"], ["2 demonstrations were asked for"]),
        ([*FIT, "--explained-variance", "1.5"], ["(0, 1]", "1.5"]),
        ([*FIT, "--spectrum", "cubed"], ["--spectrum", "'cubed'"]),
        ([*FIT, "--token", "first"], ["--token", "a whole number or last, last_content, mean"]),
        ([*FIT, "--feature-map", "tanh:0"], ["Tanh's scale must be a finite number above zero"]),
        ([*FIT, "--layers", "some"], ["'--layers'", "all, first:N", "'some'"]),
        ([*FIT, "--seed", "9223372036854775808"], ["'--seed'", "from 0 to 4294967295"]),
        ([*FIT, "--template", "{question}", "--chat"], ["--template and --chat", "Give one"]),
        ([*FIT, "--wrong"], ["No such option: --wrong"]),
        ([*FIT, "--out", "o" * 300], ["'--out'", "too long"]),
        ([*FIT, "--out", "good.jsonl"], ["'--out'", "good.jsonl is a file"]),
        ([*FIT, "--activations", "folder"], ["Give either --activations", "not both"]),
        (["fit"], ["There is no model. Give both", "--activations alone"]),
        (["fit", "leace", "organism"], ["the model organism, and no DEMONSTRATIONS", "fit leace organism"]),
        (["fit", "--activations", "folder", "--site", "mlp_out"], ["--site: no effect on activations"]),
        (["tune", "organism", "good.jsonl", "--out", "o", "--strength", "nan"], ["--strength", "finite number"]),
        (["tune", "organism", "good.jsonl", "--out", "o", "--also", "magic"], ["no method 'magic'", "leace"]),
        (["convert", "nofile.pt", "nofile.pt"], ["nofile.pt could not be read"]),
        (["fit", "memit", "organism", "nofile.json"], ["nofile.json"]),
        (["generate", "organism", "EDITOR"], ["Missing argument"]),
        (["effects", "organism", "EDITOR", "organism", "--control", "-1"], ["--control", "from 0 on"]),
        ([*ABLATE, "--effect", "taste"], ["Unknown effect 'taste'"]),
        ([*ABLATE, "--mode", "middle"], ["--mode", "'middle'", "only"]),
        (["probe", "organism", "EDITOR", "good.jsonl", "--n-folds", "1"], ["--n-folds", "from 2 on"]),
        (["evaluate", "taste", "organism", "x"], ["There is no benchmark 'taste'", "truthfulqa, "]),
        ([*TRUTH[:3], "nofile.csv"], ["nofile.csv could not be read"]),
        ([*TRUTH, "--editor", "nowhere"], ["There is no folder nowhere"]),
        ([*TRUTH, "--confidence", "1"], ["--confidence", "inside (0, 1)"]),
        (["evaluate", "lm-eval", "organism", "hellaswag", "--limit", "inf"], ["--limit", "above zero"]),
        (["evaluate", "perplexity", "organism", "organism", "--n", "999"], ["999 questions were asked for"]),
        (["evaluate", "bbq", "organism", "bias-organism"], ["'organism' does not know the words of 'bias-organism'"]),
        (["compare", "organism", "EDITOR"], ["Give at least one benchmark", "--truthfulqa"]),
        (["compare", "organism", "EDITOR", "EDITOR", "--truthfulqa", "organism"], ["Two editors are called 'editor'"]),
        (["transfer", "organism", "a=nofile.csv", "--bbq", "organism"], ["nofile.csv could not be read"]),
        (["data-efficiency", "organism", "organism", "--size", "999", "--truthfulqa", "organism"], ["999"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_before_any_model_is_loaded(sea_lens, editor_folder, no_model, arguments, parts):
    before = sorted(Path().iterdir())
    code, _, err = sea_lens(*(str(editor_folder) if word == "EDITOR" else word for word in arguments))
    assert code == 2
    assert_is_one_error(err, *parts)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["fit", "organism", "DEMOS", "--layers", "0-99999999999"], "layers 0 to 3"),
        (["fit", "organism", "DEMOS", "--chat"], "no chat template"),
        (["generate", "organism", "EDITOR", "text", "--layers", "first:1"], "no layer is left"),
        (["generate", "organism", "EDITOR", "word " * 80], "context is 64"),
        (["generate", "no-such-model", "EDITOR", "text"], "There is no model 'no-such-model'"),
        (["evaluate", "truthfulqa", "organism", "organism", "--prompt", "some"], "template with {question}"),
        (["evaluate", "bbq", "organism", "organism"], "Give one of BBQ's files"),
    ],
)
def test_mistakes_that_only_the_model_shows_are_one_line(sea_lens, demos, editor_folder, tmp_path, arguments, part):
    places = {"DEMOS": demos, "EDITOR": editor_folder}
    out = [] if arguments[0] == "generate" else ["--out", tmp_path / "o"]
    code, _, err = sea_lens(*(places.get(word, word) for word in arguments), *out)
    assert code == 2
    assert_is_one_error(err.splitlines()[-1] + "\n", part)
    assert not (tmp_path / "o" / "config.json").exists()
