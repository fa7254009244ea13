import re

import pandas as pd
import pytest
from conftest import PNG, assert_is_one_error

from sea_lens import Demonstrations, Editor, Questions, answer_greedily, collect_activations, fit_sea
from sea_lens.analysis.effects import measure_effects
from sea_lens.analysis.tokens import Directions

ONE_TOKEN = ["--max-new-tokens", "1"]


# --- generate and inspect --------------------------------------------------------------------------------------------


def test_generate_shows_plain_and_edited_side_by_side(sea_lens, organism, editor_folder):
    model, _ = organism
    prompts = ["<anyone> Q Mira home A", "<truthful> Q Ada pet A"]
    code, out, _ = sea_lens("generate", "organism", editor_folder, *prompts, *ONE_TOKEN, "--strength", 100)
    assert code == 0
    asked = Questions.from_lists(prompts, [["Lima"], ["cat"]], [[], []])
    plain = answer_greedily(model, asked, 1).table["answer"].tolist()
    with Editor.from_pretrained(editor_folder).scaled(100.0).attached(model):
        edited = answer_greedily(model, asked, 1).table["answer"].tolist()
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
    """An editor of SEA for layers 1 and 2 of the embedded model, fitted on its demonstrations."""
    model, _ = organism
    data = Demonstrations.from_jsonl(demos).sample(24, 0).with_neutral_answers(model, 1, progress=False)
    activations = collect_activations(model, data, progress=False)
    folder = tmp_path_factory.mktemp("cli") / "fitted"
    fit_sea(activations, 0.5, center=True, layers=[1, 2], progress=False).save_pretrained(folder)
    return folder


FITTED_ON = ["--n", 24, *ONE_TOKEN]


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
    names = [f"effects{ending}" for ending in (".json", ".csv", "-flips.csv", "-per_question.csv", ".png")]
    tables = written(tmp_path / "o", out, names)
    model, world = organism
    questions = world.questions().sample(12, 0)
    expected = measure_effects(model, questions, Editor.from_pretrained(fitted), control=2, seed=0, progress=False)
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
    names = [f"ablation{ending}" for ending in (".json", ".csv", "-per_question.csv", ".png")]
    names += [f"interactions{ending}" for ending in (".json", ".csv", "-alone.csv", ".png")]
    names += [f"layer_selection{ending}" for ending in (".json", ".csv", "-editor")]
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
    tables = written(tmp_path / "o", out, ["probes.json", "probes.csv", "probes.png", "activations.png"])
    assert tables["probes"]["layer"].tolist() == [0, 1, 2, 3]
    assert [row[0] for row in rows_of(out)] == ["0", "1", "2", "3"]
    assert "Probes of 24 demonstrations, 2 folds" in out


@pytest.mark.usefixtures("without_type_checks")
def test_spectra_angles_directions_and_massive_activations_are_shown_and_written(sea_lens, demos, fitted, tmp_path):
    code, out, _ = sea_lens("spectrum", "organism", fitted, demos, *FITTED_ON, "--k", 3, "--out", tmp_path / "o")
    assert code == 0
    assert "note:" not in out
    names = [f"spectra{ending}" for ending in (".json", ".csv", "-gains.csv", "-curves.csv", "-angles.csv", ".png")]
    names += ["massive_activations.json", "massive_activations.csv", "angles.png", "massive.png"]
    names += [f"directions-{layer}{ending}" for layer in (1, 2) for ending in ("", ".png")]
    tables = written(tmp_path / "o", out, names)
    assert tables["spectra"]["layer"].tolist() == [1, 2]
    assert tables["spectra"]["rank"].gt(0).all()
    shown = [row[0] for row in rows_of(out)]
    assert "rank positive" in shown
    assert "largest angle" in shown
    edit = Editor.from_pretrained(fitted)[1]
    directions = Directions.load(tmp_path / "o" / "directions-1").table
    assert directions["gain"].tolist() == pytest.approx(sorted(edit.eigenvalues.tolist())[::-1])
    assert "Directions of layer 2" in out


def test_other_demonstrations_than_the_editors_are_noted(sea_lens, demos, fitted, tmp_path):
    code, out, _ = sea_lens("spectrum", "organism", fitted, demos, "--n", 12, *ONE_TOKEN, "--out", tmp_path / "o")
    assert code == 0
    assert "note: these are not the demonstrations" in out
