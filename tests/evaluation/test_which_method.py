"""All methods side by side: one budget, nothing chosen on the scored half, and what cannot run says why."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError
from sea_lens.evaluation import costs
from sea_lens.evaluation.contenders import chosen_methods
from sea_lens.evaluation.method_comparison import front_of
from sea_lens.methods.budget import STRENGTHS, TRIALS, method_rows, tried

OPTIONS = {"layers": ["first:2"], "trials": 2, "measure": "rouge", "max_new_tokens": 1}
OPTIONS |= {"control": 1, "shuffles": 1, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(costs, "ENOUGH_SECONDS", 0.0)  # three timed passes will do
        yield


@pytest.fixture(scope="module")
def parts():
    model, world = sl.load_organism()
    return model, world.demonstrations()[::8], world.questions(world.fitting)[::10], world.questions()[::10]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def found(parts, folder):
    return sl.compare_methods(*parts, methods=["leace", "mean-difference", "sas", "sake"], folder=folder, **OPTIONS)


def test_each_method_is_the_best_of_a_tuning_of_its_own(parts, found):
    model, demonstrations, fitting, held_out = parts
    activations = sl.collect_activations(model, demonstrations, progress=False)
    own = {
        "leace": ([sl.LEACE(), sl.LEACE(shrinkage=False)], [1.0]),
        "mean-difference": ([sl.MeanDifference()], [1.0, 2.0]),
    }
    asked = sl.answer_greedily(model, held_out, 1).right.share
    for name, (methods, strengths) in own.items():
        options = {"measure": "rouge", "max_new_tokens": 1, "control": 0, "progress": False}
        tuning = sl.tune(
            model, activations, fitting, methods=methods, strengths=strengths, layers=OPTIONS["layers"], **options
        )
        assert found.editors[name].fingerprint == tuning.best.fingerprint
        with tuning.best.attached(model):
            score = sl.answer_greedily(model, held_out, 1).right.share
        row = found.table.loc[name]
        assert row["score"] == pytest.approx(score)
        assert row["change"] == pytest.approx(score - asked)
        assert row["fitting_score"] == tuning.table["score"].iloc[0]
        assert row["low"] <= row["change"] <= row["high"]
    assert found.table["score"]["unedited"] == pytest.approx(asked)
    assert set(found.table["tried"].iloc[1:]) == {found.budget, 2}
    assert dict(found.trials["method"].value_counts()) == dict.fromkeys(own, 2)


def test_what_cannot_run_is_named_with_the_reason(found):
    assert list(found.table.index) == ["unedited", "leace", "mean-difference"]
    assert "needs a sparse autoencoder" in found.left_out["sas"]
    assert "single facts" in found.left_out["sake"]
    assert all(f"{name} did not run: {why}" in repr(found) for name, why in found.left_out.items())


def test_controls_are_a_refit_on_shuffled_sides_and_a_random_editor(parts, found):
    model, demonstrations, _, held_out = parts
    activations = sl.collect_activations(model, demonstrations, progress=False)
    editor = found.editors["leace"]
    changes = {"shuffled": sl.refit(editor, activations.shuffled(0)), "control": sl.random_editor_like(editor, 0)}
    for name, other in changes.items():
        with other.attached(model):
            score = sl.answer_greedily(model, held_out, 1).right.share
        assert found.table[name]["leace"] == pytest.approx(score - found.table["score"]["unedited"])


def test_differences_are_paired(parts, found):
    model, _, _, held_out = parts
    right = []
    for name in ("leace", "mean-difference"):
        with found.editors[name].attached(model):
            right.append(sl.answer_greedily(model, held_out, 1).right.successes)
    row = found.versus("leace").loc["mean-difference"]
    assert row["difference"] == pytest.approx((right[0] - right[1]) / len(held_out))
    assert row["low"] <= row["difference"] <= row["high"]
    assert found.versus("mean-difference").loc["leace", "difference"] == pytest.approx(-row["difference"])
    with pytest.raises(InputError, match="methods that ran are leace, mean-difference"):
        found.versus("sas")


def test_a_finished_run_is_taken_up(parts, folder, found):
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("scores.jsonl")}
    again = sl.compare_methods(*parts, methods=["leace", "mean-difference"], folder=folder, **OPTIONS)
    assert len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("scores.jsonl")} == kept  # nothing was tried again
    same = [name for name in found.table if name not in ("fit_seconds", "slowdown")]
    pd.testing.assert_frame_equal(again.table[same], found.table[same])


def test_it_is_saved_and_read_back(found, tmp_path):
    found.save(tmp_path)
    again = sl.MethodComparison.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert (again.front, again.more_than_chance, again.left_out) == (
        found.front,
        found.more_than_chance,
        found.left_out,
    )
    pd.testing.assert_frame_equal(again.versus("leace"), found.versus("leace"))


def test_what_was_fitted_or_tuned_on_is_not_scored(parts):
    model, demonstrations, fitting, held_out = parts
    for scored in (sl.Questions.from_demonstrations(demonstrations)[:2], fitting[:1]):
        with pytest.raises(InputError, match=f"{len(scored)} of {len(scored)} held-out questions"):
            sl.compare_methods(model, demonstrations, fitting, scored, **OPTIONS)
    with pytest.raises(InputError, match=r"No method could run\. sas: SAS needs a sparse autoencoder"):
        sl.compare_methods(model, demonstrations, fitting, held_out, methods=["sas"], **OPTIONS)


@dataclass(frozen=True)
class Two:
    """A method that is not registered."""

    a: int = 0
    b: bool = False
    name: ClassVar = "two"
    roles: ClassVar = ("positive", "negative")
    settings_to_try: ClassVar = {"a": (0, 1, 2), "b": (False, True)}

    def fit(self, activations):
        raise AssertionError("it is not fitted")


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(sl.METHODS))
def test_every_method_can_spend_the_whole_budget(name):
    cls = sl.METHODS[name].cls
    grid = getattr(cls, "settings_to_try", {})
    n_settings = int(np.prod([len(values) for values in grid.values()]))
    strengths = getattr(cls, "strengths_to_try", STRENGTHS)
    assert TRIALS % n_settings == 0
    assert len(strengths) >= TRIALS // n_settings
    assert len(set(strengths)) == len(strengths)
    chosen, left_out = chosen_methods([name])
    for method in chosen.values():
        settings, scales = tried(method, TRIALS)
        assert len({repr(one) for one in settings}) * len(scales) == TRIALS
        usual = {key: getattr(method, key) for key in grid}
        assert {key: values[0] for key, values in grid.items()} == usual  # the defaults come first
    assert chosen.keys() ^ left_out.keys() == {name}


def test_the_budget_goes_to_settings_first():
    assert [tried(Two(), trials)[1] for trials in (6, 11, 12, 18)] == [[1.0], [1.0], [1.0, 2.0], [1.0, 2.0, 0.5]]
    assert [(one.a, one.b) for one in tried(Two(), 4)[0]] == list(product((0, 1, 2), (False, True)))[:4]


def test_settings_that_are_given_stay():
    chosen, left_out = chosen_methods(["all", sl.SEA(0.9, merge="sum")])
    assert {one.merge for one in tried(chosen["sea"], 6)[0]} == {"sum"}
    assert chosen.keys() | left_out.keys() == set(sl.METHODS)
    with pytest.raises(InputError, match="'sea' is given twice"):
        chosen_methods(["sea", sl.SEA()])
    with pytest.raises(InputError, match="There is no method 'see'"):
        chosen_methods(["all", "see"])


def test_the_front_is_what_nothing_betters():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.randint(0, 6, (8, 2), generator=generator).double()
        rows = pd.DataFrame(values.numpy(), columns=["change", "kl"], index=list("abcdefgh"))
        bettered = {
            one
            for one, other in product(rows.index, repeat=2)
            if rows.at[other, "change"] >= rows.at[one, "change"]
            and rows.at[other, "kl"] <= rows.at[one, "kl"]
            and tuple(rows.loc[other]) != tuple(rows.loc[one])
        }
        points = {tuple(rows.loc[name]) for name in front_of(rows)}
        assert points == {tuple(rows.loc[name]) for name in set(rows.index) - bettered}


def test_the_table_of_methods_says_something_of_each():
    ours = {name: entry for name, entry in sl.METHODS.items() if entry.cls.__module__.startswith("sea_lens.")}
    rows = method_rows(ours)
    assert [row["method"] for row in rows] == list(ours)
    assert [row["method"] for row in rows if not all(row.values())] == []
