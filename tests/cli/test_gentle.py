"""A fit with no options neither does nothing nor breaks the model, and says at which strength that is."""

import warnings

import pytest

import sea_lens as sl
from sea_lens.cli.gentle import fit_to_scale, left_open, scaled_for, settled
from sea_lens.methods.method import METHODS
from sea_lens.models.damage import DamageMeter


@pytest.mark.parametrize("load", [sl.load_organism, sl.load_bias_organism])
def test_the_settings_of_a_first_fit_do_something_and_leave_the_model_whole(load):
    model, world = load()
    data = world.demonstrations()[:80:2].with_neutral_answers(model, 1, progress=False)
    activations = sl.collect_activations(model, data, progress=False)
    settings = settled(METHODS["sea"], left_open(METHODS["sea"]), True)
    assert settings == {"explained_variance": 0.5, "center": True}
    editor, told = scaled_for(model, sl.SEA(**settings).fit(activations), 0.1, None)
    found = sl.measure_damage(model, [row.prompt for row in data][:8], editor, examples=0)
    assert found.table["kl"]["neutral text"] <= 0.1 * 1.03
    assert not found.is_broken
    assert max(report.displacement for report in editor.card.reports.values()) > 0.02
    strong, said = scaled_for(model, sl.MeanDifference().fit(activations), 0.1, None)
    cost = DamageMeter.of(model).measure
    assert cost(strong).kl == pytest.approx(0.1, rel=0.03)
    assert "scaled to strength 0." in said
    assert f"{cost(sl.MeanDifference().fit(activations)).kl:.3g}" in said
    assert scaled_for(model, strong, 0.1, 2.0)[0].edits[strong.sites[0]].strength == 2 * strong[0].strength
    assert "within --kl 0.1" in told or "scaled to" in told


def test_settings_that_are_given_stay_as_they_are_given():
    sea, usual = METHODS["sea"], {"explained_variance": None, "center": None}
    assert settled(sea, usual, False) == {}  # as published, where nothing tells what it costs
    assert settled(sea, {**usual, "center": False}, True) == {"center": False, "explained_variance": 0.5}
    assert settled(sea, {**usual, "ranks": (2, 1)}, True) == {"ranks": (2, 1), "center": True}
    assert settled(METHODS["leace"], {"shrinkage": False}, True) == {"shrinkage": False}


def test_an_edit_that_moves_much_at_many_layers_is_warned_of():
    model, world = sl.load_organism()
    data = world.demonstrations()[:80:2].with_neutral_answers(model, 1, progress=False)
    activations = sl.collect_activations(model, data, progress=False)
    with pytest.warns(sl.SeaLensWarning, match="and edits compound"):
        far = sl.SEA(0.5, center=False).fit(activations)
    assert sum(report.displacement for report in far.card.reports.values()) > 1
    assert sl.measure_damage(model, [], far, examples=0).is_broken
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with fit_to_scale(0.1, None):  # a command that scales it next says what it would cost
            assert sl.SEA(0.5, center=False).fit(activations).layers == far.layers
    assert not any("compound" in str(each.message) for each in caught)
    with pytest.warns(sl.SeaLensWarning, match="and edits compound"), fit_to_scale(0.1, 1.0):
        sl.SEA(0.5, center=False).fit(activations)
