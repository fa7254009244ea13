"""Tuning, row by row against fits, answers and KLs made by hand; on the embedded model and on a tiny Llama."""

import json
from dataclasses import replace
from functools import partial
from itertools import product

import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from sea_lens import Activations, Questions, Tanh, answer_greedily, fit_sea, kl_to_unedited, prefer_right, tune_sea
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.methods.sea.sea import SEARule
from sea_lens.methods.tune import _layer_sets, describe_setting
from sea_lens.statistics import Proportion
from sea_lens.worlds.demo import collect
from sea_lens.worlds.load import load_organism

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")

LAYERS = {"all": [0, 1, 2, 3], "last:2": [2, 3], "1,3": [1, 3]}
MAPS = {"linear": None, "Tanh(scale=1.0)": Tanh(1.0)}
GRID = {
    "explained_variances": [0.5, (0.95, 0.6)],
    "layers": ["all", "last:2", [1, 3]],
    "feature_maps": list(MAPS.values()),
    "strengths": [1.0, 2.0],
}
SMALL = {"explained_variances": [0.5, 0.9], "layers": ["all", "first:2"], "center": [True], "strengths": [1.0, 2.0]}
SETTING = ["feature_map", "center", "strength", "explained_variance", "layers"]


@pytest.fixture(scope="module")
def activations(organism):
    return collect(*organism)


@pytest.fixture(scope="module")
def questions(organism):
    world = organism[1]
    return world.questions(world.fitting[::10])


@pytest.fixture(scope="module")
def tune(organism, activations, questions):
    """Tunes the embedded model, with arguments changed by a test."""

    def run(**changes):
        given = {"model": organism[0], "activations": activations, "questions": questions, "max_new_tokens": 1}
        return tune_sea(**{**given, "progress": False, **changes})

    return run


@pytest.fixture(scope="module")
def tuned(tune):
    return tune(**GRID)


@pytest.fixture(scope="module")
def by_hand(tuned, activations):
    """The editor of every row of `tuned`, from a fit of its own."""
    fits = {
        (name, center, share): fit_sea(activations, share, center=center, feature_map=feature_map)
        for (name, feature_map), center, share in product(MAPS.items(), [False, True], GRID["explained_variances"])
    }
    return [
        fits[row.feature_map, row.center, row.explained_variance].at_layers(LAYERS[row.layers]).scaled(row.strength)
        for row in tuned.table.itertuples()
    ]


def linear_parts(edit):
    return [edit] if isinstance(edit, AffineEdit) else list(edit.parts)


def assert_same_editor(found, expected):
    """Bit for bit."""
    assert found.layers == expected.layers
    assert found.card.site == expected.card.site
    assert found.card.hyper_parameters == expected.card.hyper_parameters
    for layer in found.layers:
        a, b = found[layer], expected[layer]
        assert type(a) is type(b)
        assert (a.strength, a.restore_norm) == (b.strength, b.restore_norm)
        for name in ("feature_map", "unit", "weight"):
            assert getattr(a, name, None) == getattr(b, name, None)
        for part, other in zip(linear_parts(a), linear_parts(b), strict=True):
            assert torch.equal(part.directions, other.directions)
            assert torch.equal(part.eigenvalues, other.eigenvalues)
            assert (part.kept, part.shift is None) == (other.kept, other.shift is None)
            assert part.shift is None or torch.equal(part.shift, other.shift)


def assert_same_tuning(found, expected):
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    assert found.unedited == expected.unedited
    for one, other in zip(found.editors, expected.editors, strict=True):
        assert_same_editor(one, other)


def scored(model, questions, editor):
    with editor.attached(model):
        return answer_greedily(model, questions, 1).right


def float64_kl(model, editor, texts):
    """Of texts of one length, so that nothing is padded."""
    tokens = torch.tensor([model.tokenizer(text)["input_ids"] for text in texts])
    with torch.no_grad():
        p, q = (
            model.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False).double().log_softmax(-1)[:, :-1]
            for hooks in ([], editor.fwd_hooks())
        )
    return (p.exp() * (p - q)).sum(-1).mean().item()


def counting(fails_after=None):
    """A measure, and the questions it was called with; killed after so many calls."""
    calls = []

    def measure(model, questions):
        if len(calls) == fails_after:
            raise KeyboardInterrupt
        calls.append(questions)
        return answer_greedily(model, questions, 1).right

    return measure, calls


# --- rows ------------------------------------------------------------------------------------------------------------


def test_there_is_a_row_for_every_combination(tuned):
    table = tuned.table
    found = ["score", "low", "high", "kl", "clamped"]
    assert list(table.columns) == ["feature_map", "center", "strength", "explained_variance", "layers", "ranks", *found]
    assert list(table.index) == list(range(2 * 2 * 2 * 2 * 3))
    expected = product(MAPS, [False, True], GRID["strengths"], GRID["explained_variances"], LAYERS)
    assert set(table[SETTING].itertuples(index=False, name=None)) == set(expected)
    assert len(tuned.editors) == len(table)


def test_every_row_has_the_editor_that_a_fit_at_its_setting_gives(tuned, by_hand):
    for editor, expected in zip(tuned.editors, by_hand, strict=True):
        assert_same_editor(editor, expected)
        assert editor.positions is None


def test_every_score_is_what_its_editor_does_to_the_questions(tuned, by_hand, organism, questions):
    expected = [scored(organism[0], questions, editor).share for editor in by_hand]
    assert tuned.table["score"].tolist() == expected
    assert len(set(expected)) > 10
    assert tuned.unedited == answer_greedily(organism[0], questions, 1).right


def test_every_kl_is_on_the_prompts_of_the_questions(tuned, by_hand, organism, questions):
    prompts = [question.prompt for question in questions]
    expected = [float64_kl(organism[0], editor, prompts) for editor in by_hand]
    assert tuned.table["kl"].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert max(expected) > 100 * min(expected) > 0


def test_intervals_are_wilsons(tuned, questions):
    for row in tuned.table.itertuples():
        expected = binomtest(round(row.score * len(questions)), len(questions)).proportion_ci(0.95, method="wilson")
        assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_rows_are_ordered_by_score_then_kl_and_the_best_is_the_first(tuned):
    order = list(zip(-tuned.table["score"], tuned.table["kl"], strict=True))
    assert order == sorted(order)
    assert len(set(tuned.table["score"])) < len(order)  # so the KL decides, too
    assert tuned.best is tuned.editors[0]


def test_of_equal_scores_and_kls_the_lowest_ranks_come_first(tune):
    found = tune(explained_variances=[0.99, 0.5, 0.9], layers=["all", "first:1"], strengths=[0.0])
    assert set(found.table["score"]) == {found.unedited.share}
    assert set(found.table["kl"]) == {0.0}
    sizes = [sum(edit.rank for edit in editor.edits.values()) for editor in found.editors]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3


def test_ranks_are_those_of_the_subspaces_layer_by_layer(tuned, by_hand):
    for ranks, editor in zip(tuned.table["ranks"], by_hand, strict=True):
        facts = [editor.card.layers[layer] for layer in editor.layers]
        assert ranks == "  ".join(f"{found['rank_positive']}+{found['rank_negative']}" for found in facts)
    assert any(a != b for a, b in (pair.split("+") for pair in " ".join(tuned.table["ranks"]).split()))


def test_clamped_is_the_largest_share_of_any_edited_layer(tuned, activations):
    linear = tuned.table["feature_map"] == "linear"
    assert tuned.table.loc[linear, "clamped"].isna().all()
    for row in tuned.table[~linear].itertuples():
        edits = tuned.editors[row.Index].edits
        shares = [edit.clamped(activations.neutral[layer]) for layer, edit in edits.items()]
        assert row.clamped == pytest.approx(max(max(pair) for pair in shares), abs=1e-4)
    assert tuned.table.loc[~linear, "clamped"].nunique() > 3
    assert tuned.table["clamped"].max() > 1e-3


def test_clamping_is_no_column_of_linear_edits(tune):
    assert "clamped" not in tune(**SMALL).table
    assert "clamped" in tune(explained_variances=[0.5], layers=["all"], feature_maps=[Tanh(4.0)]).table


def test_a_tuning_says_what_is_best(tuned):
    first = tuned.table.iloc[0]
    assert repr(tuned).startswith(f"Tuning(48 settings; unedited {tuned.unedited}; best {first['score']:.1%} ")
    assert describe_setting(first) in repr(tuned)
    row = {"feature_map": "linear", "center": True, "explained_variance": 0.9, "layers": "first:3", "strength": 2.0}
    expected = "centered, explained variance 0.9, layers first:3, strength 2, ranks 1+2"
    assert describe_setting({**row, "ranks": "1+2"}) == expected
    mapped = {**row, "feature_map": "Tanh(scale=4.0)", "center": False, "strength": 0.5, "ranks": "1+2"}
    assert describe_setting(mapped) == (
        "Tanh(scale=4.0), uncentered, explained variance 0.9, layers first:3, strength 0.5, ranks 1+2"
    )


# --- what is tried ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_layers", "parts"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (12, [3, 6, 9]), (32, [8, 16, 24])]
)
def test_all_layers_and_quarters_from_either_end_are_tried_by_default(n_layers, parts):
    expected = {"all": list(range(n_layers))}
    expected |= {f"first:{n}": list(range(n)) for n in parts}
    expected |= {f"last:{n}": list(range(n_layers - n, n_layers)) for n in parts}
    assert _layer_sets(None, range(n_layers), n_layers) == expected


def test_by_default_linear_edits_of_the_papers_strength_are_tried(tune):
    found = tune(explained_variances=[0.5])
    assert set(found.table["feature_map"]) == {"linear"}
    assert set(found.table["center"]) == {False, True}
    assert set(found.table["strength"]) == {1.0}
    assert set(found.table["layers"]) == {"all", "first:1", "first:2", "first:3", "last:1", "last:2", "last:3"}
    assert len(found.table) == 2 * 7


@pytest.mark.parametrize(
    ("layers", "name", "chosen"),
    [("2", "2", [2]), ("3,0-1", "3,0-1", [0, 1, 3]), ([2, 0], "2,0", [0, 2]), (range(1, 3), "1,2", [1, 2])],
)
def test_layers_may_be_names_and_lists(tune, layers, name, chosen):
    found = tune(explained_variances=[0.5], center=[True], layers=[layers])
    assert found.table["layers"].tolist() == [name]
    assert found.best.layers == chosen


def test_sides_of_the_model_mean_the_layers_there_are(tune, activations):
    some = {role: {layer: activations[role][layer] for layer in (1, 2)} for role in ("neutral", "positive", "negative")}
    found = tune(
        activations=replace(activations, **some), explained_variances=[0.5], layers=["all", "first:2", "last:2"]
    )
    chosen = dict(zip(found.table["layers"], (editor.layers for editor in found.editors), strict=True))
    assert chosen == {"all": [1, 2], "first:2": [1], "last:2": [2]}


def test_the_default_layers_are_of_those_there_are(tune, activations):
    some = {role: {layer: activations[role][layer] for layer in (1, 2)} for role in ("neutral", "positive", "negative")}
    found = tune(activations=replace(activations, **some), explained_variances=[0.5])
    assert {layer for editor in found.editors for layer in editor.layers} == {1, 2}


@pytest.mark.parametrize(
    "options", [{"projections": "positive"}, {"merge": "sum"}, {"spectrum": "singular_values"}, {"feature_unit": 0.5}]
)
def test_the_rest_of_a_fit_comes_from_the_rule(tune, activations, options):
    rule = SEARule(feature_map=Tanh(9.0), center=True, **options)  # map and centering are the lists'
    given = {"explained_variances": [0.8], "layers": ["first:2"], "center": [False], "feature_maps": [None, Tanh(2.0)]}
    found = tune(rule=rule, **given)
    assert set(found.table["feature_map"]) == {"linear", "Tanh(scale=2.0)"}
    for row in found.table.itertuples():
        feature_map = None if row.feature_map == "linear" else Tanh(2.0)
        expected = fit_sea(activations, 0.8, feature_map=feature_map, **options).at_layers([0, 1])
        assert_same_editor(found.editors[row.Index], expected)


# --- what it is measured by ------------------------------------------------------------------------------------------


def test_a_measure_of_your_own_sees_the_given_questions_under_each_editor(tune, questions, organism):
    seen, logits = [], []

    def measure(model, given):
        seen.append(given)
        with torch.no_grad():
            logits.append(model(torch.tensor([[1, 8, 9, 10]]), use_cache=False)[0, -1])
        return Proportion(len(seen) % 7, 10)

    found = tune(**SMALL, measure=measure)
    assert all(given is questions for given in seen)
    assert len({tuple(row.tolist()) for row in logits}) == len(seen) == 1 + 8
    assert found.unedited == Proportion(1, 10)
    assert sorted(found.table["score"]) == sorted((call % 7) / 10 for call in range(2, 10))
    best = next(row for row, call in zip(logits, range(1, 10), strict=True) if call % 7 == 6)
    with torch.no_grad(), found.best.attached(organism[0]):
        assert torch.equal(organism[0](torch.tensor([[1, 8, 9, 10]]), use_cache=False)[0, -1], best)


def test_partial_functions_and_objects_are_measures(tune, organism, questions):
    class Asking:
        def __call__(self, model, given):
            return answer_greedily(model, given, 1).right

    expected = answer_greedily(organism[0], questions, 1).right
    for measure in (partial(another_measure), Asking()):
        assert tune(**SMALL, measure=measure).unedited == expected


def test_preference_is_a_measure(tune, questions, organism):
    found = tune(**SMALL, measure="preference")
    assert found.unedited == prefer_right(organism[0], questions).right
    for editor, score in zip(found.editors, found.table["score"], strict=True):
        with editor.attached(organism[0]):
            assert prefer_right(organism[0], questions).right.share == score


def test_other_questions_give_other_scores(tune, organism):
    world = organism[1]
    given, other = (tune(**SMALL, questions=world.questions(world.fitting[start::6])) for start in (0, 1))
    assert given.table["score"].tolist() != other.table["score"].tolist()


def test_a_hundred_prompts_at_most_are_neutral_texts_unless_you_give_some(tune, organism):
    model, world = organism
    given = {"explained_variances": [0.5], "layers": ["all"], "center": [True], "strengths": [2.0]}
    prompts = [question.prompt for question in world.questions(world.fitting)]
    for texts, options in (
        (prompts[::3], {}),
        (["Q Ada home A Oslo", "Q Zeno"], {"neutral_texts": ["Q Ada home A Oslo", "Q Zeno"]}),
    ):
        found = tune(questions=world.questions(world.fitting), **given, **options)
        assert found.table["kl"][0] == pytest.approx(kl_to_unedited(model, texts, found.best), rel=1e-5)
        assert found.table["kl"][0] != pytest.approx(kl_to_unedited(model, prompts[1::3], found.best), rel=1e-5)


def test_a_tiny_llama_is_tuned_on_questions_of_several_lengths(llama):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    activations = Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=llama)
    prompts = ["Q: what color is the sea? A:", "ab", "a text", "The sky is"]
    answers = answer_greedily(llama, Questions.from_lists(prompts, [["x"]] * 4, [[]] * 4), 3).table["answer"]
    questions = Questions.from_lists(prompts, [[answer] for answer in answers], [["x"]] * 4)
    options = {"explained_variances": [0.3, 0.6], "layers": ["all", "last:1"], "strengths": [0.2, 1.0]}
    options |= {"center": [True], "max_new_tokens": 3, "progress": False}
    found, other = (tune_sea(llama, activations, questions, batch_size=size, **options) for size in (64, 3))
    assert found.unedited.share == 1
    assert len(set(found.table["score"])) > 2
    for editor, row in zip(found.editors, found.table.itertuples(), strict=True):
        with editor.attached(llama):
            assert answer_greedily(llama, questions, 3).right.share == row.score
        assert row.kl == pytest.approx(kl_to_unedited(llama, prompts, editor, batch_size=1), rel=1e-3)
    pd.testing.assert_frame_equal(found.table, other.table, rtol=1e-3)


# --- how often -------------------------------------------------------------------------------------------------------


def test_settings_that_come_to_one_editor_are_measured_once(tune, activations):
    measure, calls = counting()
    shares, layers = [0.5, 0.51, 0.9], ["all", "first:4", "0-3", "first:2", [0, 1]]
    found = tune(explained_variances=shares, layers=layers, measure=measure)
    sets = [range(4), range(4), range(4), range(2), range(2)]
    editors = set()
    for share, chosen, center in product(shares, sets, [False, True]):
        facts = fit_sea(activations, share, center=center).card.layers
        editors.add((center, tuple((i, facts[i]["rank_positive"], facts[i]["rank_negative"]) for i in chosen)))
    assert len(found.table) == len(found.editors) == 3 * 5 * 2
    assert len(calls) == 1 + len(editors) < 15
    for name, same in (("all", "first:4"), ("all", "0-3"), ("first:2", "0,1")):
        one, other = (found.table[found.table["layers"] == layers].reset_index() for layers in (name, same))
        columns = ["explained_variance", "center", "score", "kl"]
        pd.testing.assert_frame_equal(
            *(rows[columns].sort_values(columns[:2]).reset_index(drop=True) for rows in (one, other))
        )


def test_each_layer_is_decomposed_once_for_each_feature_map_and_centering(tune, monkeypatch):
    svd, shapes = torch.linalg.svd, []

    def counted(matrix, *arguments, **options):
        shapes.append(tuple(matrix.shape))
        return svd(matrix, *arguments, **options)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    sets = {"explained_variances": [0.5, 0.9, (0.8, 0.5)], "layers": ["first:2", [1], "1,3"], "strengths": [1.0, 2.0]}
    tune(**sets, center=[False, True])
    assert shapes == [(128, 128)] * (2 * 3 * 2)  # two sides of layers 0, 1 and 3, two centerings
    shapes.clear()
    tune(explained_variances=[0.5, 0.9], layers=["last:2"], center=[True], feature_maps=[None, Tanh(2.0), Tanh(1.0)])
    assert shapes == [(128, 128)] * (2 * 2 * 3)  # two sides of layers 2 and 3, three maps


# --- what it leaves --------------------------------------------------------------------------------------------------


def test_the_batch_size_changes_nothing(tune):
    whole, single = (tune(**SMALL, batch_size=size) for size in (64, 7))
    pd.testing.assert_frame_equal(whole.table, single.table, rtol=1e-3)
    pd.testing.assert_series_equal(whole.table["score"], single.table["score"], check_exact=True)


def test_the_same_inputs_give_the_same_bits(tune):
    assert_same_tuning(tune(**SMALL), tune(**SMALL))


def test_the_model_stays_as_it_was(tune, organism):
    model = organism[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tune(**SMALL)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls_before", [0, 4, 8])
def test_a_killed_tuning_goes_on(tune, tmp_path, organism, calls_before):
    whole = tune(**SMALL, measure=counting()[0])
    killed, before = counting(fails_after=calls_before)
    with pytest.raises(KeyboardInterrupt):
        tune(**SMALL, measure=killed, folder=tmp_path / "new" / "folder")
    assert len(before) == calls_before
    assert not any(point.fwd_hooks for point in organism[0].hook_dict.values())
    measure, after = counting()
    found = tune(**SMALL, measure=measure, folder=tmp_path / "new" / "folder")
    assert len(before) + len(after) == 1 + len(whole.table)
    assert_same_tuning(found, whole)


def test_a_finished_tuning_is_read_and_grows(tune, tmp_path):
    (first, _), (again, n_again), (more, n_more) = counting(), counting(), counting()
    expected = tune(**SMALL, measure=first, folder=tmp_path)
    assert_same_tuning(tune(**SMALL, measure=again, folder=str(tmp_path), batch_size=7), expected)
    larger = {**SMALL, "strengths": [3.0, 2.0, 1.0]}
    assert_same_tuning(tune(**larger, measure=more, folder=tmp_path), tune(**larger, measure=first))
    assert (len(n_again), len(n_more)) == (0, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


@pytest.mark.parametrize("lost", [1, 2, 10, 60])
def test_a_line_that_was_cut_short_is_measured_again(tune, tmp_path, lost):
    expected = tune(**SMALL, folder=tmp_path, measure=counting()[0])
    path = tmp_path / "scores.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(path.read_bytes()[:-lost])
    for calls_expected in (int(lost > 1), 0):
        measure, calls = counting()
        assert_same_tuning(tune(**SMALL, folder=tmp_path, measure=measure), expected)
        assert len(calls) == calls_expected
    assert sorted(path.read_bytes().splitlines()) == sorted(lines)
    assert all(json.loads(line) for line in lines)


def another_measure(model, questions):
    return answer_greedily(model, questions, 1).right


@pytest.fixture(scope="module")
def kept(tune, tmp_path_factory):
    """A folder with a finished tuning."""
    folder = tmp_path_factory.mktemp("kept")
    tune(**SMALL, folder=folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rule": SEARule(merge="sum")}, "rule"),
        ({"measure": "preference"}, "measure"),
        ({"measure": another_measure}, "measure"),
        ({"max_new_tokens": 2}, "max_new_tokens"),
        ({"neutral_texts": ["Q Ada home A Oslo"]}, "data"),
        ({"measure": "preference", "rule": SEARule(spectrum="singular_values")}, "measure, rule"),
    ],
)
def test_a_folder_of_other_options_is_refused(tune, kept, changes, named):
    before = (kept / "scores.jsonl").read_bytes()
    with pytest.raises(FileFormatError, match=f"of a tuning that differs in {named}\\. Choose another folder"):
        tune(**{**SMALL, **changes}, folder=kept)
    assert (kept / "scores.jsonl").read_bytes() == before


def test_a_folder_of_other_questions_activations_or_weights_is_refused(tune, kept, organism, activations, questions):
    other = load_organism()[0]
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 0.01
    nudged = {layer: tensor.clone() for layer, tensor in activations.negative.items()}
    nudged[3][-1, -1] += 1e-3
    rows = questions.rows
    for changes, named in (
        ({"questions": questions[:-1]}, "data"),
        ({"questions": Questions((replace(rows[0], right=("Oslo",)), *rows[1:]))}, "data"),
        ({"questions": Questions(rows[::-1])}, "data"),
        ({"activations": activations.swapped()}, "data"),
        ({"activations": replace(activations, negative=nudged)}, "data"),
        ({"activations": replace(activations, site="mlp_out")}, "site"),
        ({"model": other}, "weights"),
    ):
        with pytest.raises(FileFormatError, match=f"differs in {named}\\."):
            tune(**SMALL, folder=kept, **changes)
    assert_same_tuning(tune(**SMALL, folder=kept), tune(**SMALL))


@pytest.mark.parametrize("content", ["", "hello", "[]", "5", "null", '"text"', '["a", 1]', "\n\n"])
def test_a_file_of_something_else_is_refused(tune, tmp_path, content):
    (tmp_path / "scores.jsonl").write_text(content)
    with pytest.raises(FileFormatError, match=r"scores\.jsonl does not hold the scores of a tuning.*Delete it"):
        tune(**SMALL, folder=tmp_path)
    assert (tmp_path / "scores.jsonl").read_text() == content


def test_json_of_something_else_is_refused(tune, tmp_path):
    (tmp_path / "scores.jsonl").write_text('{"format": "sea_lens.methods.tune/0", "color": "blue"}\n')
    with pytest.raises(FileFormatError, match=r"differs in color, data, format, max_new_tokens, measure"):
        tune(**SMALL, folder=tmp_path)


def test_bytes_that_are_no_text_are_refused(tune, tmp_path):
    (tmp_path / "scores.jsonl").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FileFormatError, match="does not hold the scores of a tuning"):
        tune(**SMALL, folder=tmp_path)


@pytest.mark.parametrize("line", ['["key", 5, 3, 0.1]', '["key", 1]', "{}", "", '["key", 1, 2'])
def test_lines_that_are_no_scores_are_passed_over(tune, tmp_path, line):
    expected = tune(**SMALL, folder=tmp_path)
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write(line)
    assert_same_tuning(tune(**SMALL, folder=tmp_path), expected)


@pytest.mark.parametrize("line", ["5", "null", '["key", "a", "b", 0.1]', '[["key"], 1, 2, 0.1]'])
def test_lines_of_other_types_are_passed_over(tune, tmp_path, line):
    test_lines_that_are_no_scores_are_passed_over(tune, tmp_path, line)


# --- mistakes --------------------------------------------------------------------------------------------------------

LISTS = ["explained_variances", "layers", "feature_maps", "center", "strengths"]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", [[], (), "all", 0.5, None])
def test_what_is_no_list_of_settings_is_refused(tune, without_type_checks, name, value):
    if name == "layers" and value is None:
        return
    with pytest.raises(InputError, match=f"{name} is a list of values to try"):
        tune(**{**SMALL, name: value})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"measure": "truth"}, InputError, 'measure is "answers", "preference" or a function, and \'truth\''),
        ({"layers": ["first:5"]}, InputError, "first:5 was asked for, and the model has 4 layers"),
        ({"layers": ["some"]}, InputError, "not 'some'"),
        ({"layers": [[4]]}, ModelMismatchError, r"Layers \[4\] do not exist"),
        ({"layers": [[]]}, InputError, "No layers were given"),
        ({"explained_variances": [0.5, 1.5]}, InputError, r"must lie in \(0, 1\], and 1.5 was given"),
        ({"explained_variances": [(0.5, 0.6, 0.7)]}, InputError, r"A pair \(positive, negative\) was expected"),
        ({"strengths": [float("nan")]}, InputError, "strength must be a finite number"),
        ({"neutral_texts": []}, InputError, "no text has two tokens"),
        ({"feature_maps": [torch.tanh]}, InputError, "feature map"),
        ({"batch_size": 0}, InputError, "batch_size"),
    ],
)
def test_impossible_settings_are_refused(tune, without_type_checks, changes, error, message):
    with pytest.raises(error, match=message):
        tune(**{**SMALL, **changes})


@pytest.mark.parametrize(("name", "value"), [("layers", [0, 1]), ("neutral_texts", "One text.")])
def test_a_list_of_layers_is_no_list_of_lists_and_a_text_no_list_of_texts(tune, without_type_checks, name, value):
    with pytest.raises(InputError, match=name):
        tune(**{**SMALL, name: value})


@pytest.mark.parametrize("layers", ["3", "2-3", "first:1", [0, 1]])
def test_layers_that_were_not_collected_are_refused(tune, activations, layers):
    some = {role: {layer: activations[role][layer] for layer in (1, 2)} for role in ("neutral", "positive", "negative")}
    with pytest.raises(InputError, match=r"were asked for; activations are there of \[1, 2\]"):
        tune(**{**SMALL, "activations": replace(activations, **some), "layers": ["all", layers]})


def test_settings_that_do_not_beat_the_unedited_model_are_warned_about(tune):
    with pytest.warns(SeaLensWarning, match=r"None of these 8 settings scores higher than the unedited model \(50\.0%"):
        tune(**SMALL, measure=lambda model, given: replace(answer_greedily(model, given, 1).right, successes=5, n=10))
