"""Effects against numpy, written from their definitions, and what `measure_effects` says of them."""

import warnings

import numpy as np
import pytest
import torch
from analysis.conftest import editor_for
from conftest import build_bridge

import sea_lens
from sea_lens import Questions, measure_damage, measure_effects, random_editor_like
from sea_lens.analysis.effects import EFFECTS, named_effect, register_effect
from sea_lens.errors import BrokenModelWarning, InputError, SeaLensWarning
from sea_lens.models.log_probs import completion_log_probabilities
from sea_lens.models.predictions import Predictions

# --- definitions -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def next_token_log_probabilities(model, prompt):
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if model.cfg.default_prepend_bos:
        ids = [model.tokenizer.bos_token_id, *ids]
    logits = model(torch.tensor([ids]), use_cache=False)[0, -1].double().numpy()
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def oracle(model, questions):
    """Everything that effects are made of, one question at a time."""
    found = []
    for question in questions:
        sides = question.right, question.wrong
        scores = [
            [completion_log_probabilities(model, [(question.prompt, text)])[0] for text in side] for side in sides
        ]
        join = "" if question.prompt[-1].isspace() else " "
        first = [
            [model.tokenizer((join + text)[0], add_special_tokens=False)["input_ids"][0] for text in s] for s in sides
        ]
        lengths = [[len((join + text).encode()) for text in side] for side in sides]  # a byte is a token
        found.append((next_token_log_probabilities(model, question.prompt), scores, first, lengths))
    return found


def expected_effects(plain, edited):
    found = {name: [] for name in EFFECTS}
    for (before, _, _, _), (after, (right, wrong), (firsts, others), lengths) in zip(plain, edited, strict=True):
        per_token = [np.array(scores) / n for scores, n in zip((right, wrong), lengths, strict=True)]
        best = after[firsts].max()
        found["logit_difference"].append(best - after[others].max())
        found["log_probability_difference"].append(max(right) - max(wrong))
        found["mean_log_probability_difference"].append(max(per_token[0]) - max(per_token[1]))
        found["right_probability"].append(sum(np.exp(right)))
        found["accuracy"].append(float(max(right) > max(wrong)))
        found["top_token"].append(float(int(after.argmax()) in firsts))
        found["rank"].append(float(1 + (after > best).sum()))
        found["answer_kl"].append(float((np.exp(before) * (before - after)).sum()))
        found["total_variation"].append(float(np.abs(np.exp(before) - np.exp(after)).sum() / 2))
    return found


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])  # with and without layer norms, tied embeddings and biases
def test_effects_equal_their_definitions(architecture, questions):
    bridge = build_bridge(architecture)
    editor = editor_for(bridge)
    plain = oracle(bridge, questions)
    with editor.attached(bridge):
        edited = oracle(bridge, questions)
    found = measure_effects(bridge, questions, editor, batch_size=3, control=0, damage=False, progress=False)
    assert list(found.table.index) == list(EFFECTS)
    assert found.per_question["prompt"].tolist() == [question.prompt for question in questions]
    for name, before in expected_effects(plain, plain).items():
        after = expected_effects(plain, edited)[name]
        assert found.per_question[f"{name} unedited"].tolist() == pytest.approx(before, abs=2e-5)
        assert found.per_question[f"{name} edited"].tolist() == pytest.approx(after, abs=2e-5)
        means = np.mean(before), np.mean(after), np.mean(after) - np.mean(before)
        row = found.table.loc[name]
        assert (row["unedited"], row["edited"], row["change"]) == pytest.approx(means, abs=2e-5)
        assert row["low"] <= row["change"] <= row["high"]


def predictions(probabilities, completions):
    """Of three tokens; completions, of two, are (first token, probability of the whole, whether it is right)."""
    width = max(map(len, completions))
    first, right, wrong = (torch.zeros(len(completions), width, dtype=kind) for kind in (torch.long, *[torch.bool] * 2))
    scores = torch.full((len(completions), width), -torch.inf, dtype=torch.float64)
    for row, found in enumerate(completions):
        for column, (token, probability, is_right) in enumerate(found):
            first[row, column], scores[row, column] = token, np.log(probability)
            (right if is_right else wrong)[row, column] = True
    with np.errstate(divide="ignore"):
        next_token = torch.from_numpy(np.log(np.array(probabilities, dtype=np.float64)))
    return Predictions(lambda: next_token, first, scores, right, wrong, 2 * (right | wrong).long())


UNEDITED = predictions(
    [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]],
    [[(0, 0.4, True), (1, 0.2, True), (2, 0.25, False)], [(1, 0.125, True), (2, 0.5, False)]],
)
EDITED = predictions(
    [[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]],
    [[(0, 0.1, True), (1, 0.2, True), (2, 0.4, False)], [(1, 0.25, True), (2, 0.0625, False)]],
)


@pytest.mark.parametrize(
    ("effect", "unedited", "edited"),
    [
        ("logit_difference", [np.log(2), 0.0], [-np.log(2), 0.0]),
        ("log_probability_difference", [np.log(1.6), -np.log(4)], [-np.log(2), np.log(4)]),
        ("mean_log_probability_difference", [np.log(1.6) / 2, -np.log(4) / 2], [-np.log(2) / 2, np.log(4) / 2]),
        ("right_probability", [0.6, 0.125], [0.3, 0.25]),
        ("accuracy", [1.0, 0.0], [0.0, 1.0]),
        ("top_token", [1.0, 1.0], [0.0, 0.0]),
        ("rank", [1.0, 1.0], [2.0, 2.0]),
        ("answer_kl", [0.0, 0.0], [0.5 * np.log(2) - 0.25 * np.log(2), np.log(2)]),
        ("total_variation", [0.0, 0.0], [0.25, 0.5]),
    ],
)
def test_effects_of_planted_predictions_are_what_one_works_out_by_hand(effect, unedited, edited):
    """The unedited model rules one token out, and one question has fewer completions than the other."""
    function = named_effect(effect).function
    assert function(UNEDITED, UNEDITED).tolist() == pytest.approx(unedited, abs=1e-12)
    assert function(EDITED, UNEDITED).tolist() == pytest.approx(edited, abs=1e-12)


def test_to_rule_out_what_the_model_may_say_has_an_infinite_kl_and_not_a_huge_one():
    certain = predictions([[0.5, 0.5, 0.0]] * 2, [[(0, 1.0, True)]] * 2)
    assert EFFECTS["answer_kl"].function(certain, UNEDITED).tolist() == [torch.inf, torch.inf]
    assert EFFECTS["answer_kl"].function(certain, certain).tolist() == [0.0, 0.0]


# --- what is said of them --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(llama, questions, editor):
    return measure_effects(llama, questions, editor, control=3, seed=5, damage=False, progress=False)


def test_an_effect_of_ones_own_is_one_function(llama, questions, editor):
    def surprise(edited, unedited):
        return -edited.next_token.amax(1)

    found = measure_effects(
        llama, questions, editor, effects=[surprise, "answer_kl"], control=0, damage=False, progress=False
    ).table
    assert found.index.tolist() == ["surprise", "answer_kl"]
    assert found.at["surprise", "unedited"] > 0
    assert not named_effect(surprise).less_is_better
    likely = measure_effects(
        llama,
        questions,
        editor,
        effects=[lambda e, u: (e.next_token > -5).any(1).double()],
        control=0,
        damage=False,
        progress=False,
    )
    assert likely.flips.index.tolist() == ["<lambda>"]  # 0 or 1 on every question
    try:
        register_effect(less_is_better=True)(surprise)
        assert named_effect(surprise) is named_effect("surprise")
        assert named_effect("surprise").less_is_better
        assert measure_effects(
            llama, questions, editor, control=0, damage=False, progress=False
        ).table.index.tolist() == list(EFFECTS)
        with pytest.raises(InputError, match="There is an effect 'surprise' already"):
            register_effect()(surprise)
    finally:
        EFFECTS.pop("surprise")


def test_a_distance_from_the_unedited_model_has_no_p_value(measured):
    """It cannot fall, so a test whether its change is zero on average would always reject."""
    missing = measured.table["p_value"].isna()
    assert missing[missing].index.tolist() == ["answer_kl", "total_variation"]
    assert (measured.table.loc[missing, "change"] > 0).all()


def test_the_identity_has_exactly_no_effect(llama, questions, editor):
    found = measure_effects(llama, questions, editor.scaled(0.0), control=2, damage=False, progress=False)
    assert (found.table[["change", "control"]] == 0).all(axis=None)
    spread = found.table.drop(["accuracy", "top_token"])[["low", "high"]]  # of shares, 4 questions leave some doubt
    assert (spread == 0).all(axis=None)
    assert (found.table["p_value"].dropna() == 1).all()
    assert (found.table.loc[["answer_kl", "total_variation"], ["unedited", "edited"]] == 0).all(axis=None)
    assert (found.flips == 0).all(axis=None)


def test_control_columns_are_of_the_controls_measured_one_by_one(llama, questions, editor, measured):
    names = ["log_probability_difference", "answer_kl"]
    controls = [random_editor_like(editor, seed) for seed in (5, 6, 7)]
    alone = [
        measure_effects(llama, questions, one, effects=names, control=0, damage=False, progress=False).table["change"]
        for one in controls
    ]
    for name in names:
        changes, row = [float(table[name]) for table in alone], measured.table.loc[name]
        assert len(set(changes)) == 3
        assert row["control"] == pytest.approx(np.mean(changes))
        assert (row["control_low"], row["control_high"]) == pytest.approx((min(changes), max(changes)))
        assert row["control_p_value"] == (1 + sum(abs(change) >= abs(row["change"]) for change in changes)) / 4
    own = measure_effects(
        llama, questions, editor, effects=["answer_kl"], control=[editor, controls[0]], damage=False, progress=False
    )
    assert own.n_controls == 2
    assert own.table.at["answer_kl", "control_p_value"] >= 2 / 3  # the editor is one of its own controls


def test_the_embedded_edit_flips_answers_and_beats_its_controls(organism, world_editor, reads_back):
    model, world = organism
    asked, effects = world.questions(world.held_out[::4]), ["top_token", "accuracy"]
    found = measure_effects(
        model, asked, world_editor, effects=effects, control=19, batch_size=60, damage=False, progress=False
    )
    row = found.table.loc["top_token"]
    assert row["change"] > 0.4
    assert row["low"] > 0.3
    assert row["control_p_value"] == pytest.approx(0.05)
    assert row["control_low"] <= row["control"] <= row["control_high"]
    for name in effects:
        before, after = found.per_question[f"{name} unedited"], found.per_question[f"{name} edited"]
        assert found.flips.loc[name].tolist() == [int((after > before).sum()), int((after < before).sum())]
    assert found.flips.at["top_token", "gained"] > 10
    reads_back(found)


@pytest.mark.parametrize(
    ("effects", "message"),
    [
        (["luck"], "Unknown effect 'luck'"),
        ([], "Give at least one effect"),
        (["answer_kl", "answer_kl"], "each with its own name"),
        ([lambda edited, unedited: edited.next_token], "must return one number per question"),
        ([lambda edited, unedited: edited.next_token[:, 0] * torch.nan], "NaN or infinite on questions"),
    ],
)
def test_impossible_effects_are_refused(llama, questions, editor, effects, message):
    with pytest.raises(InputError, match=message):
        measure_effects(llama, questions, editor, effects=effects, control=0, damage=False, progress=False)


def test_controls_and_what_the_edit_costs_are_measured_unasked(organism, world_editor, reads_back):
    model, world = organism
    asked = world.questions(world.held_out[::40])
    broken = world_editor.scaled(30.0)
    with pytest.warns(BrokenModelWarning, match=r"This edit breaks the model: perplexity .* KL"):
        found = measure_effects(model, asked, broken, effects=["accuracy"], batch_size=60, progress=False)
    assert found.n_controls == 3
    expected = measure_damage(model, [one.prompt for one in asked], broken, examples=0)
    assert found.damage.kl == pytest.approx(expected.kl, rel=1e-6)
    assert f"Damage: {found.damage.summary}" in repr(found)
    reads_back(found)
    silent = measure_effects(model, asked, broken, effects=["accuracy"], control=0, damage=False, progress=False)
    assert silent.damage is None
    assert silent.n_controls == 0


def test_sums_of_answers_of_unlike_lengths_are_warned_of(llama, editor):
    """True answers of HaluEval are four times shorter than the others: then any damage raises their sums' difference."""
    unlike = Questions.from_lists(["ab", "cd"], [["x"], ["y"]], [["a much longer answer"], ["another long one"]])
    options = {"control": 0, "damage": False, "progress": False}
    told = r"Right answers have 2 tokens on average and wrong ones 19.*log_probability_difference and accuracy"
    with pytest.warns(SeaLensWarning, match=rf"{told}.*Take mean_log_probability_difference"):
        measure_effects(llama, unlike, editor, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeaLensWarning)
        measure_effects(llama, unlike, editor, effects=["mean_log_probability_difference", "rank"], **options)


def test_an_interval_and_a_test_that_disagree_are_noted(llama, editor):
    few = Questions.from_lists(["ab", "cd"], [["x"], ["y"]], [["z"], ["w"]])
    values = iter([torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.1])])
    found = measure_effects(
        llama, few, editor, effects=[lambda e, u: next(values)], control=0, damage=False, progress=False
    )
    assert found.table["low"].iloc[0] > 0
    assert found.table["note"].tolist() == ["of 2 rows, p is 0.5 or more"]


def test_questions_without_wrong_answers_are_refused_where_they_are_needed(llama, editor):
    bare = Questions.from_lists(["ab", "cd"], [["x"], ["y"]], [["z"], []])
    with pytest.raises(InputError, match=r"accuracy compares with wrong answers, and questions \[1\] have none"):
        measure_effects(llama, bare, editor, effects=["answer_kl", "accuracy"], control=0, damage=False, progress=False)
    assert (
        measure_effects(
            llama, bare, editor, effects=["right_probability", "answer_kl"], control=0, damage=False, progress=False
        ).n
        == 2
    )


def test_the_order_of_0_1_is_refused_in_words(organism, without_type_checks):
    model, world = organism
    editor = sea_lens.Editor({0: sea_lens.AffineEdit.of_shift(torch.ones(128))})
    for measure in (sea_lens.measure_effects, sea_lens.ablate_layers, sea_lens.measure_interactions):
        with pytest.raises(
            InputError,
            match=r"questions must be Questions .*and an Editor was given. The order is \(model, questions, editor\)",
        ):
            measure(model, editor, world.questions())
