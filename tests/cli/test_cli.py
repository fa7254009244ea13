import inspect
import json
import re
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

import sea_lens as package
from sea_lens import (
    Activations,
    Demonstrations,
    Editor,
    Questions,
    answer_greedily,
    cli,
    collect_activations,
    fit_sea,
    tune_sea,
)
from sea_lens.activations import ROLES
from sea_lens.analysis.effects import Proportion, measure_effects
from sea_lens.cli.inputs import DataFormat, parse_feature_map, parse_feature_unit, parse_token, read_demonstrations
from sea_lens.errors import InputError
from sea_lens.feature_maps import ELU, SquaredExponential, Tanh
from sea_lens.greedy import greedy_answers
from sea_lens.organism import experiment
from sea_lens.organism.report import report

PNG = b"\x89PNG\r\n\x1a\n"
ONE_TOKEN = ["--max-new-tokens", "1"]
FIT = ["--explained-variance", "0.5", "--centre"]


@pytest.fixture(scope="module")
def demos(organism, tmp_path_factory):
    """A demonstrations file about the embedded model's world, without neutral answers."""
    path = tmp_path_factory.mktemp("cli") / "demos.jsonl"
    organism[1].demonstrations()[:60].to_jsonl(path)
    return path


def same(one, other):
    return one.layers == other.layers and all(
        torch.equal(one[layer].directions, other[layer].directions)
        and torch.equal(one[layer].eigenvalues, other[layer].eigenvalues)
        and torch.equal(one[layer].shift, other[layer].shift)
        for layer in one.layers
    )


def shares(out):
    """Condition, share and interval of every line of the demo's table, in per cent."""
    found = re.findall(r"^  (\S.*?) +=* +(\d+\.\d)%  \[(\d+\.\d), (\d+\.\d)\]$", out, flags=re.MULTILINE)
    return {name: tuple(map(float, numbers)) for name, *numbers in found}


# --- demo ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_type_checks")
def test_the_demo(sea_lens, tmp_path, capsys, monkeypatch):
    # Both tunings keep their scores in one folder, which refuses whatever differs: settings are measured once.
    tune = partial(tune_sea, folder=tmp_path / "scores")
    monkeypatch.setattr(experiment, "tune_sea", tune)
    monkeypatch.setattr(package, "tune_sea", tune)
    code, out, _ = sea_lens("demo", "--out", tmp_path / "demo", "--random-editors", 2)
    assert code == 0
    found = shares(out)
    assert list(found) == ["plain", "edited", "random editors (2)", "swapped"]
    assert all(low <= share <= high for share, low, high in found.values())
    assert found["swapped"][0] < found["random editors (2)"][0] < found["edited"][0]
    assert found["edited"][0] >= 90 > 50 >= found["plain"][0] >= 40
    assert len(re.findall(r"^Q: .+\?  +plain: \w+ \((?:true|myth)\) +edited: \w+ \((?:true|myth)\)$", out, re.M)) == 3
    for picture in (tmp_path / "demo" / "layers.png", tmp_path / "demo" / "settings.png"):
        assert picture.read_bytes().startswith(PNG)
        assert picture.stat().st_size > 20_000
    editor = Editor.from_pretrained(tmp_path / "demo" / "editor")
    assert (editor.d_model, editor.card.model.name) == (128, "sea-lens-organism")

    code = textwrap.dedent(out.split("The same in Python:")[1])
    namespace = {}
    measured = (tmp_path / "scores" / "scores.jsonl").read_text()
    exec(code, namespace)
    assert (tmp_path / "scores" / "scores.jsonl").read_text() == measured
    share, low, high = found["edited"]
    assert capsys.readouterr().out.strip().endswith(f"{share:.1f}% [{low:.1f}, {high:.1f}]")
    best = namespace["tuning"].best
    assert same(best, editor)
    assert best[0].strength == editor[0].strength


def test_the_installed_command_runs(tmp_path):
    command = Path(sys.executable).with_name("sea-lens")
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path}
    found = subprocess.run([command, "inspect", "nowhere"], **options)
    assert found.returncode == 2
    assert found.stdout == ""
    assert_is_one_error(found.stderr)


# --- collect and fit -------------------------------------------------------------------------------------------------


@pytest.fixture
def collected(sea_lens, demos, tmp_path):
    folder = tmp_path / "acts"
    code, out, _ = sea_lens("collect", "organism", demos, "--out", folder, *ONE_TOKEN)
    assert code == 0
    assert "Activations(60 demonstrations, resid_post of layers [0, 1, 2, 3], d_model 128" in out
    return folder


def test_fitting_from_collected_activations_equals_fitting_at_once(sea_lens, demos, collected, tmp_path):
    assert sea_lens("fit", "--activations", collected, "--out", tmp_path / "one", *FIT)[0] == 0
    assert sea_lens("fit", "organism", demos, "--out", tmp_path / "two", *ONE_TOKEN, *FIT)[0] == 0
    one, two = Editor.from_pretrained(tmp_path / "one"), Editor.from_pretrained(tmp_path / "two")
    assert same(one, two)
    assert one.card == two.card
    assert one.card.n_demonstrations == 60
    assert not one.is_identity


def test_collecting_again_reads_back(sea_lens, demos, collected):
    path = collected / "activations.safetensors"
    before, stamp = Activations.load(collected), path.stat().st_mtime_ns
    assert sea_lens("collect", "organism", demos, "--out", collected, *ONE_TOKEN)[0] == 0
    assert path.stat().st_mtime_ns == stamp
    # Killed before the end: the model's answers are kept and the rest is done again.
    path.unlink()
    answers = next(collected.glob("answers-of-*-1-tokens.jsonl")).read_bytes()
    assert sea_lens("collect", "organism", demos, "--out", collected, *ONE_TOKEN)[0] == 0
    again = Activations.load(collected)
    assert again.demonstrations == before.demonstrations
    assert all(torch.equal(again[role][layer], before[role][layer]) for role in ROLES for layer in range(4))
    assert next(collected.glob("answers-of-*-1-tokens.jsonl")).read_bytes() == answers


def test_a_folder_of_another_collection_is_refused(sea_lens, demos, collected):
    code, _, err = sea_lens("collect", "organism", demos, "--out", collected, *ONE_TOKEN, "--n", 20)
    assert (code, "holds other demonstrations" in err) == (2, True)
    code, _, err = sea_lens("collect", "organism", demos, "--out", collected, "--max-new-tokens", 2)
    assert (code, "differs in demonstrations" in err) == (2, True)
    code, _, err = sea_lens("collect", "organism", demos, "--out", collected, *ONE_TOKEN, "--layers", "0")
    assert (code, "differs in layers" in err) == (2, True)


def test_collecting_does_as_its_options_say(sea_lens, demos, tmp_path):
    options = ["--layers", "last:2", "--token", "last_content", "--site", "mlp_out", "--n", 10, "--seed", 3]
    template = ["--template", "{question}", "--answer-ending", " ."]
    folder = tmp_path / "acts"
    assert sea_lens("collect", "organism", demos, "--out", folder, *ONE_TOKEN, *options, *template)[0] == 0
    found = Activations.load(folder)
    assert (found.layers, found.token, found.site, found.n) == ([2, 3], "last_content", "mlp_out", 10)
    kept = Demonstrations.from_jsonl(next(folder.glob("answers-of-*-1-tokens.jsonl")))
    assert [row.prompt for row in kept] == [row.prompt for row in Demonstrations.from_jsonl(demos).sample(10, 3)]
    assert found.demonstrations == kept.with_answer_ending(" .").fingerprint


def test_fitting_does_as_its_options_say(sea_lens, collected, tmp_path):
    options = ["--rank", 2, "--spectrum", "singular_values", "--merge", "sum", "--layers", "0,2-3"]
    code, out, _ = sea_lens("fit", "--activations", collected, "--out", tmp_path / "one", *options)
    assert code == 0
    one = Editor.from_pretrained(tmp_path / "one")
    assert one.layers == [0, 2, 3]
    assert "layer  0" in out
    assert one.card.hyper_parameters == {
        "explained_variance": None,
        "ranks": [2, 2],
        "spectrum": "singular_values",
        "centre": False,
        "projections": "both",
        "merge": "sum",
    }
    options = ["--explained-variance", "0.9", "--negative-explained-variance", "0.5", "--centre"]
    assert sea_lens("fit", "--activations", collected, "--out", tmp_path / "two", *options)[0] == 0
    assert Editor.from_pretrained(tmp_path / "two").card.hyper_parameters["explained_variance"] == [0.9, 0.5]


def test_an_editor_that_does_nothing_is_warned_about_on_stderr(sea_lens, tmp_path):
    neutral, answer = ({0: torch.randn(20, 8, generator=torch.Generator().manual_seed(seed))} for seed in range(2))
    Activations.from_tensors(neutral=neutral, positive=answer, negative=answer).save(tmp_path / "acts.safetensors")
    code, _, err = sea_lens("fit", "--activations", tmp_path / "acts.safetensors", "--out", tmp_path / "one")
    assert code == 0
    assert err.startswith("warning: This editor edits nothing")
    assert err.count("\n") == 1
    assert Editor.from_pretrained(tmp_path / "one").is_identity


def test_fitting_in_a_feature_space_from_the_shell(sea_lens, collected, tmp_path):
    mapped = [
        "--feature-map",
        "tanh:4",
        "--feature-unit",
        "12.5",
        "--merge-space",
        "activations",
        "--projections",
        "both",
    ]
    code, out, _ = sea_lens("fit", "--activations", collected, "--out", tmp_path / "one", *FIT, *mapped)
    assert code == 0
    fitted = fit_sea(
        Activations.load(collected),
        0.5,
        centre=True,
        feature_map=Tanh(4.0),
        feature_unit=12.5,
        merge_space="activations",
    )
    found, h = Editor.from_pretrained(tmp_path / "one"), torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(found[layer](h), fitted[layer](h)) for layer in range(4))
    assert found.card.hyper_parameters == fitted.card.hyper_parameters
    assert found.card.hyper_parameters["feature_map"] == {"name": "Tanh", "scale": 4.0}
    assert "Tanh(scale=4.0) of h / 12.5" in out
    code, out, _ = sea_lens("inspect", tmp_path / "one")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    facts = fitted.card.layers[2]
    shares = [f"{facts[what]:.2%}" for what in ("clamped_activations", "clamped_features")]
    assert rows[2] == ["2", "2", "1", "1", "1", f"{facts['displacement']:.1%}", "12.5", *shares]


# --- tune and convert ------------------------------------------------------------------------------------------------

GRID = ["--explained-variance", 0.5, "--explained-variance", 0.9, "--layers", "all", "--layers", "0,2", "--centre"]


def test_tuning_writes_table_picture_and_editor_and_goes_on_where_it_stopped(sea_lens, organism, demos, tmp_path):
    model, _ = organism
    out_folder = tmp_path / "tuning"
    more = ["--strength", 1, "--strength", 2, "--feature-map", "none", "--feature-map", "elu:2"]
    command = ["tune", "organism", demos, "--out", out_folder, *ONE_TOKEN, *GRID, *more]
    code, out, _ = sea_lens(*command)
    assert code == 0
    assert "The best of 16 settings" in out
    assert "Measure it on others before you believe the score." in out
    table = pd.read_csv(out_folder / "settings.csv")
    assert sorted(table["layers"].unique()) == ["0,2", "all"]
    assert set(table["feature_map"]) == {"linear", "ELU(alpha=2.0)"}
    assert (out_folder / "settings.png").read_bytes().startswith(PNG)
    best = Editor.from_pretrained(out_folder / "editor")
    data = Questions.from_demonstrations(Demonstrations.from_jsonl(demos))
    with best.attached(model):
        assert answer_greedily(model, data, 1).truthful.share == table["score"].max() == table["score"][0]
    scores = (out_folder / "scores.jsonl").read_text()
    assert sea_lens(*command)[0] == 0
    assert (out_folder / "scores.jsonl").read_text() == scores
    pd.testing.assert_frame_equal(pd.read_csv(out_folder / "settings.csv"), table)
    code, _, err = sea_lens(*command, "--questions", "organism")
    assert code == 2
    assert_is_one_error(err.splitlines()[-1] + "\n", "tuning that differs in data")


def test_tuning_asks_the_questions_it_is_given(sea_lens, organism, demos, tmp_path):
    _, world = organism
    world.demonstrations(world.held_out[:30]).to_jsonl(tmp_path / "others.jsonl")
    options = ["--questions", tmp_path / "others.jsonl", "--measure", "preference", "--token", "last_content"]
    code, out, _ = sea_lens("tune", "organism", demos, "--out", tmp_path / "tuning", *ONE_TOKEN, *GRID, *options)
    assert code == 0
    assert "Measure it on others" not in out
    assert "unedited: " in out
    manifest = json.loads((tmp_path / "tuning" / "scores.jsonl").read_text().splitlines()[0])
    assert manifest["measure"] == "preference"
    scores = pd.read_csv(tmp_path / "tuning" / "settings.csv")["score"]
    assert ((scores * 30 - (scores * 30).round()).abs() < 1e-9).all()
    assert Editor.from_pretrained(tmp_path / "tuning" / "editor").card.token == "last_content"


def test_the_embedded_worlds_demonstrations_need_no_file(sea_lens, organism, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, _ = sea_lens("fit", "organism", "organism", *ONE_TOKEN, *FIT, "--n", 30, "--seed", 4)
    assert code == 0
    expected = organism[1].demonstrations().sample(30, 4).with_neutral_answers(organism[0], 1, progress=False)
    assert Editor.from_pretrained("editor").card.demonstrations == expected.fingerprint


def test_the_authors_projections_become_an_editor(sea_lens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    basis, _ = torch.linalg.qr(torch.randn(4, 16, 3, generator=torch.Generator().manual_seed(0)))
    torch.save(basis[..., :2] @ basis[..., :2].mT, "uu_positive.pt")
    torch.save(torch.eye(16) - basis[..., 2:] @ basis[..., 2:].mT, "uu_negative.pt")
    code, out, err = sea_lens("convert", "uu_positive.pt", "uu_negative.pt", "--layers", "last:2")
    assert (code, err) == (0, "")
    assert "layer  2: rank 3" in out
    editor = Editor.from_pretrained("editor")
    assert (editor.layers, editor.n_layers, editor.card.site) == ([2, 3], 4, "mlp_out")
    published = ["--normalisation", "feature", "--feature-function", "tanh", "--site", "resid_post", "--out", "two"]
    code, _, err = sea_lens("convert", "uu_positive.pt", "uu_negative.pt", *published)
    assert code == 0
    assert "is the published rule" in err
    assert Editor.from_pretrained("two")[0].feature_function == "tanh"


# --- generate and inspect --------------------------------------------------------------------------------------------


def test_generate_shows_plain_and_edited_side_by_side(sea_lens, organism, editor_folder):
    model, _ = organism
    prompts = ["<anyone> Q Mira home A", "<truthful> Q Ada pet A"]
    code, out, _ = sea_lens("generate", "organism", editor_folder, *prompts, *ONE_TOKEN, "--strength", 100)
    assert code == 0
    plain = greedy_answers(model, prompts, 1, progress=False)
    with Editor.from_pretrained(editor_folder).scaled(100.0).attached(model):
        edited = greedy_answers(model, prompts, 1, progress=False)
    assert plain != edited
    for row in zip(prompts, plain, edited, strict=True):
        assert re.search(" +│ +".join(map(re.escape, row)), out), out
    assert "changed none" not in out


def test_generate_says_when_nothing_changes(sea_lens, editor_folder):
    prompt = "<truthful> Q Mira home A"
    code, out, _ = sea_lens("generate", "organism", editor_folder, prompt, *ONE_TOKEN, "--strength", 0)
    assert code == 0
    assert "The edit changed none of these continuations." in out


def test_generate_edits_the_layers_asked_for(sea_lens, editor_folder):
    prompt = "<truthful> Q Mira home A"
    assert sea_lens("generate", "organism", editor_folder, prompt, *ONE_TOKEN, "--layers", "1-2")[0] == 0
    code, _, err = sea_lens("generate", "organism", editor_folder, prompt, *ONE_TOKEN, "--layers", "first:1")
    assert code == 2
    assert_is_one_error(err, "no layer is left")


def test_inspect_shows_the_card_and_every_layer(sea_lens, editor_folder):
    code, out, _ = sea_lens("inspect", editor_folder)
    assert code == 0
    assert re.search(r"^method +by hand$", out, re.M)
    assert re.search(r"^site +resid_post$", out, re.M)
    assert re.search(r"^hyper parameters +seed 3$", out, re.M)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows == [
        ["1", "2", "1", "1", "-0.500", "+0.750", "1", "12.5%"],
        ["2", "2", "", "", "-0.500", "+0.750", "0.5", ""],
    ]


# --- effects, ablate, probe, spectrum --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(organism, demos, tmp_path_factory):
    """An editor of SEA for layers 1 and 2 of the embedded model, fitted on its first 40 demonstrations."""
    model, _ = organism
    data = Demonstrations.from_jsonl(demos).sample(40, 0).with_neutral_answers(model, 1, progress=False)
    activations = collect_activations(model, data, progress=False)
    folder = tmp_path_factory.mktemp("cli") / "fitted"
    fit_sea(activations, 0.5, centre=True, layers=[1, 2], progress=False).save_pretrained(folder)
    return folder


FITTED_ON = ["--n", 40, *ONE_TOKEN]


def written(folder, out, names):
    """The CSV files by name; checks that these files and no others are there, named on the screen, pictures included."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert all(name in out for name in names)
    for name in names:
        assert not name.endswith(".png") or (folder / name).read_bytes().startswith(PNG)
    return {name[:-4]: pd.read_csv(folder / name) for name in names if name.endswith(".csv")}


def rows_of(out):
    """Cells of every line of the tables on the screen."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


@pytest.mark.usefixtures("without_type_checks")
def test_effects_are_measured_shown_and_written(sea_lens, organism, fitted, tmp_path):
    command = ["effects", "organism", fitted, "organism", "--n", 12, "--control", 2, "--out", tmp_path / "o"]
    code, out, _ = sea_lens(*command)
    assert code == 0
    tables = written(tmp_path / "o", out, ["effects.csv", "flips.csv", "questions.csv", "effects.png"])
    model, world = organism
    questions = world.questions().sample(12, 0)
    expected = measure_effects(model, Editor.from_pretrained(fitted), questions, control=2, seed=0, progress=False)
    pd.testing.assert_frame_equal(tables["effects"].set_index("effect"), expected.table, check_dtype=False)
    assert [row[0] for row in rows_of(out)] == [name.replace("_", " ") for name in expected.table.index]
    assert "Effects on 12 questions, 95% intervals" in out
    for name, row in expected.flips.iterrows():
        assert f"{name}: {row['gained']} questions gained, {row['lost']} lost" in out


@pytest.mark.usefixtures("without_type_checks")
def test_layers_are_ablated_paired_and_chosen(sea_lens, fitted, tmp_path):
    options = ["--mode", "only", "--mode", "last", "--effect", "kl", "--pairs", "--select"]
    code, out, err = sea_lens("ablate", "organism", fitted, "organism", "--n", 12, *options, "--out", tmp_path / "o")
    assert code == 0, err
    names = ["ablation.csv", "ablation.png", "interactions.csv", "interactions.png", "selection.csv"]
    tables = written(tmp_path / "o", out, names)
    assert tables["ablation"]["mode"].tolist() == ["none", "all", "only", "only", "last", "last"]
    assert tables["ablation"]["value"][0] == 0
    assert tables["interactions"][["first", "second"]].to_numpy().tolist() == [[1, 2]]
    assert "kl on 12 questions, 95% intervals" in out
    assert [row[0] for row in rows_of(out)][:6] == ["none", "all", "only", "only", "last", "last"]
    assert "Chosen on 6 questions, confirmed on 6 others" in out


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_probes_are_cross_validated_shown_and_drawn(sea_lens, demos, fitted, tmp_path):
    command = ["probe", "organism", fitted, demos, *FITTED_ON, "--folds", 2, "--shuffles", 1, "--out", tmp_path / "o"]
    code, out, _ = sea_lens(*command)
    assert code == 0
    assert "note:" not in out
    tables = written(tmp_path / "o", out, ["probes.csv", "probes.png", "activations.png"])
    assert tables["probes"]["layer"].tolist() == [0, 1, 2, 3]
    assert [row[0] for row in rows_of(out)] == ["0", "1", "2", "3"]
    assert "Probes of 40 demonstrations, 2 folds" in out


@pytest.mark.usefixtures("without_type_checks")
def test_spectra_angles_directions_and_massive_activations_are_shown_and_written(sea_lens, demos, fitted, tmp_path):
    code, out, _ = sea_lens("spectrum", "organism", fitted, demos, *FITTED_ON, "--k", 3, "--out", tmp_path / "o")
    assert code == 0
    assert "note:" not in out
    names = [f"{name}.csv" for name in ("spectra", "curves", "angles", "signatures", "massive")]
    names += [f"{name}.png" for name in ("spectra", "angles", "massive")]
    names += [f"directions-{layer}.{ending}" for layer in (1, 2) for ending in ("csv", "png")]
    tables = written(tmp_path / "o", out, names)
    assert tables["spectra"]["layer"].tolist() == [1, 2]
    assert (tables["spectra"]["eigenvalue_error"] < 1e-5).all()
    assert tables["signatures"]["layer"].tolist() == [0, 1, 2, 3]
    shown = [row[0] for row in rows_of(out)]
    assert "rank positive" in shown
    assert "eigenvalue error" in shown
    edit = Editor.from_pretrained(fitted)[1]
    assert tables["directions-1"]["eigenvalue"].tolist() == pytest.approx(sorted(edit.eigenvalues.tolist())[::-1])
    assert "Directions of layer 2" in out


def test_other_demonstrations_than_the_editors_are_noted(sea_lens, demos, fitted, tmp_path):
    code, out, _ = sea_lens("spectrum", "organism", fitted, demos, "--n", 30, *ONE_TOKEN, "--out", tmp_path / "o")
    assert code == 0
    assert "note: these are not the demonstrations" in out


# --- help ------------------------------------------------------------------------------------------------------------

DATA_OPTIONS = (
    "--format --n --seed --template --chat --answer-ending --max-new-tokens --token --layers --site --batch-size "
    "--device"
)
OPTIONS = {
    "demo": "--out --random-editors",
    "collect": f"--out {DATA_OPTIONS}",
    "fit": "--out --activations --explained-variance --negative-explained-variance --rank --spectrum --centre "
    f"--no-centre --projections --merge --feature-map --feature-unit --merge-space {DATA_OPTIONS}",
    "tune": "--out --questions --measure --explained-variance --feature-map --centre --no-centre --strength --spectrum "
    f"--projections --merge --feature-unit --merge-space {DATA_OPTIONS}",
    "convert": "--out --layers --site --normalisation --feature-function",
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


# --- layouts ---------------------------------------------------------------------------------------------------------

HALUEVAL = {"knowledge": "k", "question": "q", "right_answer": "r", "hallucinated_answer": "h"}
BBQ = {
    "context": "c",
    "question": "q",
    "ans0": "x",
    "ans1": "y",
    "ans2": "z",
    "label": 1,
    "context_condition": "disambig",
}
PLAIN = {"prompt": "p", "positive": "a", "negative": "b"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [(HALUEVAL, ("q", "r", "h")), (BBQ, ("c q", "y", ("x", "z"))), (PLAIN, ("p", "a", "b"))],
    ids=["halueval", "bbq", "jsonl"],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
def test_json_layouts_are_found_out(tmp_path, row, expected, name):
    path = tmp_path / name
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_demonstrations(path, DataFormat.auto, None, 0)
    prompt, positive, negative = expected
    assert (found.prompt, found.positive) == (prompt, positive)
    assert found.negative in negative


@pytest.mark.parametrize("name", ["data.csv", "DATA.CSV"])
def test_csv_is_found_out(tmp_path, name):
    path = tmp_path / name
    path.write_text("prompt,positive,negative\np,a,b\n")
    (found,) = read_demonstrations(path, DataFormat.auto, None, 0)
    assert (found.prompt, found.positive, found.negative) == ("p", "a", "b")


def test_a_layout_given_is_taken_at_its_word(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("prompt,positive,negative\np,a,b\nq,c,d\n")
    assert len(read_demonstrations(path, DataFormat.csv, None, 0)) == 2
    assert len(read_demonstrations(path, DataFormat.csv, 1, 0)) == 1
    with pytest.raises(ValueError, match="not valid JSON"):
        read_demonstrations(path, DataFormat.jsonl, None, 0)
    path.write_text(json.dumps(PLAIN))
    with pytest.raises(InputError, match="no column 'question'"):
        read_demonstrations(path, DataFormat.halueval, None, 0)


def test_published_files_are_found_out(shared_data):
    path = shared_data / "halueval_qa_500.json"
    assert read_demonstrations(path, DataFormat.auto, 20, 1) == Demonstrations.from_halueval(path, 20, 1)
    path = shared_data / "bbq_Age.jsonl"
    assert read_demonstrations(path, DataFormat.auto, 20, 1) == Demonstrations.from_bbq(path, 20, 1)


# --- options that are read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "feature_map"),
    [
        ("none", None),
        ("tanh", Tanh(1.0)),
        ("tanh:4", Tanh(4.0)),
        ("elu:.5", ELU(0.5)),
        ("squared-exponential:1e2", SquaredExponential(100.0)),
    ],
)
def test_feature_maps_are_read(text, feature_map):
    assert parse_feature_map(text) == feature_map


def test_feature_units_are_read():
    assert (parse_feature_unit("median"), parse_feature_unit("2.5")) == ("median", 2.5)


@pytest.mark.parametrize(("text", "token"), [("last", "last"), ("mean", "mean"), ("-1", -1), ("0", 0)])
def test_tokens_are_read(text, token):
    assert parse_token(text) == token


# --- mistakes --------------------------------------------------------------------------------------------------------


def assert_is_one_error(err, *parts):
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in parts:
        assert part in err


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
        (["fit", "organism", "DEMOS", "--n", "0"], ["0 demonstrations were asked for", "has 60"]),
        (["fit", "organism", "DEMOS", "--n", "61"], ["61 demonstrations were asked for"]),
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


@pytest.mark.parametrize("option", [("--token", "mean"), ("--n", 5), ("--site", "mlp_out")])
def test_options_that_cannot_act_on_collected_activations_are_refused(sea_lens, collected, tmp_path, option):
    code, _, err = sea_lens("fit", "--activations", collected, "--out", tmp_path / "one", *option)
    assert (code, err.startswith(f"error: {option[0]}: no effect on activations that are collected")) == (2, True)
    assert not (tmp_path / "one").exists()


def test_the_demo_does_not_call_every_other_answer_a_myth(organism):
    model, world = organism
    one = {"explained_variances": (0.5,), "layers": ["all"], "centre": (True,), "max_new_tokens": 1, "progress": False}
    tuning = tune_sea(model, experiment.collect(model, world), world.questions(world.fitting), **one)
    half = Proportion(1, 2)
    asked = {"question": ["where?", "who?"], "truth": ["here", "you"], "myth": ["there", "me"]}
    examples = pd.DataFrame({**asked, "plain": ["banana", "me"], "edited": ["there", "you"]})
    random = experiment.RandomControls((0.5, 0.5))
    result = experiment.OrganismResult(tuning, tuning.best, half, half, half, random, pd.DataFrame(), examples, 0.1)
    first, second = (line for line in report(result, 240).splitlines() if line.startswith("Q: "))
    assert "banana (neither)" in first
    assert first.endswith("there (myth)")
    assert "me (myth)" in second
    assert second.endswith("you (true)")
