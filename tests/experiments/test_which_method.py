"""The study of methods: what is planted is learned and seen, and transfer is of the other kinds of facts."""

import json
from dataclasses import replace

import pandas as pd
import pytest

import sea_lens as sl
from experiments import methods_page
from experiments.which_method import HERE, Data, confound, figure, transfer


@pytest.fixture(scope="module")
def data():
    whole = Data.of({"world": "organism"}, HERE)
    return replace(whole, demonstrations=whole.demonstrations[::6], held_out=whole.held_out[::6])


@pytest.fixture(scope="module")
def editor(data):
    activations = sl.collect_activations(data.model, data.demonstrations, progress=False)
    return sl.MeanDifference().fit(activations).first_layers(2)


def test_a_full_stop_that_ends_every_positive_is_learned_and_seen(data, editor):
    found = confound(data, editor)
    assert found["planted_goes_on"] > found["clean_goes_on"] + 2  # nats
    assert found["last_content_goes_on"] == pytest.approx(found["clean_goes_on"], abs=1e-4)
    planted = sl.Demonstrations(tuple(replace(row, positive=row.positive + " .") for row in data.demonstrations))
    assert any("final" in finding or "end in a period" in finding for finding in planted.check().findings)
    with editor.attached(data.model):
        edited = sl.answer_greedily(data.model, data.held_out, 1).right.share
    plain = sl.answer_greedily(data.model, data.held_out, 1).right.share
    assert found["clean"] == pytest.approx(edited - plain)


def test_transfer_is_fitted_on_one_kind_of_facts_and_scored_on_the_others(data):
    activations = sl.collect_activations(data.model, data.demonstrations, progress=False)
    editor = 2.0 * sl.LEACE().fit(activations).last_layers(2)
    found = transfer(data, editor)
    kinds = sorted({question.category for question in data.held_out})
    own, others = 0, 0
    for kind in kinds:
        rows = sl.Demonstrations(tuple(row for row in data.demonstrations if f" {kind} " in row.prompt))
        fitted = sl.refit(editor, sl.collect_activations(data.model, rows, progress=False))
        for other in kinds:
            asked = sl.Questions(tuple(question for question in data.held_out if question.category == other))
            plain = sl.answer_greedily(data.model, asked, 1).right.successes
            with fitted.attached(data.model):
                gained = sl.answer_greedily(data.model, asked, 1).right.successes - plain
            own, others = (own + gained, others) if other == kind else (own, others + gained / 3)
    assert found["own"] == pytest.approx(own / len(data.held_out))
    assert found["others"] == pytest.approx(others / len(data.held_out))
    assert found["others_low"] <= found["others"] <= found["others_high"]


def test_the_configuration_can_be_read():
    config = json.loads((HERE / "which_method.json").read_text(encoding="utf-8"))
    assert config["lost_and_won"]["data"] in config["data"]
    Data.of(config["data"]["bias"], HERE)


def test_a_panel_per_data_set():
    columns = {"change": [0.1], "low": [0.0], "high": [0.2], "kl": [0.01], "more_than_chance": [True]}
    table = pd.DataFrame(columns, index=pd.Index(["sea"], name="method"))
    assert [axes.get_title() for axes in figure({"one": table, "two": table}).axes] == ["one", "two"]


def test_the_page_of_methods_has_the_table_of_all_methods():
    _, inside, _ = methods_page.parts()
    assert inside == methods_page.table()  # else: python -m experiments.methods_page
    assert "\\" not in inside.replace(r"\|", "")  # equations in one notation, which needs no LaTeX
