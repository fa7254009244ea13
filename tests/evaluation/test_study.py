"""A study says what is true of planted cases, and every number on its page is one that can be measured otherwise."""

import re
from dataclasses import replace
from random import Random

import pytest
import torch

import sea_lens as sl
from sea_lens.cache import Store
from sea_lens.errors import FileFormatError, InputError
from sea_lens.evaluation.apart import check_apart
from sea_lens.evaluation.sides import sides_apart
from sea_lens.evaluation.study.clock import Clock
from sea_lens.evaluation.study.confirm import Beside, table_of
from sea_lens.evaluation.study.controls import SAME_COST, SAME_LENGTH, of_costs, random_pair
from sea_lens.evaluation.study.going_on import going_on, keep_finished
from sea_lens.evaluation.study.plans import STUDIED, plans, studied_layers
from sea_lens.evaluation.study.repeats import but_of, repeats_of, told_of_repeats
from sea_lens.evaluation.study.report import page_of
from sea_lens.evaluation.study.result import TEXTS, verdict_of, where_of
from sea_lens.evaluation.study.thin import ENOUGH_RANDOM, headed, more_for, thin_of
from sea_lens.evaluation.study.told import told_of
from sea_lens.models.sites import named_layers

GOOD = {"methods": [sl.SEA(0.5, center=True)], "layers": ["2", "first:3"], "control": 2, "shuffles": 1}
QUICK = {"trials": 2, "progress": False}


@pytest.fixture(scope="module")
def parts():
    model, world = sl.load_organism()
    return model, world.demonstrations()[::6], world.questions()[::8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def works(parts, folder):
    return sl.study(*parts, **GOOD, **QUICK, folder=folder)


def test_an_edit_that_works_is_said_to_work_with_numbers_that_hold(parts, works):
    model, _, questions = parts
    held_out = questions.held_out
    with works.editor.attached(model):
        edited = sl.prefer_right(model, held_out, per_token=True)
    plain = sl.prefer_right(model, held_out, per_token=True)
    assert works.verdict == "works"
    told = "works, as far as two random directions tell"
    assert works.summary.startswith(f"{told}: {edited.right.successes} of {edited.right.n} [")
    assert f"against {plain.right.successes} of {plain.right.n} unedited" in works.summary
    assert works.table.at["edited", "right"] == edited.right.successes
    assert works.table.at["edited", "margin"] == pytest.approx(edited.table["margin"].mean(), abs=1e-6)
    assert (works.table.at["edited", "share_low"], works.table.at["edited", "share_high"]) == edited.right.interval()
    for kind in (SAME_LENGTH, SAME_COST):
        assert works.table.loc[kind, "share_high"] < works.table.at["edited", "share"]
    damage = sl.measure_damage(model, [row.prompt for row in held_out], works.editor, examples=0)
    places = [[row.prompt for row in held_out].index(prompt) for prompt in works.examples["prompt"]]
    n = min(16, len(held_out))
    assert places == [number * len(held_out) // n for number in range(n)]  # not the first, which may be the easy ones
    assert works.table.at["edited", "kl"] == pytest.approx(damage.kl, rel=1e-4)
    assert f"costs {damage.kl:.2g} nats per token" in works.summary
    costs = damage.table["kl"]
    assert works.summary.endswith(
        f"costs {costs.max():.2g} nats per token {TEXTS[costs.idxmax()]} ({costs.min():.2g} {TEXTS[costs.idxmin()]})."
    )
    other = damage.table.assign(kl=costs.to_numpy()[::-1])
    assert where_of(replace(damage, table=other)).startswith(f" {TEXTS[costs.idxmin()]} (")


@pytest.mark.parametrize(
    ("random", "shuffles", "thin"),
    [
        (5, 2, ""),
        (3, 1, ""),
        (2, 1, "as far as two random directions tell"),
        (1, 1, "as far as one random direction tells"),
        (1, 0, "as far as one random direction tells and with no shuffled refit beside it"),
        (0, 1, "with no random direction beside it"),
        (5, 0, "with no shuffled refit beside it"),
        (0, 0, "with no random direction and no shuffled refit beside it"),
    ],
)
def test_a_verdict_says_how_thin_its_controls_are(works, random, shuffles, thin):
    facts = {**works.facts, "control": random, "control_asked": 5, "shuffles": shuffles}
    assert thin_of("works", facts) == thin
    assert headed("works", thin, "so.") == (f"works, {thin}: so." if thin else "works: so.")
    found = replace(works, facts=facts, thin=thin, summary=headed("works", thin, "so."))
    more = " ".join(found.told)
    assert ("give it more minutes" in more) == (random < ENOUGH_RANDOM)
    odds = {1: "in one of two cases", 2: "in one of three cases"}
    assert (odds.get(random, "") in more, "cases" in more) == (True, random in odds)
    assert ("ask for shuffles of 1 or more" in more) == (shuffles == 0)
    page = page_of(found)
    assert f"<h1>Works{', ' if thin else ''}{thin}</h1>" in page
    assert ('class="verdict works thin"' in page, 'class="verdict works"' in page) == (bool(thin), not thin)


def test_that_nothing_was_found_says_of_how_little():
    facts = {"trials": 1, "planned": 192, "trials_asked": None, "minutes": 1.0, "seconds": 60.0}
    assert thin_of("no effect", facts) == "as far as one of 192 settings tells"
    assert thin_of("breaks the model", {**facts, "trials": 8}) == "as far as 8 of 192 settings tell"
    assert "give it more minutes" in more_for("no effect", facts)[0]
    assert "ask for more trials" in more_for("no effect", {**facts, "trials_asked": 1})[0]
    for enough in ({"trials": 9}, {"planned": 1}):  # all that was planned is no less than was asked for
        assert thin_of("no effect", {**facts, **enough}) == ""
        assert more_for("no effect", {**facts, **enough}) == []


def test_how_much_answers_repeat_themselves_is_counted_where_they_are_made(parts, works):
    model, *_ = parts
    said = {"unedited": ["A B A B A B", "A B C", ""], "edited": ["A A A A A A", "A B A B", "A A"]}
    per_row = works.evaluation.per_row.head(3).assign(**{f"answer {side}": said[side] for side in said})
    of_all = repeats_of(model, replace(works.evaluation, per_row=per_row), works.examples, 0)
    pairs = {  # counted by hand, of the tokens
        side: [(len(two) - len(set(two))) / len(two) if two else 0.0 for two in map(pairs_of(model), texts)]
        for side, texts in said.items()
    }
    assert of_all["n"] == 3
    for side, shares in pairs.items():
        assert of_all[side] == pytest.approx(sum(shares) / 3)
    assert of_all["change"] == pytest.approx(of_all["edited"] - of_all["unedited"])
    assert of_all["low"] < of_all["change"] < of_all["high"]
    assert works.repetition["n"] == len(works.examples)
    assert works.repetition["change"] == pytest.approx(works.evaluation.damage.repetition)
    beside = Beside(works.evaluation, works.controls, 0.2, 0.001, 2, 1)
    loops = {"n": 6, "unedited": 0.02, "edited": 0.31, "change": 0.29, "low": 0.12, "high": 0.46}
    verdict, said_of, reasons = verdict_of(beside, table_of(beside), loops)
    assert verdict == "works"
    assert said_of.endswith("; its answers repeat themselves more (2% -> 31% of token pairs).")
    told = "31.0% of the token pairs of an edited answer stood in it before, 2.0% of an unedited one "
    told += "(+29.0% [+12.0%, +46.0%], 6"
    assert reasons[-1].startswith(f"Repetition rises: {told} greedy answers")
    assert told in page_of(replace(works, repetition=loops))
    heading = "works, but repeats itself, as far as two random directions tell"
    assert headed(verdict, works.thin, said_of, but_of(verdict, loops)).startswith(f"{heading}: 15 of 15")
    page = page_of(replace(works, repetition=loops, summary=f"{heading}: so.", thin=""))
    assert '<section class="verdict works but">' in page
    assert "<h1>Works, but repeats itself, as far as" in page
    assert [but_of(each, loops) for each in ("no effect", "breaks the model")] == ["", ""]
    trifle = {**loops, "unedited": 0.05, "edited": 0.052, "change": 0.002, "low": 0.001, "high": 0.003}
    assert but_of("works", trifle) == ""
    few = {**loops, "edited": 0.42, "change": 0.4, "low": -0.02}
    assert but_of("works", few) == "but may repeat itself"
    _, said_of, _ = verdict_of(beside, table_of(beside), few)
    assert said_of.endswith(
        "; its answers repeat themselves more (2% -> 42% of token pairs of 6 answers, which may be chance)."
    )
    loops = {**loops, "edited": 0.12, "change": 0.1}
    _, said_of, reasons = verdict_of(beside, table_of(beside), {**loops, "low": -0.01})
    assert but_of("works", {**loops, "low": -0.01}) == but_of("works", {}) == ""
    assert "repeat" not in said_of
    assert reasons[-1].startswith("Repetition: 12.0% of the token pairs")
    none = {"n": 6, **dict.fromkeys(("unedited", "edited", "change", "low", "high"), 0.0)}
    assert told_of_repeats(none) == "Repetition: in 6 greedy answers of either model no token pair comes twice."


def pairs_of(model):
    return lambda text: list(
        zip(*(model.to_tokens(text, prepend_bos=True)[0].tolist()[n:] for n in (0, 1)), strict=False)
    )


def test_a_mirror_image_takes_the_place_of_its_shuffle(works):
    assert works.evaluation.controls.shape[0] == GOOD["control"]
    row = works.table.loc["shuffled refits"]
    assert row["share_low"] <= row["share"] <= row["share_high"]


def test_a_direction_that_costs_more_is_shortened_until_it_costs_the_same(parts):
    model, _, questions = parts
    # Along the direction that the unembedding hardly reads a step costs little, and elsewhere one of its length costs much.
    unread = torch.linalg.svd(model.W_U.detach().float())[0][:, -1]
    site = sl.Site(model.cfg.n_layers - 1)
    editor = sl.Editor({site: sl.AffineEdit.of_shift(4 * unread)})
    meter = sl.DamageMeter.of(model, [row.prompt for row in questions])
    own = meter.measure(editor)
    longer, shorter = random_pair(editor, own, 0, 0, meter)
    assert longer.damage.kl > 4 * own.kl
    assert shorter.factor < 0.6
    assert shorter.damage.kl == pytest.approx(own.kl, rel=0.15)
    again = sl.measure_damage(model, [row.prompt for row in questions], shorter.editor, examples=0)
    assert again.kl == pytest.approx(shorter.damage.kl, rel=1e-4)


def test_controls_of_one_cost_cost_what_the_edit_does(works):
    kinds = works.controls.groupby("control")
    assert kinds.size().to_dict() == {SAME_LENGTH: 2, SAME_COST: 2, "shuffled refits": 2}
    own = works.table.at["edited", "kl"]  # on all texts
    assert works.controls.loc[works.controls["control"] == SAME_COST, "kl"].between(0.6 * own, 1.7 * own).all()
    assert works.table.at[SAME_COST, "kl"] == pytest.approx(kinds["kl"].mean()[SAME_COST])
    assert sum(line.startswith("Random editors of the same") for line in works.reasons) == 2


def test_the_stricter_control_decides(works):
    def verdict(kind, right, is_broken=False):
        controls = works.controls.copy()
        controls.loc[controls["control"] == kind, ["right", "is_broken"]] = right, is_broken
        beside = Beside(works.evaluation, controls, 0.2, 0.001, 2, 1)
        return verdict_of(beside, table_of(beside))[:2]

    best = int(works.table.at["edited", "right"])
    for kind, words in {SAME_LENGTH: "of the same length", SAME_COST: "of the same cost"}.items():
        assert verdict(kind, best - 1)[0] == "works"
        said, summary = verdict(kind, best)
        assert said == "no effect"
        assert f"random editors {words} do as much" in summary
    assert "though only such as break the model" in verdict(SAME_LENGTH, best, True)[1]
    told = of_costs(works.controls.assign(kl=9.0, is_broken=True), 0.3)
    assert "far more than the edit" in told[0]
    assert "2 of 2 break the model" in told[0]
    assert "2 of 2 could not be brought near" in told[1]


def test_what_was_cut_is_told_and_time_is_kept_for_controls():
    facts = {"trials": 10, "planned": 160, "trials_asked": None, "minutes": 8.0, "seconds": 1140.0, "resumed": 3}
    facts |= {
        "control": 1,
        "control_asked": 5,
        "n_held_out": 24,
        "n_held_out_given": 200,
        "shuffles": 2,
        "shuffles_asked": 2,
    }
    told = " ".join(told_of(facts))
    assert "10 of 160 planned settings, as many as there was time for in 8 minutes" in told
    assert "used 24 of 200 held-out questions, 1 of 5 random directions." in told
    assert "took 19.0 minutes, where 8 were asked for" in told
    assert "3 of its settings were tried there" in told
    assert told_of({**facts, "trials": 160, "seconds": 1.0, "resumed": 0, "control": 5, "n_held_out": 200}) == []
    clock = Clock(0.0, 100.0, None, 1.0, 5, 2, look=0.5, took=[9.0, 2.0], made=2)
    assert clock.confirming(1, 1) < clock.kept_back <= 50.0
    assert not Clock(0.0, 100.0, 3, 1.0, 5, 2, made=2).is_over(fits=True)  # trials are counted, and time is not
    written = {texts: replace(clock, texts=texts).answers for texts in (0.5, 2.4, 2.6)}
    # Those of both models take a tenth of the time at most; a slow model writes those that are shown.
    assert written == {0.5: 16, 2.4: 16, 2.6: 6}
    assert replace(clock, seconds=None, texts=9.0).answers == 16
    assert clock.is_over(fits=False)  # time ran out long ago


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_demonstrations_are_said_to_be_few(parts, n):
    generator = torch.Generator().manual_seed(0)
    sides = {role: {0: torch.randn(n, 16, generator=generator)} for role in SIDES}
    found = sides_apart([sl.Activations.from_tensors(**sides)])
    assert not found.is_tested
    assert found.told.startswith(f"{n} demonstration{'s are' if n > 1 else ' is'} too few to test")
    assert told_of({"apart": found.told, "sides_tested": found.is_tested}) == [f"{found.told}."]


def test_the_best_trial_within_the_limit_is_chosen(works):
    assert works.trials["kl"].max() <= 0.5
    best = works.trials.loc[works.trials["chosen"]]
    assert best["score"].tolist() == [works.trials["score"].max()]
    assert best["layers"].tolist() == ["first:3"]


def test_a_run_goes_on_where_it_stopped_and_gives_the_same(parts, works, folder, capsys):
    again = sl.study(*parts, **GOOD, **{**QUICK, "progress": True}, folder=folder)
    told = " ".join(capsys.readouterr().err.split())
    planned = works.facts["planned"]
    assert told.startswith(f"note: Everything of this study is in {folder} (2 of {planned} planned settings are tried")
    assert again.summary == works.summary
    assert again.trials.equals(works.trials)
    kept = (folder / "study.jsonl").read_text().splitlines()
    assert (
        len(kept) == 5
    )  # two trials, a shuffled fit and its mirror image, and that it is finished: none was made anew
    with pytest.raises(FileFormatError, match="differs in max_kl"):
        sl.study(*parts, **GOOD, **QUICK, max_kl=0.4, folder=folder)


def test_what_a_folder_holds_is_said_at_the_start(tmp_path):
    planned = plans(("mean",), STUDIED[:2], ["1", "2"], (0.8, 0.3), ())
    store = Store(tmp_path, "study", {})

    def told(trials, control=5):
        return going_on(store, tmp_path, planned, trials, 6.0, (control, 2))

    assert told(3) == ""
    for plan in planned[:3]:
        store.append({"plan": plan.name})
    holds = f"{tmp_path} holds a run of this study that was stopped: 3 of 8 planned settings are tried."
    assert told(3) == f"{holds} It goes on from there."
    assert told(None) == f"{holds} It goes on from there, for 6 minutes."
    keep_finished(store, 3, 5, 2)
    keep_finished(store, 3, 5, 2)
    assert len(store.rows()) == 4
    assert told(3).startswith(
        f"Everything of this study is in {tmp_path} (3 of 8 planned settings are tried, and the best"
    )
    finished = (
        f"{tmp_path} holds a finished run of this study: 3 of 8 planned settings are tried. It goes on from there"
    )
    assert told(4) == told(3, control=6) == f"{finished}."
    assert told(None) == f"{finished}, for 6 minutes."
    keep_finished(store, 8, 5, 2)  # the others cannot be fitted
    assert told(None).startswith("Everything of this study is in")


def test_shuffled_demonstrations_have_no_effect(parts):
    model, demonstrations, questions = parts
    draw = Random(1)
    rows = [
        row if draw.random() < 0.5 else replace(row, positive=row.negative, negative=row.positive)
        for row in demonstrations
    ]
    found = sl.study(model, replace(demonstrations, rows=tuple(rows)), questions, **GOOD, **QUICK)
    assert found.verdict == "no effect"
    assert "does not tell positives from negatives" in found.summary
    assert found.editor is None
    assert "does not tell positives from negatives" in page_of(found)


def test_an_edit_that_breaks_the_model_is_said_to_break_it(parts):
    free = sl.study(*parts, **{**GOOD, "shuffles": 0, "control": 0}, strengths=[16.0], max_kl=None, **QUICK)
    assert free.verdict == "breaks the model"
    assert free.evaluation.damage.is_broken
    assert "which says little" in free.summary
    assert free.editor is not None


def test_settings_that_cost_too_much_are_never_chosen(parts):
    found = sl.study(*parts, **GOOD, strengths=[16.0], **QUICK)
    assert found.verdict == "breaks the model"
    assert found.editor is None
    assert "each of 2 settings costs more than 0.5 nats" in found.summary
    assert "not asked" in page_of(found)


def test_a_setting_that_is_refused_for_its_damage_is_said_to_be_refused_for_that(parts, monkeypatch):
    """Within max_kl on a part of the texts, and broken on all of them: the sentence names what is past its limit."""
    limits = sl.DamageLimits(kl=0.5, repetition=1e-9, perplexity_ratio=1.0 + 1e-9)
    monkeypatch.setattr("sea_lens.evaluation.study.study.DamageLimits", lambda kl: limits)
    found = sl.study(*parts, **GOOD, **QUICK)
    assert found.verdict == "breaks the model"
    assert found.editor is None
    assert (
        "settings within 0.5 nats per token on a part of the texts is past the limits of damage on all of them"
        in found.summary
    )
    assert "(the best: perplexity " in found.summary
    assert "costs more than" not in found.summary
    assert not found.trials["chosen"].any()


def test_a_model_at_chance_is_not_steered(parts):
    model, demonstrations, _ = parts
    homes = [row.prompt for row in sl.load_organism()[1].questions() if " home " in row.prompt][:30]
    draw = Random(0)
    cities = [draw.sample(["Oslo", "Lima"], 2) for _ in homes]
    questions = sl.Questions.from_lists(homes, [one for one, _ in cities], [other for _, other in cities])
    found = sl.study(model, demonstrations, questions, **GOOD, **QUICK)
    assert found.verdict == "no effect"
    right = sl.prefer_right(model, questions, per_token=True).right
    assert f"the unedited model is at chance on these questions ({right.successes} of 30" in found.summary
    assert found.trials.empty


def test_nothing_is_told_where_nothing_is_right(parts):
    model, demonstrations, questions = parts
    none = replace(questions, rows=tuple(replace(row, right=("nothing",)) for row in questions))
    found = sl.study(model, demonstrations, none, measure="exact", max_new_tokens=1, **GOOD, **QUICK)
    assert found.summary.startswith("no effect can be told: the unedited model has none of 30 questions right")


def test_nothing_is_told_where_too_few_can_be_gained(parts):
    model, demonstrations, questions = parts
    few = questions[:10]
    found = sl.study(model, demonstrations, few, **GOOD, **QUICK)
    held_out = sl.prefer_right(model, few.split(0.5, seed=0)[1], per_token=True).right
    assert held_out.n - held_out.successes < 6
    assert f"{held_out.successes} of the {held_out.n} held-out questions right" in found.summary
    assert found.trials.empty


def test_any_measure_can_be_evaluated(parts):
    model, _, questions = parts
    asked = questions[:6]
    for measure, match in {"exact": "exact", "answers": "contains", "rouge": "rouge"}.items():
        found = sl.evaluate_right(model, asked, measure=measure, max_new_tokens=1, progress=False)
        assert found.table.at["right", "value"] == sl.answer_greedily(model, asked, 1, match=match).right.share
    for measure, how in {"preference": {}, "mc1": {"best_only": True}}.items():
        found = sl.evaluate_right(model, asked, measure=measure, progress=False)
        assert found.table.at["margin", "value"] == pytest.approx(
            sl.prefer_right(model, asked, **how).table["margin"].mean()
        )


def test_leaked_questions_are_refused(parts):
    model, demonstrations, questions = parts
    leaked = sl.Questions.from_demonstrations(demonstrations[:3])
    with pytest.raises(InputError, match="3 of 3 held-out questions are asked"):
        sl.study(model, demonstrations, leaked, **QUICK)
    asked = sl.Demonstrations.from_lists(["Where do the wild geese go?"], ["South."], ["North."])
    for template in ("Q: {question}\nA:", "<user> {question} <assistant>"):
        twice = ["Where do the wild geese go?", "Where do the geese go?"]
        both = sl.Questions.from_lists(twice, ["a"] * 2, ["b"] * 2).with_prompt_template(template)
        with pytest.raises(InputError, match="1 of 2"):
            check_apart(asked, (), both)
    assert check_apart(asked, (), questions) is None


def test_what_is_saved_comes_back_with_its_editor(works, tmp_path):
    works.save(tmp_path)
    found = sl.Study.load(tmp_path)
    assert (found.verdict, found.summary, found.facts) == (works.verdict, works.summary, works.facts)
    assert found.editor.fingerprint == works.editor.fingerprint
    assert found.table.equals(works.table)
    assert repr(found).startswith(works.summary)


def test_the_page_stands_alone_and_escapes_what_models_say(works, tmp_path):
    assert page_of(works).count("<b>edited</b>") == 6 < len(works.examples) == 15
    evil = works.examples.assign(edited="<script>alert(1)</script>")
    text = replace(works, examples=evil).report(tmp_path / "page.html").read_text()
    assert (
        text.index("Works")
        < text.index("Effect and controls")
        < text.index("What it says")
        < text.index("What was tried")
    )
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert re.findall(r'(?:src|href)="', text) == []
    assert text.count("<svg") >= 3
    assert text.count("<td>shuffled refits 0</td>") == text.count("<td>shuffled refits 0, mirrored</td>") == 1
    assert f"{works.table.at['edited', 'right']:.0f} of {works.table.at['edited', 'n']:.0f}" in text


@pytest.mark.parametrize("n_layers", [1, 2, 4, 18, 30])
def test_layers_differ_and_the_first_plans_differ_in_all(n_layers):
    names = studied_layers(n_layers)
    sets = [tuple(named_layers(name, n_layers)) for name in names]
    assert len(set(sets)) == len(sets) >= 1
    planned = plans(("mean", "last"), STUDIED, names, (0.8, 0.3), ())
    assert len({plan.name for plan in planned}) == len(planned) == 2 * len(STUDIED) * len(names) * 2
    first = planned[:12]
    assert all(plan.share == 0.8 for plan in planned[: min(9, len(planned) // 4)])
    if len(names) > 2:
        assert len({plan.setting for plan in first}) >= 3
        assert {plan.token for plan in first} == {"mean", "last"}


def test_sides_are_told_apart_where_they_differ_and_seldom_by_chance():
    generator = torch.Generator().manual_seed(0)

    def made(shift, seed):
        sides = {role: {0: torch.randn(30, 16, generator=generator) + sign * shift} for role, sign in SIDES.items()}
        return sides_apart([sl.Activations.from_tensors(**sides)], seed)

    assert made(0.8, 0).is_certain
    assert made(0.8, 0).right >= 25
    chance = [made(0.0, seed).p_value for seed in range(40)]
    assert sum(p <= 0.05 for p in chance) <= 6  # 2 expected; more than 6 in 1 of 200 cases
    assert 0.3 < sum(chance) / 40 < 0.7


SIDES = {"positive": 1.0, "negative": -1.0}
