import json
import re
import shutil
import textwrap
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import PNG, assert_is_one_error

import sea_lens as package
from sea_lens import SEA, Activations, Demonstrations, Editor, Questions, answer_greedily, fit_sea, grid, tune
from sea_lens.methods.sea.feature_space import Tanh
from sea_lens.models.activations import ROLES
from sea_lens.statistics import Proportion
from sea_lens.worlds import demo as experiment
from sea_lens.worlds.demo import report

ONE_TOKEN = ["--max-new-tokens", "1"]
FIT = ["--explained-variance", "0.5", "--center"]


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
    # Both tunings keep their scores in one folder, which refuses whatever differs: settings are measured once. Of the demo's
    # 168 these are 4; tests/organism/test_experiment.py chooses among all.
    methods = grid(SEA, center=(False, True), explained_variance=(0.5,))
    tune_few = partial(tune, folder=tmp_path / "scores", methods=methods, layers=("first:3",))
    monkeypatch.setattr(experiment, "tune_methods", tune_few)
    monkeypatch.setattr(package, "tune", tune_few, raising=False)
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
    assert (editor.width, editor.card.model.name) == (128, "sea-lens-organism")

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


def test_the_demo_does_not_call_every_other_answer_a_myth(organism):
    model, world = organism
    one = {"methods": [SEA(0.5, center=True)], "layers": ["all"], "max_new_tokens": 1, "progress": False}
    few = replace(world, fitting=world.fitting[::10])
    tuning = tune(model, experiment.collect(model, few), few.questions(few.fitting), **one)
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


# --- collect and fit -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("collected") / "activations"


@pytest.fixture
def collected(sea_lens, demos, whole):
    """The folder of activations of all demonstrations, collected once and not to be changed."""
    if not whole.exists():
        code, out, _ = sea_lens("collect", "organism", demos, "--out", whole, *ONE_TOKEN)
        assert code == 0
        assert "Activations(30 demonstrations, resid_post of layers [0, 1, 2, 3], d_model 128" in out
    return whole


def test_fitting_from_collected_activations_equals_fitting_at_once(sea_lens, demos, collected, tmp_path):
    assert sea_lens("fit", "--activations", collected, "--out", tmp_path / "one", *FIT)[0] == 0
    assert sea_lens("fit", "organism", demos, "--out", tmp_path / "two", *ONE_TOKEN, *FIT)[0] == 0
    one, two = Editor.from_pretrained(tmp_path / "one"), Editor.from_pretrained(tmp_path / "two")
    assert same(one, two)
    assert one.card == two.card
    assert one.card.n_demonstrations == 30
    assert not one.is_identity


def test_collecting_again_reads_back(sea_lens, demos, collected, tmp_path):
    folder = shutil.copytree(collected, tmp_path / "acts")
    path = folder / "activations.safetensors"
    before, stamp = Activations.load(folder), path.stat().st_mtime_ns
    assert sea_lens("collect", "organism", demos, "--out", folder, *ONE_TOKEN)[0] == 0
    assert path.stat().st_mtime_ns == stamp
    # Killed before the end: the model's answers are kept and the rest is done again.
    path.unlink()
    answers = next(folder.glob("answers-of-*-1-tokens.jsonl")).read_bytes()
    assert sea_lens("collect", "organism", demos, "--out", folder, *ONE_TOKEN)[0] == 0
    again = Activations.load(folder)
    assert again.demonstrations == before.demonstrations
    assert all(torch.equal(again[role][layer], before[role][layer]) for role in ROLES for layer in range(4))
    assert next(folder.glob("answers-of-*-1-tokens.jsonl")).read_bytes() == answers


def test_a_folder_of_another_collection_is_refused(sea_lens, demos, collected, tmp_path):
    collected = shutil.copytree(collected, tmp_path / "acts")
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
        "center": False,
        "projections": "both",
        "merge": "sum",
    }
    options = ["--explained-variance", "0.9", "--negative-explained-variance", "0.5", "--center"]
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
        center=True,
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


@pytest.mark.parametrize("option", [("--token", "mean"), ("--n", 5), ("--site", "mlp_out")])
def test_options_that_cannot_act_on_collected_activations_are_refused(sea_lens, collected, tmp_path, option):
    code, _, err = sea_lens("fit", "--activations", collected, "--out", tmp_path / "one", *option)
    assert (code, err.startswith(f"error: {option[0]}: no effect on activations that are collected")) == (2, True)
    assert not (tmp_path / "one").exists()


# --- tune and convert ------------------------------------------------------------------------------------------------

GRID = ["--explained-variance", 0.5, "--explained-variance", 0.9, "--layers", "all", "--layers", "0,2", "--center"]


def test_tuning_writes_table_picture_and_editor_and_goes_on_where_it_stopped(sea_lens, organism, demos, tmp_path):
    model, _ = organism
    out_folder = tmp_path / "tuning"
    more = ["--strength", 2, "--feature-map", "none", "--feature-map", "elu:2", "--n", 12]
    command = ["tune", "organism", demos, "--out", out_folder, *ONE_TOKEN, *GRID, *more]
    code, out, _ = sea_lens(*command)
    assert code == 0
    assert "The best of 8 settings" in out
    assert "Measure it on others before you believe the score." in out
    table = pd.read_csv(out_folder / "settings.csv")
    assert sorted(table["layers"].unique()) == ["0,2", "all"]
    assert set(table["feature_map"]) == {"linear", "ELU(alpha=2.0)"}
    assert (out_folder / "settings.png").read_bytes().startswith(PNG)
    best = Editor.from_pretrained(out_folder / "editor")
    assert set(table["strength"]) == {2.0}
    data = Questions.from_demonstrations(Demonstrations.from_jsonl(demos).sample(12, 0))
    with best.attached(model):
        assert answer_greedily(model, data, 1).right.share == table["score"].max() == table["score"][0]
    scores = (out_folder / "scores.jsonl").read_text()
    assert sea_lens(*command)[0] == 0
    assert (out_folder / "scores.jsonl").read_text() == scores
    pd.testing.assert_frame_equal(pd.read_csv(out_folder / "settings.csv"), table)
    code, _, err = sea_lens(*command, "--questions", "organism")
    assert code == 2
    assert_is_one_error(err.splitlines()[-1] + "\n", "tuning that differs in data")


def test_tuning_asks_the_questions_it_is_given(sea_lens, organism, demos, tmp_path):
    _, world = organism
    world.demonstrations(world.held_out[:7]).to_jsonl(tmp_path / "others.jsonl")
    options = ["--questions", tmp_path / "others.jsonl", "--measure", "preference", "--token", "last_content"]
    options += ["--n", 12]
    code, out, _ = sea_lens("tune", "organism", demos, "--out", tmp_path / "tuning", *ONE_TOKEN, *GRID, *options)
    assert code == 0
    assert "Measure it on others" not in out
    assert "unedited: " in out
    manifest = json.loads((tmp_path / "tuning" / "scores.jsonl").read_text().splitlines()[0])
    assert manifest["measure"] == "preference"
    scores = pd.read_csv(tmp_path / "tuning" / "settings.csv")["score"]
    assert ((scores * 7 - (scores * 7).round()).abs() < 1e-9).all()
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
    published = ["--normalization", "feature", "--feature-function", "tanh", "--site", "resid_post", "--out", "two"]
    code, _, err = sea_lens("convert", "uu_positive.pt", "uu_negative.pt", *published)
    assert code == 0
    assert "is the published rule" in err
    assert Editor.from_pretrained("two")[0].feature_function == "tanh"
