import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import assert_is_one_error

from sea_lens import cli


def test_the_installed_command_runs(tmp_path):
    command = Path(sys.executable).with_name("sea-lens")
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path}
    found = subprocess.run([command, "inspect", "nowhere"], **options)
    assert found.returncode == 2
    assert found.stdout == ""
    assert_is_one_error(found.stderr)


# --- help ------------------------------------------------------------------------------------------------------------

DATA_OPTIONS = (
    "--format --n --seed --template --chat --answer-ending --max-new-tokens --token --layers --site --batch-size "
    "--device"
)
OPTIONS = {
    "demo": "--out --random-editors",
    "collect": f"--out {DATA_OPTIONS}",
    "fit": "--out --activations --explained-variance --negative-explained-variance --rank --spectrum --center "
    f"--no-center --projections --merge --feature-map --feature-unit --merge-space {DATA_OPTIONS}",
    "tune": "--out --questions --measure --explained-variance --feature-map --center --no-center --strength --spectrum "
    f"--projections --merge --feature-unit --merge-space {DATA_OPTIONS}",
    "convert": "--out --layers --site --normalization --feature-function",
    "generate": "--strength --layers --max-new-tokens --device",
    "inspect": "",
    "effects": "--out --control --n --seed --template --batch-size --device",
    "ablate": "--out --effect --mode --pairs --select --control --n --seed --template --batch-size --device",
    "probe": "--out --folds --shuffles --method --n --seed --template --chat --answer-ending --max-new-tokens "
    "--batch-size --device",
    "spectrum": "--out --k --n --seed --template --chat --answer-ending --max-new-tokens --batch-size --device",
}


CALLBACKS = {command.callback.__name__: command.callback for command in cli.app.registered_commands}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_lists_every_option(sea_lens, command):
    code, out, err = sea_lens(command, "--help")
    assert (code, err) == (0, "")
    listed = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", out.split("Options:")[1])) - {"--help"}
    assert listed == set(OPTIONS[command].split())
    assert inspect.getdoc(CALLBACKS[command]).split(":")[0][:40] in " ".join(out.split())


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_every_command(sea_lens, arguments):
    _, out, err = sea_lens(*arguments)
    assert all(re.search(rf"\b{command}\b", out + err) for command in OPTIONS)
    assert "sea-lens demo" in out + err
    assert "Traceback" not in out + err


# --- mistakes --------------------------------------------------------------------------------------------------------


PLAIN = {"prompt": "p", "positive": "a", "negative": "b"}


@pytest.fixture
def bad_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = json.dumps(PLAIN)
    Path("malformed.jsonl").write_text(f'{good}\n{good}\n{{"prompt": \n')
    Path("column.jsonl").write_text('{"prompt": "p", "positive": "a"}\n')
    Path("cell.csv").write_text("prompt,positive,negative\np,a,b\np,a\n")
    Path("empty.jsonl").write_text("")
    Path("binary.jsonl").write_bytes(b"\xff\xfe\x00\x80")
    Path("folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fit", "organism", "nofile.jsonl"], ["nofile.jsonl could not be read"]),
        (["collect", "organism", "nofile.csv", "--out", "o"], ["nofile.csv could not be read"]),
        (["fit", "organism", "folder"], ["folder could not be read"]),
        (["fit", "organism", "malformed.jsonl"], ["malformed.jsonl, line 3: not valid JSON"]),
        (["fit", "organism", "column.jsonl"], ["column.jsonl has no column 'negative'", "prompt, positive"]),
        (["fit", "organism", "cell.csv"], ["cell.csv, line 3: the row does not have the header's 3 cells"]),
        (["fit", "organism", "empty.jsonl"], ["no demonstrations in empty.jsonl"]),
        (["fit", "organism", "binary.jsonl"], ["binary.jsonl could not be read"]),
        (["fit", "organism", "DEMOS", "--n", "0"], ["0 demonstrations were asked for", "has 30"]),
        (["fit", "organism", "DEMOS", "--n", "31"], ["31 demonstrations were asked for"]),
        (["fit", "organism", "DEMOS", "--explained-variance", "1.5"], ["(0, 1]", "1.5"]),
        (["fit", "organism", "DEMOS", "--negative-explained-variance", "0"], ["(0, 1]", "0.0"]),
        (["fit", "organism", "DEMOS", "--explained-variance", "much"], ["Invalid value for '--explained-variance'"]),
        (["fit", "organism", "DEMOS", "--spectrum", "cubed"], ["--spectrum", "'cubed'"]),
        (["fit", "organism", "DEMOS", "--layers", "7"], ["Layers [7] do not exist", "layers 0 to 3"]),
        (["fit", "organism", "DEMOS", "--layers", "some"], ["Layers are all, first:N", "'some'"]),
        (["fit", "organism", "DEMOS", "--layers", "last:5"], ["last:5 was asked for, and the model has 4 layers"]),
        (["fit", "organism", "DEMOS", "--token", "first"], ["--token is last, last_content, mean", "'first'"]),
        (
            ["fit", "organism", "DEMOS", "--feature-map", "cubic"],
            ["--feature-map is none, squared-exponential", "'cubic'"],
        ),
        (["fit", "organism", "DEMOS", "--feature-map", "tanh:wide"], ["--feature-map tanh:wide", "not a number"]),
        (["fit", "organism", "DEMOS", "--feature-map", "tanh:0"], ["Tanh's scale must be a finite number above zero"]),
        (["fit", "organism", "DEMOS", "--feature-map", "elu:nan"], ["ELU's alpha must be a finite number above zero"]),
        (["fit", "organism", "DEMOS", "--feature-unit", "2"], ["no effect without a --feature-map"]),
        (["fit", "organism", "DEMOS", "--merge-space", "activations"], ["no effect without a --feature-map"]),
        (["fit", "organism", "DEMOS", "--feature-map", "tanh", "--feature-unit", "wide"], ["--feature-unit is median"]),
        (
            ["fit", "organism", "DEMOS", "--feature-map", "tanh", "--feature-unit", "0"],
            ["feature_unit is", "above zero"],
        ),
        (["tune", "organism", "DEMOS"], ["Missing option '--out'"]),
        (["tune", "organism", "DEMOS", "--out", "o", "--explained-variance", "2"], ["(0, 1]", "2.0"]),
        (["tune", "organism", "DEMOS", "--out", "o", "--measure", "taste"], ["--measure", "'taste'"]),
        (["tune", "organism", "DEMOS", "--out", "o", "--layers", "some"], ["Layers are all, first:N", "'some'"]),
        (["tune", "organism", "DEMOS", "--out", "o", "--strength", "nan"], ["strength must be a finite number", "nan"]),
        (["tune", "organism", "DEMOS", "--out", "o", "--questions", "nofile.csv"], ["nofile.csv could not be read"]),
        (["convert", "nofile.pt", "nofile.pt"], ["nofile.pt could not be read"]),
        (["convert", "malformed.jsonl", "malformed.jsonl"], ["malformed.jsonl"]),
        (["fit", "organism", "DEMOS", "--format", "xml"], ["'xml' is not one of"]),
        (["fit", "organism", "DEMOS", "--batch-size", "0"], ["--batch-size"]),
        (["fit", "organism", "DEMOS", "--template", "{question}", "--chat"], ["--template or --chat, not both"]),
        (["fit", "organism", "DEMOS", "--template", "no field"], ["{question}", "exactly once"]),
        (["fit", "organism", "DEMOS", "--chat"], ["no chat template"]),
        (["fit", "organism", "DEMOS", "--activations", "folder"], ["Give either --activations", "not both"]),
        (["fit", "organism"], ["Give a model and a demonstrations file"]),
        (["fit", "--activations", "nofolder"], ["nofolder is missing"]),
        (["fit", "--activations", "folder"], ["folder holds no finished collection"]),
        (["fit", "organism", "DEMOS", "--wrong"], ["No such option: --wrong"]),
        (["demo", "--random-editors", "1"], ["--random-editors"]),
        (["collect", "organism", "DEMOS"], ["Missing option '--out'"]),
        (["collect", "organism"], ["Missing argument"]),
        (["generate", "organism", "EDITOR"], ["Missing argument"]),
        (["unknown"], ["No such command 'unknown'"]),
        (["inspect"], ["Missing argument"]),
        (["inspect", "folder"], ["config.json could not be read"]),
        (["inspect", "nowhere"], ["There is no folder nowhere", "hub"]),
        (["inspect", "nobody/nothing"], ["There is no folder nobody/nothing", "hub"]),
        (["inspect", "no/such/folder"], ["no/such/folder is neither a folder nor the name of a repository"]),
        (["inspect", "two\nlines"], ["two lines is neither a folder nor"]),
        (["generate", "organism", "nowhere", "text"], ["There is no folder nowhere", "hub"]),
        (["generate", "organism", "EDITOR", "text", "--layers", "9"], ["Layers [9] do not exist"]),
        (["generate", "organism", "EDITOR", "text", "--strength", "nan"], ["strength must be a finite number"]),
        (["effects", "organism", "nowhere", "organism"], ["There is no folder nowhere", "hub"]),
        (["effects", "organism", "EDITOR", "nofile.csv"], ["nofile.csv could not be read"]),
        (["effects", "organism", "EDITOR", "column.jsonl"], ["column.jsonl"]),
        (["effects", "organism", "EDITOR", "binary.jsonl"], ["binary.jsonl"]),
        (["effects", "organism", "EDITOR", "organism", "--control", "-1"], ["--control"]),
        (["ablate", "organism", "EDITOR", "organism", "--effect", "taste"], ["There is no effect 'taste'"]),
        (["ablate", "organism", "EDITOR", "organism", "--mode", "middle"], ["--mode is one of only", "middle"]),
        (["ablate", "organism", "EDITOR"], ["Missing argument"]),
        (["probe", "organism", "EDITOR", "nofile.jsonl"], ["nofile.jsonl could not be read"]),
        (["probe", "organism", "EDITOR", "DEMOS", "--folds", "1"], ["--folds"]),
        (["probe", "organism", "EDITOR", "DEMOS", "--method", "umap"], ["--method", "'umap'"]),
        (["spectrum", "organism", "EDITOR", "DEMOS"], ["editors of `sea-lens fit`", "'by hand'"]),
        (["spectrum", "organism", "EDITOR", "DEMOS", "--k", "0"], ["--k"]),
        (["generate", "organism", "EDITOR", "word " * 80], ["Prompt 0 is 81 tokens long", "context is 64"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_exit_code_2(sea_lens, demos, editor_folder, bad_files, arguments, parts):
    places = {"DEMOS": demos, "EDITOR": editor_folder}
    code, _, err = sea_lens(*(places.get(word, word) for word in arguments))
    assert code == 2
    assert_is_one_error(err, *parts)
    assert not Path("editor").exists()


def test_an_editor_of_another_width_is_one_line(sea_lens, stories, editor_folder):
    code, _, err = sea_lens("generate", stories, editor_folder, "Once upon a time")
    assert code == 2
    *bars, error, _ = err.split("\n")
    assert all(line.startswith("\rLoading weights") for line in bars)
    assert_is_one_error(error + "\n", "for d_model 128, and stories260K has d_model 64")


def test_a_model_that_cannot_be_found_is_named(sea_lens, demos, tmp_path):
    code, _, err = sea_lens("collect", "no-such-model", demos, "--out", tmp_path / "acts")
    assert code == 2
    assert err.startswith("error: No model could be loaded from 'no-such-model'")
