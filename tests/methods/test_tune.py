"""Tuning, row by row against fits, answers and KLs made by hand; on the embedded model."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import ClassVar

import pandas as pd
import pytest
import torch
from conftest import Passes
from scipy.stats import binomtest

from sea_lens import (
    ITI,
    LEACE,
    SEA,
    DamageLimits,
    MeanDifference,
    Questions,
    SeaLensWarning,
    Tanh,
    collect_activations,
    grid,
    measure_damage,
    random_editor_like,
    refit,
    tune,
)
from sea_lens.errors import BrokenModelWarning, FileFormatError, InputError, ModelMismatchError
from sea_lens.methods.halving import Race, halves, in_parts
from sea_lens.methods.measures import EASIER, NAMES
from sea_lens.methods.settings import Measured, layer_sets
from sea_lens.methods.trials import WHOLE, Reached, Trials
from sea_lens.methods.tuning import Tuning, describe_setting
from sea_lens.models.answers import answer_greedily, prefer_right
from sea_lens.models.generate import greedy_answers
from sea_lens.models.tokens import all_token_ids
from sea_lens.statistics import Proportion
from sea_lens.worlds.demo import collect
from sea_lens.worlds.load import load_organism

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.SeaLensWarning")

METHODS = [SEA(0.5), SEA(0.9, center=True)]
LAYERS = {"all": [0, 1, 2, 3], "1,3": [1, 3]}
TEXTS = ["<anyone> Q Ada home A Oslo . Q Ada pet A cat", "Q Zeno"]
SMALL = {
    "methods": METHODS,
    "layers": ["all", [1, 3]],
    "strengths": [1.0, 2.0],
    "control": 0,
    "examples": 0,
    "neutral_texts": TEXTS,
}


@pytest.fixture(scope="session")
def activations(organism):
    return collect(*organism)


@pytest.fixture(scope="session")
def questions(organism):
    world = organism[1]
    return world.questions(world.fitting[::10])


@pytest.fixture(scope="session")
def run(organism, activations, questions):
    """Tunes the embedded model, with arguments changed by a test."""

    def tuned(**changes):
        given = {"model": organism[0], "activations": activations, "questions": questions, "max_new_tokens": 1}
        return tune(**{**given, **SMALL, "progress": False, **changes})

    return tuned


@pytest.fixture(scope="session")
def tuned(run, tmp_path_factory):
    """A finished tuning and its folder."""
    folder = tmp_path_factory.mktemp("tuning")
    return run(folder=folder), folder


def counting(fails_after=None):
    """A measure that costs nothing, and how often it was called; killed after so many calls."""
    calls = []

    def measure(model, questions):
        if len(calls) == fails_after:
            raise KeyboardInterrupt
        with torch.no_grad():
            calls.append(model(torch.tensor([[1, 8, 9, 10]]), use_cache=False)[0, -1])
        return Proportion(int(calls[-1].argmax()) % 11, 10 + 1)

    return measure, calls


def assert_same(found, expected):
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    assert found.unedited == expected.unedited
    for one, other in zip(found.editors, expected.editors, strict=True):
        assert (one.fingerprint, one.card) == (other.fingerprint, other.card)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_there_is_a_row_for_every_combination_with_the_editor_of_a_fit_of_its_own(tuned, activations):
    tuning, _ = tuned
    setting, found = (
        ["method", "explained_variance", "center", "layers", "strength"],
        ["score", "low", "high", "n", "kl", "perplexity_ratio", "allowed", "editor"],
    )
    assert list(tuning.table.columns) == [*setting, "ranks", *found]
    expected = product([("sea", 0.5, False), ("sea", 0.9, True)], LAYERS, [1.0, 2.0])
    rows = tuning.table[setting].itertuples(index=False, name=None)
    assert set(rows) == {(*method, layers, strength) for method, layers, strength in expected}
    for row, editor in zip(tuning.table.itertuples(), tuning.editors, strict=True):
        by_hand = SEA(row.explained_variance, center=row.center).fit(activations).at_layers(LAYERS[row.layers])
        assert editor.fingerprint == by_hand.scaled(row.strength).fingerprint
        reports = [by_hand.card.reports[site] for site in editor.sites]
        assert row.ranks == "  ".join(f"{one['rank_positive']}+{one['rank_negative']}" for one in reports)


def test_scores_intervals_and_kls_are_those_of_each_editor(tuned, organism, questions):
    (tuning, _), model = tuned, organism[0]
    tokens = torch.tensor([model.tokenizer(question.prompt)["input_ids"] for question in questions])  # of one length
    neutral = [torch.tensor([ids]) for ids in all_token_ids(model, TEXTS)]
    assert tuning.unedited == answer_greedily(model, questions, max_new_tokens=1).right
    for row, editor in zip(tuning.table.itertuples(), tuning.editors, strict=True):
        with editor.attached(model):
            assert answer_greedily(model, questions, max_new_tokens=1).right.share == row.score
        interval = binomtest(round(row.score * len(questions)), len(questions)).proportion_ci(0.95, method="wilson")
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        kinds = []
        for batches in ([tokens], neutral):
            kls = []
            for ids in batches:
                p, q = (
                    model.run_with_hooks(ids, fwd_hooks=hooks, use_cache=False)[:, :-1]
                    .detach()
                    .double()
                    .log_softmax(-1)
                    for hooks in ([], editor.fwd_hooks())
                )
                kls.append((p.exp() * (p - q)).sum(-1).flatten())
            kinds.append(torch.cat(kls).mean().item())
        assert row.kl == pytest.approx(max(kinds), rel=1e-3, abs=1e-7)
    assert tuning.table["score"].nunique() > 3


def test_rows_are_ordered_by_score_then_kl_then_ranks(tuned, run):
    tuning, _ = tuned
    order = list(zip(~tuning.table["allowed"], -tuning.table["score"], tuning.table["kl"], strict=True))
    assert order == sorted(order)
    within = (tuning.table["kl"] <= 1) & (tuning.table["perplexity_ratio"] <= math.e)
    assert tuning.table["allowed"].tolist() == within.tolist()
    assert tuning.best.fingerprint == tuning.editors[0].fingerprint
    tied = run(methods=grid(SEA, explained_variance=[0.99, 0.5]), layers=["all", "first:1"], strengths=[0.0])
    assert set(tied.table["kl"]) == {0.0}
    assert set(tied.table["editor"]) == {"unedited"}
    sizes = [sum(edit.rank for edit in editor.edits.values()) for editor in tied.editors]
    assert sizes == sorted(sizes)


def test_any_methods_are_tuned_together(run, activations, organism):
    methods = [SEA(0.9, feature_map=Tanh(1.0)), MeanDifference(), MeanDifference(normalize=True), LEACE()]
    tuning = run(methods=methods, layers=["all", "last:2"], strengths=[1.0])
    assert len(tuning.table) == 8
    assert list(tuning.table.columns[:4]) == ["method", "explained_variance", "feature_map", "normalize"]
    assert {row.method: row.feature_map for row in tuning.table.itertuples()}["sea"] == "Tanh(scale=1.0)"
    for row, editor in zip(tuning.table.itertuples(), tuning.editors, strict=True):
        assert editor.card.method == row.method
        words = describe_setting(tuning.table.loc[row.Index])
        assert words.startswith(f"{row.method}, ")
        assert f"layers {row.layers}, strength 1" in words
        assert ("normalize" in words) == (row.method == "mean-difference")
    assert (tuning.table["clamped"] > 0).sum() == 2
    with tuning.best.attached(organism[0]):
        pass_ = organism[0](torch.tensor([[1, 8, 9, 10]]), use_cache=False)
    assert pass_.isfinite().all()
    assert refit(tuning.best, activations).fingerprint == tuning.best.fingerprint


def test_methods_that_choose_their_sites_have_rows_where_they_edit(organism, questions):
    model, world = organism
    rows = world.demonstrations()[::4].with_neutral_answers(model, max_new_tokens=1, progress=False)
    heads = collect_activations(model, rows, site="attn.hook_z", progress=False)
    fitted = ITI(n_heads=2).fit(heads)
    tuning = tune(
        model, heads, questions, methods=[ITI(n_heads=2, alpha=1.0)], layers=["all", [0], [1], [2], [3]], progress=False,
        max_new_tokens=1, measure=counting()[0],
    )  # fmt: skip
    assert set(tuning.table["layers"]) == {"all", *map(str, fitted.layers)}


@pytest.mark.parametrize(("n_layers", "parts"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (32, [8, 16, 24])])
def test_all_layers_and_quarters_from_either_end_are_tried_by_default(n_layers, parts):
    expected = {"all": list(range(n_layers))}
    expected |= {f"first:{n}": list(range(n)) for n in parts}
    expected |= {f"last:{n}": list(range(n_layers - n, n_layers)) for n in parts}
    assert layer_sets(None, range(n_layers), n_layers) == expected


def test_sides_of_the_model_mean_the_layers_there_are(run, activations):
    some = activations.at_sites([1, 2])
    found = run(activations=some, methods=[SEA(0.5)], layers=None, strengths=[1.0], measure=counting()[0])
    chosen = dict(zip(found.table["layers"], (editor.layers for editor in found.editors), strict=True))
    assert chosen == {"all": [1, 2], "first:2": [1], "first:3": [1, 2], "last:2": [2], "last:3": [1, 2]}
    for layers in ("3", "2-3", [0, 1]):
        with pytest.raises(InputError, match=r"were asked for; activations are there of \[1, 2\]"):
            run(activations=some, layers=[layers])


# --- what it is measured by ------------------------------------------------------------------------------------------


def test_a_measure_of_your_own_sees_every_editor_once(run, activations):
    measure, calls = counting()
    layers = ["all", "first:4", "0-3", "first:2", [0, 1]]
    found = run(methods=[SEA(0.5), SEA(0.50001), SEA(0.9)], layers=layers, strengths=[1.0], measure=measure)
    keys = {editor.fingerprint for editor in found.editors}
    assert len(found.table) == 15
    assert len(keys) == found.table["editor"].nunique() == len(calls) - 1 == 4
    assert len({tuple(row.tolist()) for row in calls}) == 5  # the unedited model's among them


def test_preference_and_neutral_texts(run, questions, organism):
    texts = ["Q Ada home A Oslo", "Q Zeno"]
    found = run(methods=METHODS[:1], measure="preference", neutral_texts=texts, layers=["all"])
    assert found.unedited == prefer_right(organism[0], questions).right
    with found.best.attached(organism[0]):
        assert prefer_right(organism[0], questions).right.share == found.table["score"][0]
    assert found.table["kl"][0] != run(methods=METHODS[:1], layers=["all"], measure=counting()[0]).table["kl"][0]


def test_warnings_say_what_no_setting_can_do(run, questions):
    with pytest.warns(
        SeaLensWarning,
        match=r"None of 7 settings within a KL of 1 scores higher than the unedited model \(50\.0%",
    ):
        run(measure=lambda model, given: Proportion(5, 10))
    n, prompts = len(questions), [one.prompt for one in questions]
    other = Questions.from_lists(prompts, [["no such answer"]] * n, [["x"]] * n)
    with pytest.raises(
        InputError, match=f"none of the {n} questions right by measure='answers'.*Take measure='rouge' or"
    ):
        run(questions=other)


@pytest.mark.parametrize("measure", NAMES)
def test_a_measure_by_which_nothing_can_be_chosen_is_refused_and_another_is_named(run, organism, questions, measure):
    prompts = [one.prompt for one in questions.rows[:4]]
    never = Questions.from_lists(prompts, [["Oslo"]] * 4, [["Oslo"]] * 4)  # nothing is likelier, or nearer, than itself
    with Passes(organism[0]) as passes, pytest.raises(InputError, match="none of the 4 questions right") as raised:
        run(questions=never, measure=measure)
    assert any(repr(one) in str(raised.value) for one in EASIER[measure])
    assert passes.n < 20  # before any fit is measured
    said = answer_greedily(organism[0], never, 1).table["answer"]
    always = Questions.from_lists(prompts, [[one] for one in said], [["no such answer of that many words"]] * 4)
    with pytest.raises(InputError, match=f"all 4 questions right by measure='{measure}'.*harder questions"):
        run(questions=always, measure=measure)


@pytest.mark.parametrize("measure", ["rouge", "mc1", "preference", "preference_per_token"])
def test_measures_that_compare_need_wrong_answers(run, questions, measure):
    bare = Questions(tuple(replace(one, wrong=()) for one in questions))
    with pytest.raises(InputError, match="have no wrong answer to compare with"):
        run(questions=bare, measure=measure)


# --- damage comes first ----------------------------------------------------------------------------------------------


def test_an_edit_that_wins_by_destroying_the_model_is_shown_and_never_best(run, organism, questions):
    """The highest score of all is that of a broken model here: everything is equally likely under it, myths too."""
    model = organism[0]

    def flatters(model, asked):  # the less the model knows, the better
        tokens = torch.tensor([model.tokenizer(asked[0].prompt)["input_ids"]])
        with torch.no_grad():
            entropy = torch.distributions.Categorical(logits=model(tokens, use_cache=False)[0]).entropy().mean()
        return Proportion(min(100, int(20 * entropy)), 100)

    strengths = [0.1, 1.0, 30.0]
    free = run(measure=flatters, strengths=strengths, max_kl=None)
    limited = run(measure=flatters, strengths=strengths)
    worst = free.table.iloc[0]
    assert worst["kl"] > 1
    assert free.table["allowed"].all()
    (row,) = (number for number, key in enumerate(limited.table["editor"]) if key == worst["editor"])
    assert row > 0
    assert limited.table.at[row, "score"] == worst["score"] == limited.table["score"].max()
    assert not limited.table.at[row, "allowed"]
    chosen = limited.table.iloc[0]
    assert chosen["kl"] <= 1
    assert limited.damage.kl == pytest.approx(chosen["kl"], rel=1e-6)
    assert not limited.damage.is_broken
    prompts = [one.prompt for one in questions]
    assert measure_damage(model, prompts, limited.best, texts=TEXTS, examples=0).kl == pytest.approx(
        chosen["kl"], rel=1e-4
    )
    assert f"{len(limited.table) - limited.n_allowed} past the limit of damage" in repr(limited)


def test_where_every_setting_breaks_the_model_none_is_best_and_it_says_so(run, tmp_path):
    with pytest.warns(BrokenModelWarning, match=r"No setting is chosen: all 4 settings break the model \(limit 0\.001"):
        found = run(strengths=[2.0], max_kl=0.001)
    assert found.damage is None
    assert found.controls.empty
    with pytest.raises(InputError, match=r"There is no best setting: .*Try smaller strengths"):
        _ = found.best
    assert "none is chosen" in repr(found)
    found.save(tmp_path)
    assert Tuning.load(tmp_path).n_allowed == 0


def test_the_best_is_shown_beside_random_editors_and_with_its_answers(run, organism, questions, tmp_path):
    model = organism[0]
    found = run(control=2, examples=3, seed=5, folder=tmp_path / "scores")
    assert found.controls.index.tolist() == ["random 5", "random 6"]
    for number, row in zip((5, 6), found.controls.itertuples(), strict=True):
        with random_editor_like(found.best, number).attached(model):
            assert answer_greedily(model, questions, 1).right.share == row.score
        assert row.low <= row.score <= row.high
        assert row.kl > 0
    examples = found.damage.examples
    assert len(examples) == 3
    with found.best.attached(model):
        assert (
            greedy_answers(model, examples["prompt"].tolist(), 1, stop=(), progress=False)
            == examples["edited"].tolist()
        )
    assert "2 random editors like the best: score" in repr(found)
    with Passes(model) as passes:
        again = run(control=2, seed=5, folder=tmp_path / "scores")
    pd.testing.assert_frame_equal(again.controls, found.controls)
    assert passes.n < 12  # the unedited model's and the best one's damage; no score is measured again
    found.save(tmp_path)
    loaded = Tuning.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.controls, found.controls)
    assert loaded.damage.kl == found.damage.kl


# --- halving ---------------------------------------------------------------------------------------------------------

GRID = {"methods": [SEA(0.5), SEA(0.9), SEA(0.5, center=True)], "strengths": [1.0, 4.0]}
GRID |= {"layers": ["all", "first:3", "last:2", [1]], "measure": "preference", "neutral_texts": [*TEXTS * 2, "Q Bo"]}
MEASURED = ["score", "low", "high", "n", "kl", "perplexity_ratio", "allowed"]


@pytest.mark.usefixtures("without_type_checks")
def test_halving_has_the_winner_and_final_rows_of_the_whole_tuning(run, organism, questions, tmp_path):
    model = organism[0]
    with Passes(model) as passes:
        tunings = [run(halving=False, **GRID)]
        n_whole = passes.tokens
        tunings.append(run(halving=True, folder=tmp_path, **GRID))
    assert passes.tokens - n_whole < 0.8 * n_whole
    whole, halved = (tuning.table.set_index([*tuning.table.columns[:6], "editor"]) for tuning in tunings)
    assert len(whole) == len(halved) == 24
    assert set(whole["n"]) == {24}
    pd.testing.assert_series_equal(halved.iloc[0], whole.iloc[0])
    final = halved["n"] == 24
    assert final.sum() >= 8
    pd.testing.assert_frame_equal(halved.loc[final, MEASURED], whole.loc[halved.index[final], MEASURED])
    assert halved["n"].isin([0, 6, 12, 24]).all()
    assert not whole.loc[halved.index[halved["n"] == 0], "allowed"].any()  # they are ruled out for certain
    allowed = halved[halved["allowed"]]
    assert allowed["n"].is_monotonic_decreasing
    assert allowed["score"][allowed["n"] == 24].is_monotonic_decreasing
    stopped = tunings[1].table[tunings[1].table["n"] == 6].iloc[0]
    with tunings[1].editors[int(stopped.name)].attached(model):
        found = prefer_right(model, in_parts(questions, True)[0]).right
    assert (found.share, *found.interval(), found.n) == tuple(stopped[["score", "low", "high", "n"]])
    assert "stopped after 6 questions" in repr(tunings[1])
    assert "stopped after 6 questions" in tunings[1]._repr_html_()
    assert "stopped" not in repr(tunings[0])
    lines = (tmp_path / "scores.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "scores.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))  # what a kill leaves
    assert_same(run(halving=True, folder=tmp_path, **GRID), tunings[1])


class Numbers(Trials):
    """Numbers that are known: setting k is right on k of 100 questions, and the whole damage of the best 20 is high."""

    asked: ClassVar = Counter()

    def __init__(self):
        pass

    def look(self, keys, look):
        pass

    def ask(self, keys, n_parts):
        self.asked.update(keys)

    def is_past(self, key):
        return key == "99"

    def of(self, key, reached):
        return Measured(int(key), 100, 2.0 if reached.look == WHOLE and int(key) >= 80 else 0.5, 1.0)


def test_where_no_finalist_may_be_chosen_the_next_best_go_on():
    keys = [str(number) for number in range(40, 100)]
    race = Race(Numbers(), [1, 2, 3], dict.fromkeys(keys, 1), DamageLimits())
    race.run(keys)
    finished = [key for key in keys if race.is_finished(key)]
    assert finished == keys[-16:-1]  # a quarter of those that were asked
    assert "99" not in Numbers.asked  # it is ruled out by its damage, and asked nothing
    race.go_on()
    assert [key for key in keys if race.is_finished(key)] == keys[-24:-1]
    assert race.reached["40"] == Reached(1)
    assert race.reached["70"] == Reached(2)


@pytest.mark.usefixtures("without_type_checks")
def test_answers_are_halved_too(run):
    found = run(halving=True, **{**GRID, "layers": ["all", [0], [1]], "measure": "answers"})
    assert set(found.table["n"]) > {24}
    assert found.table["n"][0] == 24


@pytest.mark.parametrize("n", [1, 3, 4, 15, 60])
def test_parts_hold_every_question_once_and_double(n):
    questions = Questions.from_lists([f"Q{k}" for k in range(n)], [["a"]] * n, [["b"]] * n)
    parts = in_parts(questions, halved=True)
    assert sorted(one.prompt for part in parts for one in part) == sorted(one.prompt for one in questions)
    sizes = list(map(len, parts))
    assert sizes == ([n] if n < 4 else [-(-n // 4), -(-n // 2) - -(-n // 4), n // 2])
    assert in_parts(questions, halved=False) == [questions]
    assert (halves(None, 64, 48), halves(None, 63, 48), halves(None, 64, 47)) == (True, False, False)


# --- going on, and files ---------------------------------------------------------------------------------------------


def test_a_killed_tuning_goes_on_and_a_finished_one_is_read_and_grows(tuned, run, organism, tmp_path):
    tuning, folder = tuned
    lines = (folder / "scores.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 8  # the unedited model's score, and damage and score of every editor
    (tmp_path / "scores.json").write_bytes((folder / "scores.json").read_bytes())
    for kept, cut in ((0, b""), (3, lines[3][:-5]), (12, lines[12][:-5]), (17, b"")):  # what a kill leaves
        (tmp_path / "scores.jsonl").write_bytes(b"".join(lines[:kept]) + cut)
        assert_same(run(folder=tmp_path), tuning)
        rows = [line for line in (tmp_path / "scores.jsonl").read_bytes().splitlines(keepends=True) if line in lines]
        assert sorted(rows) == sorted(lines)
    before = len((tmp_path / "scores.jsonl").read_bytes().splitlines())
    more = run(folder=tmp_path, strengths=[3.0, 2.0, 1.0], methods=[*METHODS, MeanDifference()], layers=["all"])
    assert len((tmp_path / "scores.jsonl").read_bytes().splitlines()) == before + 2 * (2 + 3)
    assert len(more.table) == 9
    assert not any(point.fwd_hooks for point in organism[0].hook_dict.values())


def test_a_kill_leaves_no_hooks_and_loses_one_editor_at_most(run, organism, tmp_path):
    killed, before = counting(fails_after=4)
    with pytest.raises(KeyboardInterrupt):
        run(measure=killed, measure_name="argmax", folder=tmp_path)
    assert not any(point.fwd_hooks for point in organism[0].hook_dict.values())
    measure, after = counting()
    assert_same(run(measure=measure, measure_name="argmax", folder=tmp_path), run(measure=counting()[0]))
    assert (len(before), len(after)) == (4, 5)


def another_measure(model, questions):
    return Proportion(1, 2)


def test_folders_of_another_measure_model_or_data_are_refused(tuned, run, questions, organism):
    _, folder = tuned
    other = load_organism()[0]
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 0.01
    before = (folder / "scores.jsonl").read_bytes()
    for change, named in (
        ({"measure": "preference"}, "measure"),
        ({"measure": another_measure}, "measure"),
        ({"measure": lambda model, given: Proportion(1, 2), "measure_name": "mine"}, "measure"),
        ({"max_new_tokens": 2}, "max_new_tokens"),
        ({"neutral_texts": ["Q Ada home A Oslo"]}, "texts"),
        ({"questions": Questions((replace(questions[0], right=("Oslo",)), *questions.rows[1:]))}, "questions"),
        ({"model": other}, "weights"),
    ):
        with pytest.raises(FileFormatError, match=f"differs in {named}\\."):
            run(folder=folder, **change)
    with pytest.raises(InputError, match="give measure_name"):
        run(folder=folder, measure=lambda model, given: Proportion(1, 2))
    assert (folder / "scores.jsonl").read_bytes() == before
    # Other activations are other editors, which are measured anew.
    measured = [json.loads(line)[0] for line in before.splitlines()]
    assert set(run(methods=METHODS[:1], layers=["all"]).table["editor"]) <= set(measured)


def test_a_tuning_is_saved_loaded_and_shown(tuned, tmp_path):
    tuning, _ = tuned
    tuning.save(tmp_path)
    assert_same(Tuning.load(tmp_path), tuning)
    first = tuning.table.iloc[0]
    head = f"Tuning(8 settings, 1 past the limit of damage; unedited {tuning.unedited}; best {first['score']:.1%} "
    assert repr(tuning).startswith(head)
    assert describe_setting(first) in repr(tuning)
    assert "<table" in tuning._repr_html_()
    (tmp_path / "tuning-editors" / "views.json").unlink()
    with pytest.raises(FileFormatError, match=r"views\.json"):
        Tuning.load(tmp_path)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *(
            ({name: []}, InputError, f"{name} is a list of values to try")
            for name in ("methods", "layers", "strengths")
        ),
        ({"layers": "all"}, InputError, "layers is a list of values to try"),
        ({"layers": [0, 1]}, InputError, "layers is a list of sets"),
        (
            {"measure": "truth"},
            InputError,
            "measure must be 'answers' or 'exact' or 'rouge' or 'mc1' .* or a function, and 'truth'",
        ),
        ({"max_kl": 0}, InputError, "max_kl is a number of nats per token above zero"),
        ({"control": -1}, InputError, "control and examples are at least 0"),
        ({"layers": ["first:5"]}, InputError, "5 layers were asked for"),
        ({"layers": [[4]]}, ModelMismatchError, r"Layers \[4\] do not exist"),
        ({"strengths": [float("nan")]}, InputError, "strengths must be a list of finite numbers"),
        ({"neutral_texts": "One text."}, InputError, "neutral_texts is a list of texts"),
        ({"batch_size": 0}, InputError, "batch_size"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(run, without_type_checks, changes, error, message):
    with pytest.raises(error, match=message):
        run(**changes)


def test_a_grid_is_every_combination_the_last_varying_fastest():
    assert grid(SEA, center=[False, True], explained_variance=[0.5, 0.9]) == [
        SEA(0.5),
        SEA(0.9),
        SEA(0.5, center=True),
        SEA(0.9, center=True),
    ]
    for wrong in ([], "all"):
        with pytest.raises(InputError, match="center is a list of values to try"):
            grid(SEA, center=wrong)
