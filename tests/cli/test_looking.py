"""Each command is run once; what it computes is tested where the library is."""

import pandas as pd
import pytest
import torch
from conftest import PNG

from sea_lens import SEA, AffineEdit, Demonstrations, Editor, Site, collect_activations, generate
from sea_lens.analysis.effects import Effects, measure_effects
from sea_lens.analysis.selection import LayerSelection
from sea_lens.data.chat import PromptForm

ON = ["--n", 24, "--max-new-tokens", 1]


def rows_of(out):
    """Cells of every line of the tables on the screen."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


@pytest.fixture(scope="module")
def fitted(organism, demos, tmp_path_factory):
    """An editor for layers 1 and 2 of the embedded model, fitted on its demonstrations."""
    model, _ = organism
    data = Demonstrations.from_jsonl(demos).sample(24, 0).with_neutral_answers(model, 1, progress=False)
    activations = collect_activations(model, data, [1, 2], progress=False)
    folder = tmp_path_factory.mktemp("cli") / "fitted"
    SEA(0.5, center=True).fit(activations).save_pretrained(folder)
    return folder


@pytest.fixture
def run(sea_lens, fitted, tmp_path):
    """Runs a command on the editor: what it says, and its folder; pictures are pictures, and all files are named."""

    def run_it(name, data, *options, width=160):
        code, out, err = sea_lens(name, "organism", fitted, data, *options, "--out", tmp_path / "o", width=width)
        assert code == 0, err
        files = sorted((tmp_path / "o").iterdir())
        assert all(path.read_bytes().startswith(PNG) for path in files if path.suffix == ".png")
        assert all(path.name in out.replace("\n", "") for path in files)
        return out, tmp_path / "o", {path.name for path in files}

    return run_it


def test_effects_are_measured_shown_and_written(run, organism, fitted):
    out, folder, names = run("effects", "organism", "--n", 12, "--control", 2, width=80)
    assert "Damage: KL" in out
    model, world = organism
    expected = measure_effects(
        model, world.questions().sample(12, 0), Editor.from_pretrained(fitted), control=2, seed=0, progress=False
    )
    pd.testing.assert_frame_equal(Effects.load(folder).table, expected.table)
    shown = " ".join(row[0] for row in rows_of(out))  # long names take several lines
    assert all(name.replace("_", " ") in shown for name in expected.table.index)
    assert "Effects on 12 questions, 95% intervals" in out
    for name, row in expected.flips.iterrows():
        assert f"{name.replace('_', ' ')}: {row['gained']} questions gained, {row['lost']} lost" in out
    assert "effects.png" in names
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_layers_are_ablated_paired_and_chosen(run):
    options = ["--mode", "only", "--mode", "last", "--pairs", "--select"]
    out, folder, names = run("ablate", "organism", "--n", 12, *options)
    assert {"ablation.csv", "ablation.png", "interactions.csv", "interactions.png"} <= names
    table = pd.read_csv(folder / "ablation.csv")
    assert table["mode"].tolist() == ["none", "all", "only", "only", "last", "last"]
    assert [row[0] for row in rows_of(out)][:6] == table["mode"].tolist()
    assert "mean log probability difference on 12 questions, 95% intervals" in out
    changed = "{change:.3g} [{low:.3g}, {high:.3g}]".format(**table.iloc[1])
    assert changed in out
    assert "mean log probability difference on 6 questions to choose by" in out
    # Each number has its own interval beside it: that of the held-out questions is the held-out value's.
    chosen = LayerSelection.load(folder).table
    first = chosen.iloc[0]
    interval = "[{held_out_low:.3g}, {held_out_high:.3g}]".format(**first)
    (shown,) = [row for row in rows_of(out) if interval in " ".join(row)]
    assert f"{first['held_out']:.3g} {interval}" in shown
    assert f"{first['change']:.3g}" in shown


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_probes_are_cross_validated_shown_and_drawn(run, demos):
    out, folder, names = run("probe", demos, *ON, "--n-folds", 2, "--n-shuffles", 1)
    assert "note:" not in out
    assert {"probes.csv", "probes.png", "activations.png"} <= names
    assert pd.read_csv(folder / "probes.csv")["layer"].tolist() == [0, 1, 2, 3]
    assert "Probes of 24 demonstrations" in out


def test_spectra_angles_directions_and_massive_activations_are_shown_and_written(run, demos, fitted):
    out, folder, names = run("spectrum", demos, *ON, "--k", 3)
    assert "note:" not in out
    pictures = {f"{name}.png" for name in ("spectra", "angles", "massive", "directions-1", "directions-2")}
    assert {*pictures, "spectra.csv", "directions-1.csv", "directions-2.csv"} <= names
    found = pd.read_csv(folder / "directions-1.csv")["gain"].tolist()
    assert found == pytest.approx(sorted(Editor.from_pretrained(fitted)[1].gains.tolist())[::-1])
    assert "Directions of layer 2" in out


def test_an_editor_of_any_method_and_sites_has_a_spectrum(sea_lens, demos, tmp_path):
    heads = Site(1, "attn.hook_z")
    edits = {site: AffineEdit.of_shift(torch.ones(128)) for site in (heads, Site(1), Site(2))}
    Editor(edits).save_pretrained(tmp_path / "editor")
    code, out, err = sea_lens("spectrum", "organism", tmp_path / "editor", demos, *ON, "--out", tmp_path / "out")
    assert code == 0, err
    assert "Directions of layer blocks.2.hook_resid_post" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"angles.png", "massive.png", "spectra.csv", f"directions-{Site(1)}.csv"} <= names
    assert not {"spectra.png", f"directions-{heads}.csv"} & names


def test_other_demonstrations_than_the_editors_are_noted(run, demos):
    assert "note: these are not the demonstrations" in run("spectrum", demos, "--n", 12, "--max-new-tokens", 1)[0]


def test_what_the_fit_was_asked_in_need_not_be_said_again(sea_lens, organism, demos, tmp_path, monkeypatch):
    """The card keeps template, chat template, switches, ending and length, and the fitter's file and activations do."""
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}{{ end | default('A') }}"
    monkeypatch.setattr(organism[0].tokenizer, "chat_template", template)
    asked = ["--chat", "--chat-option", 'end="B"', "--answer-ending", " .", "--max-new-tokens", 2, "--whole-sentences"]
    code, _, _ = sea_lens("collect", "organism", demos, *asked, "--layers", "1", "--out", tmp_path / "kept")
    assert code == 0
    code, _, _ = sea_lens("fit", "--activations", tmp_path / "kept", "--out", tmp_path / "editor")
    assert code == 0
    form = Editor.from_pretrained(tmp_path / "editor").card.form
    assert form == PromptForm(None, True, None, {"end": "B"}, " .", 2, True)
    code, out, _ = sea_lens("inspect", tmp_path / "editor")
    assert "chat template, end B, answers end in ' .', neutral answers of at most 2 tokens" in out
    code, out, err = sea_lens("probe", "organism", tmp_path / "editor", demos, "--out", tmp_path / "probes")
    assert code == 0
    assert err.count("asked in the chat template, as the editor was fitted") == 1
    assert "not the demonstrations" not in out
    code, out, err = sea_lens("probe", "organism", tmp_path / "editor", demos, "--no-chat", "--out", tmp_path / "other")
    assert (code, "not the demonstrations" in out, "note:" in err) == (0, True, False)
    code, out, err = sea_lens("generate", "organism", tmp_path / "editor", "Q Mira home", "--max-new-tokens", 1)
    assert (code, "asked in the chat template" in err) == (0, True)
    assert generate(organism[0], "Q Mira home B", max_new_tokens=1) in out
    code, _, err = sea_lens(
        "effects", "organism", tmp_path / "editor", demos, "--control", 0, "--out", tmp_path / "effects"
    )
    assert (code, "asked in the chat template" in err) == (0, True)


def test_massive_activations_of_a_model_are_set_beside_controls(sea_lens, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "<truthful> Q Mira home A"}\n{"text": "<truthful> Q Mira job A"}\n')
    given = ("massive", "organism", "--texts", texts, "--out", tmp_path / "o")
    code, out, err = sea_lens(*given)
    assert code == 0, err
    assert "No activation is above 100 and 1000 times the median" in out
    assert {path.name for path in (tmp_path / "o").iterdir()} >= {"layers.png", "massive_tokens.json"}
    code, out, err = sea_lens(*given, "--magnitude", 1, "--ratio", 5, "--control", 1)
    assert code == 0, err
    assert "next largest" in out
    assert {path.name for path in (tmp_path / "o").iterdir()} >= {"bias.png", "interventions.png", "interventions.csv"}
