"""Effects against numpy, written from their definitions, and what `measure_effects` says of them."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import D_MODEL, N_LAYERS

from sea_lens import Activations, Editor, EditorCard, Questions, fit_sea, measure_effects, random_editor_like
from sea_lens.analysis.measurements import EFFECTS, measure
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import FileFormatError, InputError, SeaLensWarning
from sea_lens.models.log_probs import completion_log_probabilities
from sea_lens.models.predictions import Predictions, question_batches

QUESTIONS = Questions.from_lists(
    ["Q: sea?", "ab", "The sky is", "Q: x"],
    [["blue", "blue-green"], ["c"], ["up there"], ["y", "z"]],
    [["red"], ["d", "dd"], ["down"], ["yy"]],
)


def make_editor(model, strength=2.0):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(20, D_MODEL, generator=generator) for layer in range(N_LAYERS)} for _ in range(3)]
    names = dict(zip(("neutral", "positive", "negative"), roles, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return fit_sea(Activations.from_tensors(**names, model=model), ranks=4).scaled(strength)


def next_token_log_probabilities(model, prompt):
    tokenizer = model.tokenizer
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if model.cfg.default_prepend_bos:
        ids = [tokenizer.bos_token_id, *ids]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False)[0, -1].double().numpy()
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def oracle(model):
    """Everything that effects are made of, one question at a time."""
    found = []
    for question in QUESTIONS:
        scores = [
            completion_log_probabilities(model, [(question.prompt, text)])[0]
            for text in (*question.right, *question.wrong)
        ]
        n_right = len(question.right)
        found.append((next_token_log_probabilities(model, question.prompt), scores[:n_right], scores[n_right:]))
    return found


def expected_effects(plain, edited):
    rows = []
    for (before, _, _), (after, true, false) in zip(plain, edited, strict=True):
        rows.append(
            {
                "log_probability_difference": max(true) - max(false),
                "right_probability": sum(np.exp(true)),
                "accuracy": float(max(true) > max(false)),
                "kl": float((np.exp(before) * (before - after)).sum()),
                "total_variation": float(np.abs(np.exp(before) - np.exp(after)).sum() / 2),
            }
        )
    return pd.DataFrame(rows)


def test_effects_equal_their_definitions(bridge):
    editor = make_editor(bridge)
    plain = oracle(bridge)
    with editor.attached(bridge):
        edited = oracle(bridge)
    found = measure_effects(bridge, editor, QUESTIONS, batch_size=3, progress=False)
    for state, values in (("unedited", expected_effects(plain, plain)), ("edited", expected_effects(plain, edited))):
        for name in values:
            assert found.per_question[f"{name} {state}"].tolist() == pytest.approx(values[name].tolist(), abs=2e-5)
            assert found.table.at[name, state] == pytest.approx(values[name].mean(), abs=2e-5)
    assert list(found.table.index) == list(EFFECTS)


def test_effects_of_first_tokens_equal_their_definitions(organism):
    """In the embedded world a word is a token, so first tokens are the answers."""
    model, world = organism
    questions = world.questions(world.held_out[:40])
    with torch.no_grad():
        logits = [model(model.to_tokens(q.prompt), use_cache=False)[0, -1].double().numpy() for q in questions]
    ids = [[model.tokenizer.convert_tokens_to_ids(text[0]) for text in (q.right, q.wrong)] for q in questions]
    found = measure(model, questions, [None], ["logit_difference", "top_token", "rank"], progress=False)
    difference, top, rank = found.values[:, 0].tolist()
    assert difference == pytest.approx([row[t] - row[f] for row, (t, f) in zip(logits, ids, strict=True)], abs=1e-4)
    assert top == [float(row.argmax() == t) for row, (t, _) in zip(logits, ids, strict=True)]
    assert rank == [float(1 + (row > row[t]).sum()) for row, (t, _) in zip(logits, ids, strict=True)]


def test_effects_of_first_tokens_equal_their_definitions_on_every_architecture(bridge):
    """After white space no space is put in between, so a completion's first byte is its first token."""
    questions = Questions.from_lists(
        ["Q: sea? ", "ab\n", "x "], [["b", "g"], ["c"], ["y"]], [["r"], ["dd", "e"], ["z"]]
    )
    editor = make_editor(bridge)
    found = measure(bridge, questions, [editor], ["logit_difference", "top_token", "rank"], progress=False).values[:, 0]
    with editor.attached(bridge):
        rows = [next_token_log_probabilities(bridge, question.prompt) for question in questions]
    for index, (row, question) in enumerate(zip(rows, questions, strict=True)):
        true, false = (
            [bridge.tokenizer(text[0], add_special_tokens=False)["input_ids"][0] for text in side]
            for side in (question.right, question.wrong)
        )
        best = row[true].max()
        assert found[0, index].item() == pytest.approx(best - row[false].max(), abs=1e-5)
        assert found[1, index].item() == float(int(row.argmax()) in true)
        assert found[2, index].item() == 1 + (row > best).sum()


# --- planted predictions ---------------------------------------------------------------------------------------------


def predictions(probabilities, completions):
    """Of three tokens; completions are (first token, probability of the whole, whether it is true), None for padding."""
    width = max(map(len, completions))
    first, true, false = (torch.zeros(len(completions), width, dtype=kind) for kind in (torch.long, *[torch.bool] * 2))
    scores = torch.full((len(completions), width), -torch.inf, dtype=torch.float64)
    for row, found in enumerate(completions):
        for column, (token, probability, is_right) in enumerate(found):
            first[row, column], scores[row, column] = token, np.log(probability)
            (true if is_right else false)[row, column] = True
    with np.errstate(divide="ignore"):
        next_token = torch.from_numpy(np.log(np.array(probabilities, dtype=np.float64)))
    return Predictions(next_token, first, scores, true, false)


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
        ("right_probability", [0.6, 0.125], [0.3, 0.25]),
        ("accuracy", [1.0, 0.0], [0.0, 1.0]),
        ("top_token", [1.0, 1.0], [0.0, 0.0]),
        ("rank", [1.0, 1.0], [2.0, 2.0]),
        ("kl", [0.0, 0.0], [0.5 * np.log(2) - 0.25 * np.log(2), np.log(2)]),
        ("total_variation", [0.0, 0.0], [0.25, 0.5]),
    ],
)
def test_effects_of_planted_predictions_are_what_one_works_out_by_hand(effect, unedited, edited):
    """The unedited model rules one token out, and one question has fewer completions than the other."""
    assert EFFECTS[effect](UNEDITED, UNEDITED).tolist() == pytest.approx(unedited, abs=1e-12)
    assert EFFECTS[effect](EDITED, UNEDITED).tolist() == pytest.approx(edited, abs=1e-12)


def test_to_rule_out_what_the_model_may_say_has_an_infinite_kl_and_not_a_huge_one():
    certain = predictions([[0.5, 0.5, 0.0]] * 2, [[(0, 1.0, True)]] * 2)
    assert EFFECTS["kl"](certain, UNEDITED).tolist() == [torch.inf, torch.inf]
    assert EFFECTS["kl"](certain, certain).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("effect", EFFECTS)
def test_predictions_of_nan_are_refused_by_every_effect(llama, effect):
    """To comparisons a NaN is as good as any number: the true answer would be of rank 1."""
    directions = torch.eye(D_MODEL)[:, :1]
    editor = Editor({1: AffineEdit(directions, torch.ones(1), strength=float("1e39"))}, EditorCard("by hand", {}))
    with pytest.raises(InputError, match=r"edited at layers \[1\], predicts NaN on questions \[0, 1, 2, 3\]"):
        measure(llama, QUESTIONS, [None, editor], [effect], progress=False)


# --- measured on models ----------------------------------------------------------------------------------------------


def test_the_identity_has_exactly_no_effect(bridge):
    found = measure_effects(bridge, make_editor(bridge).scaled(0.0), QUESTIONS, control=2, progress=False)
    assert (found.table[["change", "low", "high", "control"]] == 0).all(axis=None)
    assert (found.table["p_value"] == 1).all()
    assert (found.table.loc[["kl", "total_variation"], ["unedited", "edited"]] == 0).all(axis=None)
    assert (found.flips == 0).all(axis=None)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing(llama, batch_size):
    editor = make_editor(llama)
    whole = measure(llama, QUESTIONS, [editor], list(EFFECTS), batch_size=4, progress=False).values
    found = measure(llama, QUESTIONS, [editor], list(EFFECTS), batch_size=batch_size, progress=False).values
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_flips_are_counted_both_ways(organism):
    model, world = organism
    editor = make_world_editor(model, world)
    found = measure_effects(
        model, editor, world.questions(world.held_out[::4]), ["accuracy", "kl"], batch_size=60, progress=False
    )
    before, after = found.per_question["accuracy unedited"], found.per_question["accuracy edited"]
    assert found.flips.index.tolist() == ["accuracy"]
    assert found.flips.loc["accuracy"].tolist() == [int((after > before).sum()), int((after < before).sum())]
    assert found.flips.at["accuracy", "gained"] > 10


def make_world_editor(model, world):
    from sea_lens.worlds.demo import collect

    return fit_sea(collect(model, world), 0.5, center=True).first_layers(3).scaled(2.0)


def test_the_embedded_edit_beats_its_controls_and_a_control_does_not(organism):
    model, world = organism
    editor, questions = make_world_editor(model, world), world.questions(world.held_out[::3])
    found = measure_effects(model, editor, questions, ["top_token"], control=19, batch_size=80, progress=False).table
    assert found.at["top_token", "change"] > 0.4
    assert found.at["top_token", "low"] > 0.3
    assert found.at["top_token", "control_p_value"] == pytest.approx(0.05)
    assert (
        found.at["top_token", "control_low"]
        <= found.at["top_token", "control"]
        <= found.at["top_token", "control_high"]
    )


def test_control_columns_are_of_the_controls_measured_one_by_one(llama):
    editor, effects = make_editor(llama), ["log_probability_difference", "kl"]
    found = measure_effects(llama, editor, QUESTIONS, effects, control=3, seed=5, progress=False).table
    controls = [random_editor_like(editor, seed) for seed in (5, 6, 7)]
    alone = [measure_effects(llama, one, QUESTIONS, effects, progress=False).table["change"] for one in controls]
    for name in effects:
        changes = [float(table[name]) for table in alone]
        assert len(set(changes)) == 3
        assert found.at[name, "control"] == pytest.approx(np.mean(changes))
        assert (found.at[name, "control_low"], found.at[name, "control_high"]) == (min(changes), max(changes))
        as_much = sum(abs(change) >= abs(found.at[name, "change"]) for change in changes)
        assert found.at[name, "control_p_value"] == (1 + as_much) / 4


def test_the_table_holds_the_means_of_the_questions(llama):
    found = measure_effects(llama, make_editor(llama), QUESTIONS, progress=False)
    assert found.per_question["prompt"].tolist() == [question.prompt for question in QUESTIONS]
    for name, row in found.table.iterrows():
        before, after = found.per_question[f"{name} unedited"], found.per_question[f"{name} edited"]
        expected = (before.mean(), after.mean(), (after - before).mean())
        assert (row["unedited"], row["edited"], row["change"]) == pytest.approx(expected, abs=1e-12)
        assert row["low"] <= row["change"] <= row["high"]


def test_one_word_answers_cost_one_row_a_question(organism):
    model, world = organism
    (batch,) = question_batches(model, world.questions()[:10], 10)
    assert batch.tokens.ids.shape[0] == 10


def test_rows_hold_no_completion_that_begins_another(llama):
    questions = Questions.from_lists(["ab"], [["c", "cd"]], [["cde", "cdx"]])
    (batch,) = question_batches(llama, questions, 1)
    assert batch.tokens.ids.shape[0] == 1  # a completion's last token need not be run
    texts = [("ab", text) for text in ("c", "cd", "cde", "cdx")]
    with torch.no_grad():
        predictions = batch.predictions(llama(batch.tokens.ids, **batch.tokens.forward_options()))
    assert predictions.log_probabilities[0].tolist() == pytest.approx(
        completion_log_probabilities(llama, texts), abs=1e-5
    )
    assert predictions.is_right.tolist() == [[True, True, False, False]]
    assert predictions.is_wrong.tolist() == [[False, False, True, True]]


def test_effects_of_ones_own_are_measured(llama):
    def surprise(edited, unedited):
        return -edited.next_token.amax(1)

    found = measure_effects(llama, make_editor(llama), QUESTIONS, [surprise, "kl"], progress=False).table
    assert found.index.tolist() == ["surprise", "kl"]
    assert found.at["surprise", "unedited"] > 0


calls = []


def counted(edited, unedited):
    calls.append(len(edited.next_token))
    if len(calls) == 3:
        raise KeyboardInterrupt
    return edited.next_token.amax(1)


def test_a_killed_measurement_goes_on_and_another_does_not_mix_with_it(llama, tmp_path):
    editor = make_editor(llama)
    calls.clear()
    options = {"batch_size": 2, "folder": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        measure(llama, QUESTIONS, [None, editor], [counted], **options)
    resumed = measure(llama, QUESTIONS, [None, editor], [counted], **options)
    assert len(calls) == 3 + 2  # the batch that was whole is not measured again
    whole = measure(llama, QUESTIONS, [None, editor], [counted], batch_size=2, progress=False)
    assert torch.equal(resumed.values, whole.values)
    other = measure(llama, QUESTIONS, [None, editor.scaled(0.5)], [counted], **options)
    assert not torch.equal(other.values, whole.values)
    with pytest.raises(InputError, match="Define it with def"):
        measure(llama, QUESTIONS, [editor], [lambda edited, unedited: edited.next_token[:, 0]], **options)
    for manifest in tmp_path.glob("measurement-*/measurement.json"):
        manifest.write_text("{")
    with pytest.raises(FileFormatError, match="could not be read"):
        measure(llama, QUESTIONS, [None, editor], [counted], **options)


def test_an_edit_that_changes_no_logit_is_warned_about(llama):
    with pytest.warns(SeaLensWarning, match="changed no logit on these 4 questions"):
        measure_effects(llama, make_editor(llama).at_positions(100), QUESTIONS, ["kl"], progress=False)


@pytest.mark.parametrize(
    ("effects", "message"),
    [
        (["luck"], "There is no effect 'luck'"),
        ([], "at least one is needed"),
        (["kl", "kl"], "names of their own"),
        ([lambda edited, unedited: edited.next_token], "must return one number a question"),
        ([lambda edited, unedited: edited.next_token[:, 0] * torch.nan], "NaN or infinite on questions"),
    ],
)
def test_impossible_effects_are_refused(llama, effects, message):
    with pytest.raises(InputError, match=message):
        measure_effects(llama, make_editor(llama), QUESTIONS, effects, progress=False)


def test_questions_without_false_completions_are_refused_where_they_are_needed(llama):
    questions = Questions.from_lists(["ab", "cd"], [["x"], ["y"]], [["z"], []])
    with pytest.raises(InputError, match=r"Questions \[1\] have no false completion"):
        measure_effects(llama, make_editor(llama), questions, ["accuracy"], progress=False)
    assert measure_effects(llama, make_editor(llama), questions, ["right_probability", "kl"], progress=False).n == 2
