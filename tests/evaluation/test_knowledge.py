"""What edits of facts are measured by, against what the model says when it is asked one prompt at a time."""

from functools import partial

import numpy as np
import pytest
from conftest import EMBEDDED

import sea_lens as sl
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import benchmarks
from sea_lens.evaluation.said import completions_said
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import completion_log_probabilities
from sea_lens.models.tokens import stems_of

QUICK = {"control": 0, "damage": False, "progress": False}


@pytest.fixture(scope="module")
def world():
    return EMBEDDED["load_knowledge_organism"]("cpu")


@pytest.fixture(scope="module")
def shift(world):
    """Moves answers to two facts, each near its own centroid."""
    model, facts = world[0], world[1].edits(2)
    return sl.join_facts([sl.SAKE(transport="mean").fit(world[1].collect(model, fact, n=10)) for fact in facts])


def test_shares_are_those_of_prompts_asked_one_by_one(world, shift):
    model, facts = world[0], world[1].edits(3)
    found = sl.evaluate_knowledge(model, facts, shift, **QUICK)
    rows = found.per_answer
    with shift.attached(model):
        said = [greedy_answers(model, [prompt], 1, progress=False)[0] for prompt in rows["prompt"]]
    assert rows["says new edited"].tolist() == [one == new for one, new in zip(said, rows["new"], strict=True)]
    assert rows["says known edited"].tolist() == [one == known for one, known in zip(said, rows["known"], strict=True)]
    log = completion_log_probabilities(model, list(zip(rows["prompt"], " " + rows["known"], strict=True)))
    assert rows["known log_probability unedited"].tolist() == pytest.approx(log, abs=1e-5)
    for kind in ("efficacy", "paraphrase", "same_subject", "neighborhood"):
        column = "says new edited" if kind in ("efficacy", "paraphrase") else "says known edited"
        shares = rows[rows["kind"] == kind].groupby("row")[column].mean()
        assert found.table.loc[kind, "edited"] == pytest.approx(shares.mean())
        assert found.per_row[f"{kind} edited"].tolist() == pytest.approx(shares.tolist())
    four = found.table.loc[["efficacy", "paraphrase", "same_subject", "neighborhood"], "edited"]
    assert found.table.loc["harmonic_mean", "edited"] == pytest.approx(4 / (1 / four).sum())
    assert found.table.loc["efficacy", "unedited"] == 0.0
    assert found.table.loc["same_subject", "unedited"] == 1.0


def test_answers_of_several_tokens_are_said_token_by_token(llama):
    prompts, answers = ["The cat sat on", "A dog"], [(" the mat today", " a"), (" ran away", " is")]
    questions = sl.Questions(
        tuple(sl.Question(p, (one,), (other,)) for p, (one, other) in zip(prompts, answers, strict=True))
    )
    said = completions_said(llama, stems_of(llama, questions))
    for row, (prompt, both) in enumerate(zip(prompts, answers, strict=True)):
        log = completion_log_probabilities(llama, [(prompt, one) for one in both], share_prefix=False)
        assert said.log_probabilities[row].tolist() == pytest.approx(log, abs=1e-5)
        greedy = greedy_answers(llama, [prompt], 4, stop=(), progress=False)[0]
        assert said.is_greedy[row].tolist() == [greedy.startswith(one.strip()) for one in both]


def test_intervals_resample_facts_and_not_prompts(world, shift):
    model, facts = world[0], world[1].edits(40)
    found = sl.evaluate_knowledge(model, facts, shift, **QUICK)
    row, shares = found.table.loc["neighborhood"], found.per_row["neighborhood edited"].to_numpy()
    drawn = np.random.default_rng(0).choice(shares, (4000, 40)).mean(1) - 1.0
    assert row["n"] == 40
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.02)


def test_batches_are_pooled(world):
    model, facts = world[0], world[1].edits(3)
    made = {fact: sl.SAKE(transport="mean").fit(world[1].collect(model, fact, n=10)) for fact in facts}
    fitted = []

    def fit(own):
        fitted.append(own)
        return sl.join_facts([made[fact] for fact in own])

    measured = {"control": 1, "neutral_texts": world[1].neutral_texts()[:2], "progress": False}
    by_two = sl.evaluate_edits(model, facts, fit, at_once=2, **measured)
    assert fitted == [list(facts[:2]), list(facts[2:])]
    alone = [sl.evaluate_knowledge(model, own, fit(own), **measured) for own in (facts[:2], facts[2:])]
    for name in ("paraphrase edited", "stay_kl edited"):
        pooled = [value for one in alone for value in one.per_row[name]]
        assert by_two.per_row[name].tolist() == pytest.approx(pooled, abs=1e-6)
    neutral = [one.damage.table.loc["neutral text", "kl"] for one in alone]
    assert by_two.damage.table.loc["neutral text", "kl"] == pytest.approx(np.mean(neutral), abs=1e-9)
    assert by_two.controls["damage_kl"].notna().all()
    assert by_two.provenance["options"]["at_once"] == 2
    together = sl.evaluate_edits(model, facts, fit, at_once=9, **QUICK)
    assert together.table.equals(sl.evaluate_knowledge(model, facts, fit(facts), **QUICK).table)


def test_an_edit_that_is_no_editor_is_measured_while_it_is_attached(world, shift):
    class Attached:
        def attached(self, model):
            return shift.attached(model)

    model, facts = world[0], world[1].edits(1)
    few = {"control": 0, "neutral_texts": world[1].neutral_texts()[:2], "progress": False}
    one, other = (sl.evaluate_knowledge(model, facts, edit, **few) for edit in (shift, Attached()))
    assert one.table.equals(other.table)
    assert one.damage.kl == pytest.approx(other.damage.kl, abs=1e-9)
    assert other.provenance["editor"] is None


def test_numbers_are_kept_in_a_folder_and_results_read_back(world, shift, tmp_path):
    model, facts = world[0], world[1].edits(2)
    few = {"control": 1, "neutral_texts": world[1].neutral_texts()[:2], "progress": False}
    evaluate = partial(sl.evaluate_knowledge, model, facts, shift, folder=tmp_path / "kept", **few)
    first, again = evaluate(), evaluate()
    assert first.table.equals(again.table)
    first.save(tmp_path / "result")
    read = type(first).load(tmp_path / "result")
    assert read.table.equals(first.table)
    assert read.per_answer.equals(first.per_answer)
    assert benchmarks()["knowledge"].on(facts, control=0)(model, editor=None, folder=None, progress=False).score == 0.0


def test_facts_with_fewer_kinds_of_prompts_give_fewer_metrics(world):
    model, (fact, _) = world[0], world[1].edits(2)
    bare = sl.FactEdit(fact.subject, fact.prompt, fact.target_new)
    assert sl.evaluate_knowledge(model, [bare], **QUICK).table.index.tolist() == ["harmonic_mean", "efficacy"]
    near = sl.FactEdit(fact.subject, fact.prompt, fact.target_new, neighborhood=(sl.KnownFact("Bo", fact.target_new),))
    # A neighbor that truly has the new object: nothing to prefer.
    assert "neighborhood_likelier" not in sl.evaluate_knowledge(model, [near], **QUICK).table.index


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model, facts: sl.evaluate_knowledge(model, []), "At least one fact"),
        (lambda model, facts: sl.evaluate_knowledge(model, facts, "editor"), "editor"),
        (lambda model, facts: sl.evaluate_edits(model, facts, lambda own: None), "fit returned None"),
        (lambda model, facts: sl.evaluate_edits(model, facts, lambda own: 3), "attached"),
        (lambda model, facts: sl.evaluate_edits(model, facts, lambda own: None, at_once=0), "at_once"),
    ],
)
def test_wrong_inputs_are_told(world, call, said):
    with pytest.raises(InputError, match=said):
        call(world[0], world[1].edits(1))
