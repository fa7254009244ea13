import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import LlamaForCausalLM

from sea_lens import answer_greedily, random_editor
from sea_lens.errors import SeaLensWarning
from sea_lens.organism import WEIGHTS, experiment, load_organism
from sea_lens.organism.experiment import RandomControls, answers, choose_setting, collect, fit, run
from sea_lens.organism.train import measure
from sea_lens.organism.world import World

LAYERS = list(range(experiment.FIRST_LAYERS))


@pytest.fixture(scope="module")
def activations(organism):
    return collect(*organism)


@pytest.fixture(scope="module")
def result(organism):
    return run(*organism, n_random=6)


@pytest.fixture(scope="module")
def small_grid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "EXPLAINED_VARIANCES", (0.5, 0.9))
        patch.setattr(experiment, "STRENGTHS", (1.0, 2.0))
        yield


@pytest.fixture(scope="module")
def settings(organism, activations, small_grid):
    return quietly_choose(*organism, activations)


def quietly_choose(model, world, activations):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return choose_setting(model, world, activations)


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
    swapped, mirrored = fit(activations.swapped()), fit(activations).scaled(-1.0)
    for layer in mirrored.layers:
        h = activations.neutral[layer]
        assert (mirrored[layer](h) - h).abs().max() > 0.01
        torch.testing.assert_close(swapped[layer](h), mirrored[layer](h), rtol=1e-4, atol=1e-4)
    found, expected = (answers(*organism, organism[1].held_out, editor).table for editor in (swapped, mirrored))
    pd.testing.assert_frame_equal(found, expected)


# --- its result ------------------------------------------------------------------------------------------------------


def test_the_result_is_of_the_shipped_setting(result):
    assert result.editor.layers == LAYERS
    assert {edit.strength for edit in result.editor.edits.values()} == {experiment.STRENGTH}
    chosen = result.editor.card.hyper_parameters
    assert (chosen["explained_variance"], chosen["centre"]) == ([experiment.EXPLAINED_VARIANCE] * 2, experiment.CENTRE)
    assert result.editor.card.n_demonstrations == 240
    assert 0 < result.fit_seconds < 60


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
        assert table.loc[layer].tolist() == [answers(*organism, facts, view).truthful.share for view in views]
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


def test_a_second_run_gives_the_same_shares(result, organism):
    again = run(*organism, n_random=2)
    assert (again.plain, again.edited, again.swapped) == (result.plain, result.edited, result.swapped)
    assert again.random.shares == result.random.shares[:2]
    pd.testing.assert_frame_equal(again.by_layer, result.by_layer)
    pd.testing.assert_frame_equal(again.examples, result.examples)


def test_random_editors_follow_from_the_seed(result, organism):
    control = random_editor(result.editor, 4)
    assert answers(*organism, organism[1].held_out, control).truthful.share == result.random.shares[4]


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


def test_the_shipped_setting_is_the_one_chosen_on_the_fitting_facts(settings, activations):
    best = settings.iloc[0]
    chosen = experiment.EXPLAINED_VARIANCE, experiment.CENTRE, experiment.STRENGTH
    assert (best["explained_variance"], best["centre"], best["strength"]) == chosen
    assert best["editor"].layers == LAYERS
    for layer in LAYERS:
        assert torch.equal(best["editor"][layer].directions, fit(activations)[layer].directions)


def test_settings_are_ordered_and_none_is_there_twice(settings, organism):
    columns = ["centre", "explained_variance", "strength", "layers", "truthful", "mythical", "editor"]
    assert list(settings.columns) == columns
    order = list(zip(settings["truthful"], settings["mythical"], strict=True))
    assert order == sorted(order, reverse=True)
    assert len(set(settings["truthful"])) > 5
    assert not settings.duplicated(columns[:4]).any()
    assert set(settings["strength"]) == {1.0, 2.0}
    assert set(settings["centre"]) == {False, True}
    assert {"all", "first 1", "first 3", "last 1", "last 3"} <= set(settings["layers"])
    facts = organism[1].fitting
    for _, row in settings.iloc[[0, -1]].iterrows():
        assert answers(*organism, facts, row["editor"]).truthful.share == row["truthful"]
        mirrored = answers(*organism, facts, row["editor"].scaled(-1.0)).table["answer"]
        myths = sum(answer == fact.myth for answer, fact in zip(mirrored, facts, strict=True))
        assert row["mythical"] == pytest.approx(myths / len(facts))


def test_choosing_never_looks_at_held_out_facts(monkeypatch, organism, activations):
    model, world = organism
    monkeypatch.setattr(experiment, "EXPLAINED_VARIANCES", (0.5,))
    monkeypatch.setattr(experiment, "STRENGTHS", (2.0,))
    assert collect(model, replace(world, held_out=world.held_out[:1])).demonstrations == activations.demonstrations
    few, others = world.fitting[::6], world.fitting[1::6]
    worlds = World(few, world.held_out), World(few, world.held_out[:1]), World(others, world.held_out)
    whole, blind, other = (quietly_choose(model, one, activations).drop(columns="editor") for one in worlds)
    pd.testing.assert_frame_equal(whole, blind)
    assert not other.equals(whole)  # and it does look at the fitting facts
