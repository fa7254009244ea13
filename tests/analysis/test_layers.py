"""Ablations of edits whose truth is planted, and of real ones against each view measured by itself."""

import warnings
from dataclasses import replace

import pytest
import torch
from conftest import D_MODEL, N_LAYERS, low_rank
from scipy.stats import binom

from sea_lens import (
    Activations,
    Questions,
    ablate_layers,
    fit_sea,
    measure_effects,
    measure_interactions,
    random_editor_like,
    refit,
    select_layers,
)
from sea_lens.analysis.measurements import measure
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.statistics import beats_controls_p_value

QUESTIONS = Questions.from_lists(
    ["Q: sea?", "ab", "The sky is", "Q: x"], [["blue"], ["c"], ["up"], ["y"]], [["red"], ["dd"], ["down"], ["z"]]
)
OTHERS = Questions.from_lists(["Q: sun?", "cd", "The sea is"], [["hot"], ["e"], ["wet"]], [["cold"], ["f"], ["dry"]])


def random_activations(model, seed=0, n=20):
    generator = torch.Generator().manual_seed(seed)
    roles = [{layer: torch.randn(n, D_MODEL, generator=generator) for layer in range(N_LAYERS)} for _ in range(3)]
    names = dict(zip(("neutral", "positive", "negative"), roles, strict=True))
    return Activations.from_tensors(**names, model=model)


def make_editor(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return fit_sea(random_activations(model), ranks=4).scaled(2.0)


def planted(model, working):
    """Real edits at some layers, and edits that provably do nothing at the others."""
    nothing = low_rank(torch.zeros(D_MODEL, 0), torch.zeros(0))
    editor = make_editor(model)
    return replace(editor, edits={k: edit if k in working else nothing for k, edit in editor.edits.items()})


def by_layer(ablation, mode, column="change"):
    found = ablation.table[ablation.table["mode"] == mode]
    return dict(zip(found["layer"].tolist(), found[column].tolist(), strict=True))


def test_a_planted_layer_is_found(bridge):
    found = ablate_layers(bridge, planted(bridge, {1}), QUESTIONS, progress=False)
    whole = by_layer(found, "all")
    (effect,) = whole.values()
    assert abs(effect) > 1e-3
    assert by_layer(found, "only") == {0: 0.0, 1: effect, 2: 0.0}
    assert by_layer(found, "without") == {0: effect, 1: 0.0, 2: effect}
    assert by_layer(found, "first") == {1: 0.0, 2: effect, 3: effect}
    assert by_layer(found, "last") == {1: 0.0, 2: effect, 3: effect}


@pytest.mark.parametrize("effect", ["kl", "log_probability_difference"])
def test_every_row_is_the_view_measured_by_itself(bridge, effect):
    editor = make_editor(bridge)
    found = ablate_layers(bridge, editor, QUESTIONS, effect=effect, layer_sets=[[2, 0], [1]], progress=False)
    for row in found.table.itertuples():
        view = editor.at_layers(row.layers) if row.layers else None
        plain, alone = measure(bridge, QUESTIONS, [None, view], [effect], progress=False).values[0]
        assert row.value == alone.mean().item()
        assert row.change == (alone - plain).mean().item()
    nothing = found.table.iloc[0]
    assert (nothing["mode"], nothing["change"], nothing["p_value"]) == ("none", 0.0, 1.0)
    assert found.table["layers"].tolist()[-2:] == [(0, 2), (1,)]
    means = found.per_question.mean().tolist()
    assert means == pytest.approx(found.table["value"].tolist())


def test_intervals_and_p_values_are_those_of_the_view_measured_by_itself(llama):
    editor = make_editor(llama)
    table = ablate_layers(llama, editor, QUESTIONS, ["only"], effect="kl", seed=3, progress=False).table
    for row in table[1:].itertuples():
        view = editor.at_layers(row.layers)
        alone = measure_effects(llama, view, QUESTIONS, ["kl"], seed=3, progress=False).table
        for name in ("change", "low", "high", "p_value"):
            assert getattr(row, name) == alone.at["kl", name]


def test_all_layers_are_the_editor(llama):
    found = ablate_layers(llama, make_editor(llama), QUESTIONS, progress=False)
    whole = by_layer(found, "all")
    assert by_layer(found, "first")[N_LAYERS] == by_layer(found, "last")[N_LAYERS] == next(iter(whole.values()))


def test_batches_change_nothing(llama):
    one, many = (
        ablate_layers(llama, make_editor(llama), QUESTIONS, batch_size=size, progress=False).table for size in (1, 4)
    )
    assert one["value"].tolist() == pytest.approx(many["value"].tolist(), abs=1e-5)


def test_controls_are_ablated_alike(llama):
    editor = make_editor(llama)
    found = ablate_layers(llama, editor, QUESTIONS, ["only"], control=3, progress=False)
    alone = measure_effects(
        llama, editor.at_layers([1]), QUESTIONS, ["log_probability_difference"], control=3, progress=False
    ).table
    row = found.table[(found.table["mode"] == "only") & (found.table["layer"] == 1)].iloc[0]
    assert row["control_low"] <= row["control"] <= row["control_high"]
    assert 0.25 <= row["control_p_value"] <= 1
    assert set(alone) == set(found.table) - {"mode", "layer", "layers", "value"} | {"unedited", "edited"}
    own = [editor.scaled(-1.0), editor]
    named = ablate_layers(llama, editor, QUESTIONS, ["only"], control=own, progress=False)
    assert named.n_controls == 2
    assert (named.table["control_p_value"] >= 2 / 3).all()  # the editor is one of its own controls


def test_control_columns_are_of_the_controls_views_measured_one_by_one(llama):
    editor, n = make_editor(llama), 3
    found = ablate_layers(
        llama, editor, QUESTIONS, effect="kl", layer_sets=[[0, 2]], control=n, seed=4, progress=False
    ).table
    controls = [random_editor_like(editor, 4 + number) for number in range(n)]
    for row in found.itertuples():
        views = [control.at_layers(row.layers) if row.layers else None for control in controls]
        values = measure(llama, QUESTIONS, [None, *views], ["kl"], progress=False).values[0].mean(1).tolist()
        changes = [value - values[0] for value in values[1:]]
        assert (row.control_low, row.control_high) == (min(changes), max(changes))
        assert row.control == pytest.approx(sum(changes) / n)
        assert row.control_p_value == (1 + sum(abs(change) >= abs(row.change) for change in changes)) / (1 + n)


def test_an_editor_of_one_layer_can_be_ablated(llama):
    found = ablate_layers(llama, make_editor(llama).at_layers([1]), QUESTIONS, progress=False)
    assert by_layer(found, "without") == {1: 0.0}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ["each"]}, "modes is a list out of only, without, first, last"),
        ({"modes": "only"}, "modes is a list"),
        ({"effect": "luck"}, "no effect 'luck'"),
        ({"layer_sets": [[]]}, "A set of layers is empty"),
        ({"control": -1}, "-1 was given"),
    ],
)
def test_impossible_ablations_are_refused(llama, options, message):
    with pytest.raises(InputError, match=message):
        ablate_layers(llama, make_editor(llama), QUESTIONS, progress=False, **options)


def test_layers_that_are_not_edited_are_refused(llama):
    with pytest.raises(ModelMismatchError, match="no layer 7"):
        ablate_layers(llama, make_editor(llama), QUESTIONS, layer_sets=[[7]], progress=False)


def test_interactions_are_both_less_the_sum(llama):
    editor = make_editor(llama)
    found = measure_interactions(llama, editor, QUESTIONS, progress=False)
    ablation = ablate_layers(llama, editor, QUESTIONS, ["only"], layer_sets=[[0, 1], [0, 2], [1, 2]], progress=False)
    only = by_layer(ablation, "only")
    both = ablation.table[ablation.table["mode"] == "set"]["change"].tolist()
    assert found.table["both"].tolist() == pytest.approx(both, abs=1e-12)
    assert found.alone.to_dict() == pytest.approx(only, abs=1e-12)
    sums = [only[0] + only[1], only[0] + only[2], only[1] + only[2]]
    assert found.table["interaction"].tolist() == pytest.approx([b - s for b, s in zip(both, sums, strict=True)])


def test_layers_that_do_nothing_do_not_interact(llama):
    found = measure_interactions(llama, planted(llama, {1}), QUESTIONS, progress=False)
    assert found.table["interaction"].abs().max() < 1e-12
    with pytest.raises(InputError, match="of two layers"):
        measure_interactions(llama, make_editor(llama).at_layers([1]), QUESTIONS, progress=False)


def test_the_layer_that_works_is_chosen_and_no_other(llama):
    for lower in (False, True):
        found = select_layers(llama, planted(llama, {1}), QUESTIONS, OTHERS, lower_is_better=lower, progress=False)
        gain = by_layer(ablate_layers(llama, planted(llama, {1}), QUESTIONS, ["only"], progress=False), "only")[1]
        if (gain > 0) is not lower:
            assert found.editor.layers == [1]
            assert found.table["added"].tolist()[0] == 1
            assert found.table["chosen"].tolist() == [True, False, False]
            assert found.table["change"].tolist()[0] == pytest.approx(gain)
    confirmed = measure_effects(
        llama, planted(llama, {1}), OTHERS, ["log_probability_difference"], progress=False
    ).table["change"]
    assert found.table["held_out"].tolist()[-1] == pytest.approx(confirmed.iloc[0])


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("effect", ["log_probability_difference", "kl", "rank"])
@pytest.mark.parametrize("max_layers", [None, 2])
def test_the_path_is_that_of_greedy_search_by_hand(llama, effect, lower_is_better, max_layers):
    editor, best = make_editor(llama), min if lower_is_better else max
    found = select_layers(
        llama,
        editor,
        QUESTIONS,
        OTHERS,
        effect,
        max_layers=max_layers,
        lower_is_better=lower_is_better,
        progress=False,
    )

    def change(layers, questions):
        plain, edited = measure(llama, questions, [None, editor.at_layers(layers)], [effect], progress=False).values[0]
        return (edited - plain).mean().item()

    path, changes = [], []
    while len(path) < (max_layers or N_LAYERS):
        candidates = {layer: change([*path, layer], QUESTIONS) for layer in editor.layers if layer not in path}
        changes.append(best(candidates.values()))
        path.append(next(layer for layer, value in candidates.items() if value == changes[-1]))
    steps = range(1, len(path))
    stop = next((k for k in steps if best(changes[k], changes[k - 1]) == changes[k - 1]), len(path)) - 1
    assert found.table["added"].tolist() == path
    assert found.table["layers"].tolist() == [tuple(sorted(path[: n + 1])) for n in range(len(path))]
    assert found.table["change"].tolist() == changes
    assert found.table["held_out"].tolist() == [change(path[: n + 1], OTHERS) for n in range(len(path))]
    assert found.table["chosen"].tolist() == [n == stop for n in range(len(path))]
    assert found.editor.layers == sorted(path[: stop + 1])
    assert (found.n, found.n_held_out, found.effect) == (len(QUESTIONS), len(OTHERS), effect)


def test_an_effect_that_adds_up_over_layers_has_no_interaction_and_a_product_has_one(llama):
    """The effect recognises each view by what the model predicts under it, and gives it a planted value."""
    editor = make_editor(llama)
    worth = {0: 1.0, 1: -2.0, 2: 0.5}
    subsets = [[], [0], [1], [2], [0, 1], [0, 2], [1, 2]]
    views = [editor.at_layers(layers) if layers else None for layers in subsets]
    marks = measure(llama, QUESTIONS, views, [likeliest], progress=False).values[0, :, 0].tolist()
    assert len(set(marks)) == len(subsets)

    def planted_value(rule):
        def effect(edited, unedited):
            mark = float(likeliest(edited, unedited)[0])
            layers = subsets[min(range(len(marks)), key=lambda k: abs(marks[k] - mark))]
            return torch.full((len(QUESTIONS),), rule([worth[layer] for layer in layers]), dtype=torch.float64)

        return effect

    added = measure_interactions(llama, editor, QUESTIONS, planted_value(sum), progress=False)
    assert added.alone.to_dict() == worth
    assert added.table["interaction"].tolist() == [0.0] * 3
    squared = measure_interactions(
        llama, editor, QUESTIONS, planted_value(lambda found: sum(found) ** 2), progress=False
    )
    expected = [2 * worth[0] * worth[1], 2 * worth[0] * worth[2], 2 * worth[1] * worth[2]]
    assert squared.table["interaction"].tolist() == expected
    assert squared.table["low"].tolist() == squared.table["high"].tolist() == expected  # alike on all questions


def likeliest(edited, unedited):
    """Something that tells views of an editor apart: one number for all questions, whatever their order in the batch."""
    return edited.next_token.amax(1).mean().repeat(len(edited.next_token))


def test_questions_to_choose_by_cannot_confirm(llama):
    with pytest.raises(InputError, match="4 held-out questions are also ones to choose by"):
        select_layers(llama, make_editor(llama), QUESTIONS, QUESTIONS, progress=False)
    with pytest.raises(InputError, match="max_layers is 1 to 3"):
        select_layers(llama, make_editor(llama), QUESTIONS, OTHERS, max_layers=4, progress=False)


def test_the_first_layers_carry_truth_in_the_embedded_model(organism):
    from sea_lens.worlds.demo import collect

    model, world = organism
    editor = fit_sea(collect(model, world), 0.5, center=True).scaled(2.0)
    found = ablate_layers(
        model, editor, world.questions(world.held_out[::2]), effect="top_token", batch_size=120, progress=False
    )
    assert by_layer(found, "first", "value")[2] > 0.95
    assert by_layer(found, "last", "value")[2] < 0.7


def test_refits_on_shuffled_labels_reject_an_edit_of_nothing_at_the_nominal_rate(llama):
    """Where positives and negatives are of one distribution, the fit and its shuffled refits are exchangeable."""
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(99))
    n_problems, n_controls, rejected = 80, 9, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        for seed in range(n_problems):
            activations = random_activations(llama, seed + 100, n=12)
            # Any one labelling of the pairs is as good as another, the given one included.
            given = fit_sea(activations, ranks=2, layers=[0])
            refits = [refit(given, activations.shuffled(1000 * seed + number)) for number in range(n_controls)]
            effects = [
                float(((e[0](h) - h) @ direction).mean()) for e in (given, *refits) for h in [activations.neutral[0]]
            ]
            rejected += beats_controls_p_value(effects[0], effects[1:]) <= 0.1
    assert binom.ppf(0.001, n_problems, 0.1) <= rejected <= binom.ppf(0.999, n_problems, 0.1)
