import json
import re
import textwrap
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import PNG

import sea_lens as package
from sea_lens import SEA, Activations, Demonstrations, Editor, Questions, answer_greedily
from sea_lens.methods.method import METHODS
from sea_lens.methods.sea.feature_space import Tanh
from sea_lens.models.activations import ROLES
from sea_lens.worlds import demo as experiment

ONE_TOKEN = ["--max-new-tokens", "1"]
FIT = ["--explained-variance", "0.5", "--center"]
OWN_METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from sea_lens import AffineEdit
from sea_lens.methods.method import fitted_editor, register_method


@register_method("mine")
@dataclass(frozen=True)
class Mine:
    """Shifts everything.

    Attributes:
        by: How far.
    """

    by: float = 1.0
    roles: ClassVar = ("positive", "negative")

    def fit(self, activations):
        shifts = {site: self.by * (activations.positive[site].mean(0)) for site in activations.sites}
        return fitted_editor(self, activations, {site: AffineEdit.of_shift(shift) for site, shift in shifts.items()})
'''


def shares(out):
    """Condition, share and interval of every line of the demo's table, in per cent."""
    found = re.findall(r"^  (\S.*?) +=* +(\d+\.\d)%  \[(\d+\.\d), (\d+\.\d)\]$", out, flags=re.MULTILINE)
    return {name: tuple(map(float, numbers)) for name, *numbers in found}


# --- demo and methods ------------------------------------------------------------------------------------------------


def test_the_demo(sea_lens, tmp_path, capsys, monkeypatch):
    # One of the demo's 168 settings, measured once for the command and its code; tests/worlds/test_demo.py chooses among all.
    tune = partial(
        package.tune, folder=tmp_path / "scores", methods=[SEA(0.5), SEA(0.5, center=True)], layers=("first:3",)
    )
    options = ("folder", "methods", "layers")
    one = lambda *given, **more: tune(*given, **{k: v for k, v in more.items() if k not in options})  # noqa: E731
    for holder in (experiment, package):
        monkeypatch.setattr(holder, "tune_methods" if hasattr(holder, "tune_methods") else "tune", one)
    code, out, err = sea_lens("demo", "--out", tmp_path / "demo", "--random-editors", 2)
    assert code == 0, err
    found = shares(out)
    assert list(found) == ["plain", "edited", "random editors (2)", "swapped"]
    assert all(low <= share <= high for share, low, high in found.values())
    assert found["swapped"][0] < found["random editors (2)"][0] < found["edited"][0]
    assert found["edited"][0] >= 90 > 50 >= found["plain"][0] >= 40
    for picture in ("layers.png", "settings.png"):
        assert (tmp_path / "demo" / picture).read_bytes().startswith(PNG)
    editor = Editor.from_pretrained(tmp_path / "demo" / "editor")
    assert (editor.width, editor.card.model.name) == (128, "sea-lens-organism")
    namespace = {}
    exec(textwrap.dedent(out.split("The same in Python:")[1]), namespace)
    share, low, high = found["edited"]
    assert capsys.readouterr().out.strip().endswith(f"{share:.1f}% [{low:.1f}, {high:.1f}]")


def test_methods_are_listed_with_what_they_need(sea_lens):
    code, out, _ = sea_lens("methods", width=100)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    for name in ("sea", "mean-difference", "leace", "iti"):
        assert name in out
    assert {"sea", "neutral,", "negative"} <= set(out.replace("│", " ").split())


# --- collect and fit -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected(sea_lens, demos, tmp_path_factory):
    """The folder of activations of all demonstrations, collected once and not to be changed."""
    folder = tmp_path_factory.mktemp("collected") / "activations"
    code, out, err = sea_lens("collect", "organism", demos, "--out", folder, *ONE_TOKEN)
    assert code == 0, err
    assert "Activations(30 demonstrations" in out
    return folder


def same(one, other):
    h = torch.randn(5, one.width, generator=torch.Generator().manual_seed(0))
    return one.sites == other.sites and all(torch.equal(one[site](h), other[site](h)) for site in one.sites)


def test_fits_are_the_librarys(sea_lens, demos, collected, tmp_path):
    code, out, _ = sea_lens("fit", "--activations", collected, "--out", tmp_path / "one", *FIT)
    assert code == 0
    activations = Activations.load(collected)
    assert same(Editor.from_pretrained(tmp_path / "one"), SEA(0.5, center=True).fit(activations))
    assert (
        sea_lens("fit", "sea", "organism", demos, "--out", tmp_path / "two", "--strength", 1, *FIT, *ONE_TOKEN)[0] == 0
    )
    assert same(Editor.from_pretrained(tmp_path / "two"), Editor.from_pretrained(tmp_path / "one"))
    more = ["--ranks", "2,1", "--merge", "sum", "--layers", "0,2-3", "--feature-map", "tanh:4", "--feature-unit", 12.5]
    assert sea_lens("fit", "--activations", collected, "--out", tmp_path / "three", *more)[0] == 0
    found = Editor.from_pretrained(tmp_path / "three")
    method = SEA(ranks=(2, 1), merge="sum", feature_map=Tanh(4.0), feature_unit=12.5)
    assert found.layers == [0, 2, 3]
    assert same(found, method.fit(activations.at_sites([0, 2, 3])))
    code, out, _ = sea_lens("inspect", tmp_path / "three")
    assert (code, "clamped features" in out) == (0, True)


@pytest.mark.parametrize(
    ("name", "cls", "words", "settings"),
    [
        ("mean-difference", "MeanDifference", [], {}),
        ("leace", "LEACE", ["--no-shrinkage"], {"shrinkage": False}),
        ("pca-difference", "PCADifference", ["--length", "unit"], {"length": "unit"}),
        ("ace", "ACE", ["--alpha", 2.5], {"alpha": 2.5}),
        (
            "directional-ablation",
            "DirectionalAblation",
            ["--source", 1, "--at", "resid_mid"],
            {"source": 1, "at": ("resid_mid",)},
        ),
        ("gaussian-transport", "GaussianTransport", ["--rank", 2, "--most", 3], {"rank": 2, "most": 3.0}),
        ("midsteer", "MidSteer", ["--no-switch"], {"switch": False}),
        ("conceptor", "ConceptorSteering", ["--of", "not_negative"], {"of": "not_negative"}),
    ],
)
def test_any_method_is_fitted_by_its_name(sea_lens, collected, tmp_path, name, cls, words, settings):
    code, _, err = sea_lens("fit", name, "--activations", collected, "--out", tmp_path / "one", *words)
    assert code == 0, err
    expected = getattr(package, cls)(**settings).fit(Activations.load(collected))
    assert same(Editor.from_pretrained(tmp_path / "one"), expected)


def test_a_method_of_attention_heads_needs_no_neutral_answers(sea_lens, demos, tmp_path):
    options = ["--site", "attn.hook_z", "--n-heads", 2, "--folds", 2, "--seed", 1]
    code, _, err = sea_lens("fit", "iti", "organism", demos, "--out", tmp_path / "one", *options)
    assert code == 0, err
    editor = Editor.from_pretrained(tmp_path / "one")
    assert {site.name for site in editor.sites} == {"attn.hook_z"}
    assert editor.card.settings["seed"] == 1


def test_a_method_of_ones_own_is_imported(sea_lens, collected, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", None)  # gone after the test
    (tmp_path / "mine.py").write_text(OWN_METHOD)
    fit = ["fit", "mine", "--activations", collected, "--out", tmp_path / "one", "--by", "-2"]
    code, _, err = sea_lens("--import", tmp_path / "mine.py", *fit)
    assert code == 0, err
    shift = Editor.from_pretrained(tmp_path / "one")[1].shift
    torch.testing.assert_close(shift, -2 * Activations.load(collected).positive[1].mean(0))


def test_a_killed_collection_goes_on_where_it_stopped(sea_lens, demos, collected, tmp_path):
    options = ["--layers", "last:2", "--token", "last_content", "--site", "mlp_out", "--n", 10, "--seed", 3]
    command = ["collect", "organism", demos, "--out", tmp_path / "acts", *ONE_TOKEN, *options, "--answer-ending", " ."]
    assert sea_lens(*command)[0] == 0
    found = Activations.load(tmp_path / "acts")
    assert ([site.layer for site in found.sites], found.token, found.n) == ([2, 3], "last_content", 10)
    assert {site.name for site in found.sites} == {"mlp_out"}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "acts").rglob("*.safetensors")}
    assert sea_lens(*command)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    code, _, err = sea_lens(*command, "--n", 8)
    assert (code, "differ" in err or "other" in err) == (2, True)
    again = Activations.load(tmp_path / "acts")
    assert all(torch.equal(again[role][site], found[role][site]) for role in ROLES for site in found.sites)


def test_an_editor_that_does_nothing_is_warned_about_on_stderr(sea_lens, tmp_path):
    neutral, answer = ({0: torch.randn(20, 8, generator=torch.Generator().manual_seed(seed))} for seed in range(2))
    Activations.from_tensors(neutral=neutral, positive=answer, negative=answer).save(tmp_path / "acts.safetensors")
    code, _, err = sea_lens("fit", "--activations", tmp_path / "acts.safetensors", "--out", tmp_path / "one")
    assert code == 0
    assert err.startswith("warning: This editor edits nothing")
    assert err.count("\n") == 1


# --- tune and convert ------------------------------------------------------------------------------------------------


def test_tuning_writes_table_picture_and_editor_and_goes_on_where_it_stopped(sea_lens, organism, tmp_path):
    model, _ = organism
    grid = ["--explained-variance", 0.5, "--explained-variance", 0.9, "--layers", "all", "--layers", "0,2", "--center"]
    options = [*ONE_TOKEN, *grid, "--strength", 2, "--also", "mean-difference", "--n", 12]
    organism[1].demonstrations()[::16].to_jsonl(tmp_path / "mixed.jsonl")  # the unedited model has some of these right
    command = ["tune", "organism", tmp_path / "mixed.jsonl", "--out", tmp_path / "o", *options]
    code, out, err = sea_lens(*command, width=80)
    assert code == 0, err
    assert "The best of 6 settings" in out
    assert "Measure it on others before you believe the score." in out
    table = pd.read_csv(tmp_path / "o" / "settings.csv")
    assert set(table["method"]) == {"sea", "mean-difference"}
    assert set(table["strength"]) == {2.0}
    assert (tmp_path / "o" / "settings.png").read_bytes().startswith(PNG)
    data = Questions.from_demonstrations(Demonstrations.from_jsonl(tmp_path / "mixed.jsonl").sample(12, 0))
    with Editor.from_pretrained(tmp_path / "o" / "editor").attached(model):
        best = answer_greedily(model, data, 1, progress=False).right.share
    assert best == table["score"].max() == table["score"][0]
    assert sea_lens(*command)[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "o" / "settings.csv"), table)


def test_tuning_asks_the_questions_it_is_given(sea_lens, organism, demos, tmp_path):
    _, world = organism
    world.demonstrations(world.held_out[::20]).to_jsonl(tmp_path / "others.jsonl")
    options = ["--questions", tmp_path / "others.jsonl", "--measure", "preference", "--layers", "all", "--n", 12]
    command = ["tune", "leace", "organism", demos, "--out", tmp_path / "o", *ONE_TOKEN, *options]
    code, out, err = sea_lens(*command, "--max-kl", 0.01, "--json")
    assert code == 2
    assert (
        "error: No editor is saved: all 1 settings break the model (limit 0.01 nats per token; the gentlest has KL"
        in err
    )
    told = json.loads(out)  # with what was found until then
    assert (f"error: {told['error']}" in err, told["results"][0]["kind"]) == (True, "Tuning")
    assert (tmp_path / "o" / "settings.csv").exists()
    assert not (tmp_path / "o" / "editor").exists()
    code, out, err = sea_lens(*command, "--max-kl", 2)
    assert "3 random editors like the best: score" in out
    assert len(pd.read_csv(tmp_path / "o" / "controls.csv")) == 3
    assert code == 0, err
    assert "Measure it on others" not in out
    scores = pd.read_csv(tmp_path / "o" / "settings.csv")["score"]
    assert ((scores * 12 - (scores * 12).round()).abs() < 1e-9).all()


def test_the_embedded_worlds_demonstrations_need_no_file(sea_lens, organism, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sea_lens("fit", "organism", "organism", *ONE_TOKEN, *FIT, "--n", 30, "--seed", 4)[0] == 0
    expected = organism[1].demonstrations().sample(30, 4).with_neutral_answers(organism[0], 1, progress=False)
    assert Editor.from_pretrained("editor").card.demonstrations == expected.fingerprint


def test_the_authors_projections_become_an_editor(sea_lens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    basis, _ = torch.linalg.qr(torch.randn(4, 16, 3, generator=torch.Generator().manual_seed(0)))
    torch.save(basis[..., :2] @ basis[..., :2].mT, "uu_positive.pt")
    torch.save(torch.eye(16) - basis[..., 2:] @ basis[..., 2:].mT, "uu_negative.pt")
    code, _, err = sea_lens("convert", "uu_positive.pt", "uu_negative.pt", "--layers", "last:2")
    assert (code, err) == (0, "")
    editor = Editor.from_pretrained("editor")
    assert (editor.layers, {site.name for site in editor.sites}) == ([2, 3], {"mlp_out"})
    published = ["--normalization", "feature", "--feature-function", "tanh", "--site", "resid_post", "--out", "two"]
    code, _, err = sea_lens("convert", "uu_positive.pt", "uu_negative.pt", *published)
    assert code == 0
    assert "is the published rule" in err
    assert Path("two/config.json").exists()
