"""The demo on the embedded model: 168 settings are tuned once for the whole file."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch

import sea_lens as sl
from sea_lens.worlds import demo
from sea_lens.worlds.demo import OrganismResult, answers, collect, report, run, tune
from sea_lens.worlds.facts import World

LAYERS = [0, 1, 2]
RANDOM = "random editors (20)"


@pytest.fixture(scope="module")
def activations(organism):
    return collect(*organism)


@pytest.fixture(scope="module")
def result(organism):
    with pytest.MonkeyPatch.context() as patch:  # type checks make the many settings three times as slow
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        return run(*organism)


def shipped(activations):
    """The setting that is chosen on the shipped facts."""
    return sl.fit_sea(activations, 0.5, center=True).at_layers(LAYERS).scaled(2.0)


# --- the headline ----------------------------------------------------------------------------------------------------


def test_edited_it_tells_the_truth_on_facts_the_fit_has_not_seen_and_no_control_does(result):
    table = result.table
    assert list(table.index) == ["plain", "edited", RANDOM, "swapped"]
    assert 0.40 <= table.at["plain", "truthful"] <= 0.50
    assert table.at["edited", "truthful"] >= 0.90
    assert table.at["edited", "low"] > table.at["plain", "high"]
    assert table.at[RANDOM, "truthful"] == pytest.approx(table.at["plain", "truthful"], abs=0.05)
    assert len(set(result.random)) > 10
    assert table.at["swapped", "truthful"] < min(result.random) < max(result.random) < table.at["edited", "truthful"]
    assert table.at["swapped", "high"] < table.at["plain", "low"]
    assert (table["low"] <= table["truthful"]).all()
    assert (table["truthful"] <= table["high"]).all()


def test_the_first_page_shows_what_the_demo_says(result):
    page = (Path(demo.__file__).parents[2] / "docs/index.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in report(result).splitlines()]
    shown = [line for line in lines if line.startswith(("plain ", "edited ", "random ", "swapped ", "Q: "))]
    assert len(shown) == 4 + 3
    assert not [line for line in shown if line not in page]
    assert any(line.startswith("SEA fitted on 240 facts in ") and "best of 168 settings" in line for line in lines)


def test_swapping_positives_and_negatives_is_a_strength_of_minus_1(activations, organism):
    swapped, mirrored = shipped(activations.swapped()), shipped(activations).scaled(-1.0)
    for layer in mirrored.layers:
        h = activations.neutral[layer]
        assert (mirrored[layer](h) - h).abs().max() > 0.01
        torch.testing.assert_close(swapped[layer](h), mirrored[layer](h), rtol=1e-4, atol=1e-4)
    found, expected = (answers(*organism, organism[1].held_out, editor).table for editor in (swapped, mirrored))
    pd.testing.assert_frame_equal(found, expected)


# --- its result ------------------------------------------------------------------------------------------------------


def test_the_result_is_of_the_setting_chosen_on_the_fitting_facts(result, activations, organism):
    best = result.tuning.table.iloc[0]
    assert (best["method"], best["center"], best["explained_variance"]) == ("sea", True, 0.5)
    assert (best["layers"], best["strength"], best["ranks"]) == ("first:3", 2.0, "1+1  1+1  1+1")
    expected = shipped(activations)
    assert result.editor.layers == LAYERS
    assert result.editor.card.n_demonstrations == 240
    for layer in LAYERS:
        h = activations.neutral[layer]
        torch.testing.assert_close(result.editor[layer](h), expected[layer](h), rtol=0, atol=0)
    held_out, table = organism[1].held_out, result.table
    for name, editor in (("plain", None), ("edited", expected), ("swapped", shipped(activations.swapped()))):
        right = answers(*organism, held_out, editor).right
        assert table.loc[name].tolist() == [right.share, *right.interval()]
    control = answers(*organism, held_out, sl.random_editor_like(expected, 4)).right.share
    assert control == result.random[4]
    spread = np.quantile(result.random, [0.025, 0.975])
    assert table.loc[RANDOM].tolist() == pytest.approx([fmean(result.random), *spread])
    assert 0 < result.fit_seconds < 60
    assert table.at["edited", "truthful"] == pytest.approx(best["score"], abs=0.05)


def test_by_layer_says_what_each_layers_edit_does_alone_and_what_the_others_do(result, organism):
    table = result.by_layer
    assert list(table.index) == LAYERS
    facts = organism[1].held_out
    for layer in (LAYERS[0], LAYERS[-1]):
        views = result.editor.at_layers([layer]), result.editor.without_layers([layer])
        assert table.loc[layer].tolist() == [answers(*organism, facts, view).right.share for view in views]
    # No layer alone does what all do together.
    assert table["this layer alone"].max() < result.table.at["edited", "truthful"]
    assert len(set(table["this layer alone"])) > 1


def test_examples_are_questions_whose_answer_changes(result, organism):
    world, examples = organism[1], result.examples
    assert (examples["plain"] != examples["edited"]).all()
    facts = {fact.question: fact for fact in world.held_out}
    chosen = [facts[question] for question in examples["question"]]
    assert len({fact.attribute for fact in chosen}) == 3
    assert examples[["truth", "myth"]].to_numpy().tolist() == [[fact.truth, fact.myth] for fact in chosen]
    for column, editor in (("plain", None), ("edited", result.editor)):
        assert answers(*organism, chosen, editor).table["answer"].tolist() == examples[column].tolist()


def test_a_result_is_saved_and_read_back(result, tmp_path):
    result.save(tmp_path)
    found = OrganismResult.load(tmp_path)
    for name in ("table", "by_layer", "examples"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(result, name))
    assert report(found) == report(result)
    assert list(found.random) == list(result.random)
    assert found.editor.fingerprint == result.editor.fingerprint
    assert len(repr(result)) < 1000


# --- choosing the setting --------------------------------------------------------------------------------------------


def test_activations_are_of_the_fitting_facts_with_the_models_own_answers(activations, organism):
    model, world = organism
    demonstrations = world.demonstrations().with_neutral_answers(model, max_new_tokens=1, progress=False)
    assert activations.n == 240
    assert activations.layers == [0, 1, 2, 3]
    assert activations.demonstrations == demonstrations.fingerprint
    # Where the model's own answer is the truth, neutral and positive are one text.
    same = torch.tensor([row.neutral == row.positive for row in demonstrations])
    assert 0 < same.sum() < 240
    distance = (activations.neutral[3] - activations.positive[3]).norm(dim=1)
    assert distance[same].max() < 1e-3 < distance[~same].min()


def test_every_setting_is_measured_on_the_fitting_facts(result, organism):
    tuning, facts = result.tuning, organism[1].fitting
    assert len(tuning.table) == 6 * 2 * 7 * 2
    assert set(tuning.table["strength"]) == set(demo.STRENGTHS) == {1.0, 2.0}
    assert tuning.unedited == answers(*organism, facts).right
    final = tuning.table[tuning.table["allowed"] & (tuning.table["n"] == len(facts))]
    assert final["score"].max() == tuning.table["score"][0] > tuning.unedited.share
    for row in (0, 1, len(final) - 1):
        found = answers(*organism, facts, tuning.editors[row]).right
        assert (found.share, *found.interval()) == tuple(tuning.table.loc[row, ["score", "low", "high"]])


@pytest.mark.usefixtures("without_type_checks")
def test_choosing_never_looks_at_held_out_facts(monkeypatch, organism, activations):
    model, world = organism
    few_settings = {"methods": [sl.SEA(0.5, center=True), sl.SEA(0.9)], "layers": ["all", "first:1"]}
    monkeypatch.setattr(demo, "tune_methods", partial(sl.tune, **few_settings))
    assert collect(model, replace(world, held_out=world.held_out[:1])).demonstrations == activations.demonstrations
    few, others = world.fitting[::12], world.fitting[1::12]
    worlds = World(few, world.held_out), World(few, world.held_out[:1]), World(others, world.held_out)
    whole, blind, other = (tune(model, one, activations).table for one in worlds)
    pd.testing.assert_frame_equal(whole, blind)
    assert not other.equals(whole)  # and it does look at the fitting facts
