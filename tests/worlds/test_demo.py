import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jaxtyping
import pandas as pd
import pytest
import torch
from transformers import LlamaForCausalLM

from experiments.worlds.train import measure
from sea_lens import SEA, answer_greedily, fit_sea, grid, random_editor_like
from sea_lens.worlds import demo as experiment
from sea_lens.worlds.demo import RandomControls, answers, collect, run, tune
from sea_lens.worlds.facts import World
from sea_lens.worlds.load import WEIGHTS, load_organism

LAYERS = [0, 1, 2]


@pytest.fixture(scope="module")
def activations(organism):
    return collect(*organism)


@pytest.fixture(scope="module")
def result(organism):
    with pytest.MonkeyPatch.context() as patch:  # type checks would make the many settings three times as slow
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        return run(*organism, n_random=6)


def shipped(activations):
    """The setting that is chosen on the shipped facts."""
    return fit_sea(activations, 0.5, center=True).at_layers(LAYERS).scaled(2.0)


# --- what ships ------------------------------------------------------------------------------------------------------


def test_the_embedded_model_loads_offline():
    code = (
        "import sea_lens as sl\n"
        "model, world = sl.load_organism()\n"
        "print(type(model).__name__, model.cfg.n_layers, model.cfg.d_model, model.cfg.model_name, len(world.facts))"
    )
    options = {"capture_output": True, "text": True, "check": True, "timeout": 120}
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, **options)
    assert found.stdout.split() == ["TransformerBridge", "4", "128", "sea-lens-organism", "480"]


def test_loading_leaves_progress_bars_as_they_were():
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    load_organism()
    assert logging.is_progress_bar_enabled() == before


def test_the_weights_are_small_safetensors():
    names = {path.name for path in WEIGHTS.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "facts.json", "measured.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))}
    assert (WEIGHTS / "model.safetensors").stat().st_size < 4_000_000


def test_what_was_measured_in_training_holds_for_the_shipped_weights():
    measured = measure(LlamaForCausalLM.from_pretrained(WEIGHTS).eval(), World.build())
    written = json.loads((WEIGHTS / "measured.json").read_text())
    assert set(written) == {"seed", "steps", *measured}
    assert measured["plain"] == pytest.approx(written["plain"], abs=0.01)
    assert measured["tagged truthful"] == written["tagged truthful"] == 1.0
    assert measured["tagged mythical"] == written["tagged mythical"] == 0.0
    assert measured["in context"] >= 0.99
    assert written["in context"] >= 0.99


# --- the headline ----------------------------------------------------------------------------------------------------


def test_plainly_asked_it_tells_the_truth_less_than_half_the_time(result):
    assert 0.40 <= result.plain.share <= 0.50
    assert result.plain.n == 240


def test_edited_it_tells_the_truth_on_facts_the_fit_has_not_seen(result):
    assert result.edited.share >= 0.90
    assert result.edited.n == 240
    assert result.edited.interval()[0] > result.plain.interval()[1]


def test_random_editors_of_the_same_size_change_nothing_on_average(result):
    assert len(result.random.shares) == len(set(result.random.shares)) or len(set(result.random.shares)) > 2
    assert result.random.mean == pytest.approx(result.plain.share, abs=0.05)
    assert max(result.random.shares) < result.edited.share


def test_swapped_it_tells_myths(result):
    assert result.swapped.share < min(result.random.shares)
    assert result.swapped.interval()[1] < result.plain.interval()[0]


def test_swapping_positives_and_negatives_is_a_strength_of_minus_1(activations, organism):
    swapped, mirrored = shipped(activations.swapped()), shipped(activations).scaled(-1.0)
    for layer in mirrored.layers:
        h = activations.neutral[layer]
        assert (mirrored[layer](h) - h).abs().max() > 0.01
        torch.testing.assert_close(swapped[layer](h), mirrored[layer](h), rtol=1e-4, atol=1e-4)
    found, expected = (answers(*organism, organism[1].held_out, editor).table for editor in (swapped, mirrored))
    pd.testing.assert_frame_equal(found, expected)


# --- its result ------------------------------------------------------------------------------------------------------


def test_the_result_is_of_the_setting_chosen_on_the_fitting_facts(result, activations):
    best = result.tuning.table.iloc[0]
    assert (best["feature_map"], best["center"], best["explained_variance"]) == ("linear", True, 0.5)
    assert (best["layers"], best["strength"], best["ranks"]) == ("first:3", 2.0, "1+1  1+1  1+1")
    expected = shipped(activations)
    for editor in (result.editor, result.tuning.best):
        assert editor.layers == LAYERS
        assert editor.card.n_demonstrations == 240
        for layer in LAYERS:
            assert editor[layer].strength == 2.0
            assert torch.equal(editor[layer].directions, expected[layer].directions)
            assert torch.equal(editor[layer].eigenvalues, expected[layer].eigenvalues)
            assert torch.equal(editor[layer].shift, expected[layer].shift)
    assert 0 < result.fit_seconds < 60


def test_the_swapped_editor_is_the_same_fit_with_sides_exchanged(result, activations, organism):
    assert answers(*organism, organism[1].held_out, shipped(activations.swapped())).right == result.swapped


def test_the_table_has_a_row_a_condition(result):
    table = result.table
    assert list(table.index) == ["plain", "edited", "random editors (6)", "swapped"]
    assert list(table.columns) == ["truthful", "low", "high"]
    assert table.loc["edited"].tolist() == [result.edited.share, *result.edited.interval()]
    assert table.loc["random editors (6)", "truthful"] == result.random.mean
    assert (table["low"] <= table["truthful"]).all()
    assert (table["truthful"] <= table["high"]).all()


def test_by_layer_says_what_each_layers_edit_does_alone_and_what_the_others_do(result, organism):
    table = result.by_layer
    assert list(table.index) == LAYERS
    assert table.index.name == "layer"
    assert list(table.columns) == ["this layer alone", "all but this layer"]
    facts = organism[1].held_out
    for layer in (LAYERS[0], LAYERS[-1]):
        views = result.editor.at_layers([layer]), result.editor.without_layers([layer])
        assert table.loc[layer].tolist() == [answers(*organism, facts, view).right.share for view in views]
    # No layer alone does what all do together.
    assert table["this layer alone"].max() < result.edited.share
    assert len(set(table["this layer alone"])) > 1


def test_examples_are_questions_whose_answer_changes(result, organism):
    model, world = organism
    assert list(result.examples.columns) == ["question", "plain", "edited", "truth", "myth"]
    assert len(result.examples) == 3
    assert (result.examples["plain"] != result.examples["edited"]).all()
    facts = {fact.question: fact for fact in world.held_out}
    chosen = [facts[question] for question in result.examples["question"]]
    assert [fact.truth for fact in chosen] == result.examples["truth"].tolist()
    assert [fact.myth for fact in chosen] == result.examples["myth"].tolist()
    assert len({fact.attribute for fact in chosen}) == 3
    assert (
        answer_greedily(model, world.questions(chosen), 1).table["answer"].tolist() == result.examples["plain"].tolist()
    )
    with result.editor.attached(model):
        edited = answer_greedily(model, world.questions(chosen), 1)
    assert edited.table["answer"].tolist() == result.examples["edited"].tolist()


def test_a_second_run_gives_the_same_shares(result, organism, monkeypatch):
    monkeypatch.setattr(experiment, "tune", lambda *arguments: result.tuning)  # 12 s; repeated in tests/test_tuning.py
    again = run(*organism, n_random=2)
    assert (again.plain, again.edited, again.swapped) == (result.plain, result.edited, result.swapped)
    assert again.random.shares == result.random.shares[:2]
    pd.testing.assert_frame_equal(again.by_layer, result.by_layer)
    pd.testing.assert_frame_equal(again.examples, result.examples)


def test_random_editors_follow_from_the_seed(result, organism):
    control = random_editor_like(result.editor, 4)
    assert answers(*organism, organism[1].held_out, control).right.share == result.random.shares[4]


def test_the_spread_of_random_controls_is_between_quantiles():
    controls = RandomControls(tuple(index / 40 for index in range(41)))
    assert controls.mean == pytest.approx(0.5)
    assert controls.interval() == pytest.approx((1 / 40, 39 / 40))
    low, high = RandomControls((0.4, 0.6)).interval()
    assert 0.4 <= low < 0.5 < high <= 0.6


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
    assert set(tuning.table["strength"]) == set(experiment.STRENGTHS) == {1.0, 2.0}
    assert tuning.unedited == answers(*organism, facts).right
    assert tuning.table["score"].max() == tuning.table["score"][0] > tuning.unedited.share
    for row in (0, 40, 167):
        found = answers(*organism, facts, tuning.editors[row]).right
        assert (found.share, *found.interval()) == tuple(tuning.table.loc[row, ["score", "low", "high"]])


def test_what_was_chosen_on_the_fitting_facts_does_as_well_elsewhere(result):
    assert result.edited.share == pytest.approx(result.tuning.table["score"][0], abs=0.05)


def test_choosing_never_looks_at_held_out_facts(monkeypatch, organism, activations):
    model, world = organism
    few_methods = grid(SEA, center=[False, True], explained_variance=[0.5])
    monkeypatch.setattr(experiment, "tune_methods", partial(experiment.tune_methods, methods=few_methods))
    assert collect(model, replace(world, held_out=world.held_out[:1])).demonstrations == activations.demonstrations
    few, others = world.fitting[::12], world.fitting[1::12]
    worlds = World(few, world.held_out), World(few, world.held_out[:1]), World(others, world.held_out)
    whole, blind, other = (tune(model, one, activations).table for one in worlds)
    pd.testing.assert_frame_equal(whole, blind)
    assert not other.equals(whole)  # and it does look at the fitting facts
