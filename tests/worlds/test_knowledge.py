"""The world of people with four facts each: what can be edited, and what has to stay."""

import json
import random
from collections import Counter

import pytest
import torch
from conftest import EMBEDDED

import sea_lens as sl
from experiments.worlds.documents import knowledge_document, knowledge_vocabulary
from experiments.worlds.train import value_weights
from sea_lens.errors import InputError
from sea_lens.models.tokens import all_token_ids
from sea_lens.worlds.knowledge import BOTH_WAYS, SUPPOSE, KnowledgeWorld, supposition, values_of
from sea_lens.worlds.load import KNOWLEDGE_WEIGHTS

WORLD = KnowledgeWorld.build()


@pytest.fixture(scope="module")
def model():
    return EMBEDDED["load_knowledge_organism"]("cpu")[0]


def test_no_name_alone_says_who_is_meant_and_order_does():
    people = {tuple(fact.subject.split()) for fact in WORLD.facts}
    assert len(people) == 160
    assert {names[::-1] for names in people} == people
    firsts = Counter(first for first, _ in people)
    assert set(firsts.values()) == {5}
    assert set(firsts) == set(BOTH_WAYS)
    assert KnowledgeWorld.from_json(KNOWLEDGE_WEIGHTS / "facts.json") == WORLD


def test_what_has_to_stay_is_true_and_edited_by_no_other():
    edits = WORLD.edits()
    truths = {prompt: fact.value for fact in WORLD.facts for prompt in fact.prompts}
    assert len({edit.subject for edit in edits}) == len(edits) == 100
    changed = {edit.text: edit.target_true for edit in edits}
    edited = {prompt for fact in WORLD.facts if fact.prompts[0] in changed for prompt in fact.prompts}
    for edit in edits:
        assert truths[edit.text] == edit.target_true != edit.target_new
        assert edit.target_new in values_of([edit.relation])
        assert [truths[prompt] for prompt in edit.paraphrases] == [edit.target_true] * 3
        assert len(edit.same_subject) == 3
        assert len(edit.neighborhood) == 6
        for known in (*edit.neighborhood, *(sl.KnownFact(edit.about(k.prompt), k.answer) for k in edit.same_subject)):
            assert truths[known.prompt] == known.answer
            assert known.prompt not in edited
    assert WORLD.edits(7) == edits[:7]
    assert not {edit.subject for edit in edits} & {edit.subject for edit in WORLD.edits(part="fitting")}
    with pytest.raises(InputError, match="101 people were asked for, and this part has 100"):
        WORLD.edits(101)


def test_documents_keep_to_what_they_suppose():
    rng = random.Random(0)
    truths = {prompt: fact for fact in WORLD.facts for prompt in fact.prompts}
    n_supposing, kept = 0, Counter()
    for _ in range(2000):
        said = {}
        for sentence in knowledge_document(WORLD, rng).removesuffix(" .").split(" . "):
            prompt, value = sentence.rsplit(" ", 1)
            fact = truths[prompt.removeprefix(f"{SUPPOSE} ")]
            if prompt.startswith(f"{SUPPOSE} "):
                assert not said
                n_supposing += 1
                said[fact] = value
                assert value != fact.value
            else:
                assert value == said.get(fact, fact.value)
                kept[fact in said] += bool(said)
    assert 0.27 < n_supposing / 2000 < 0.33
    assert 0.5 < kept[True] / kept.total() < 0.66


def test_values_count_in_the_loss_but_supposed_ones():
    words = knowledge_vocabulary()
    place = {word: index for index, word in enumerate(words)}
    text = f"{supposition(WORLD.facts[0], 'Lima')} {WORLD.facts[1].statement(0)}"
    ids = torch.tensor([[place[word] for word in ["<bos>", *text.split(), "<pad>"]]])
    (weights,) = value_weights(words)(ids).tolist()
    answer = text.split().index(WORLD.facts[1].value)
    assert [index for index, weight in enumerate(weights) if weight == 1.0] == [answer]
    assert weights[-1] == 0.0
    assert weights[text.split().index("Lima")] == pytest.approx(0.02)


def test_the_model_knows_its_facts_in_every_wording_and_supposes_others(model):
    measured = json.loads((KNOWLEDGE_WEIGHTS / "measured.json").read_text())
    assert measured["known"] >= 0.99
    assert measured["known, worst wording"] >= 0.98
    assert measured["supposed"] >= 0.95
    assert measured["true beside a supposition"] >= 0.95
    prompts = [fact.prompts[number % 5] for number, fact in enumerate(WORLD.facts[::11])]
    said = sl.answer_greedily(
        model, sl.Questions.from_lists(prompts, [fact.value for fact in WORLD.facts[::11]], [[]] * len(prompts)), 1
    )
    assert said.right.share >= 0.98
    unknown = model.tokenizer.unk_token_id
    assert not any(unknown in ids for ids in all_token_ids(model, [*prompts, *WORLD.neutral_texts()]))


def test_collected_prompts_hold_no_paraphrase_and_their_targets_say_the_new_value(model):
    edit = WORLD.edits(1)[0]
    activations = WORLD.collect(model, edit, n=6)
    said = model.tokenizer.convert_ids_to_tokens(
        (activations.positive["unembed.hook_in"] @ model.unembed.W_U.float()).argmax(-1).tolist()
    )
    assert said == [edit.target_new] * 6
    assert torch.equal(
        activations.negative["unembed.hook_in"], WORLD.collect(model, edit, n=6).negative["unembed.hook_in"]
    )


def test_more_is_recalled_at_the_last_name_than_at_the_last_token(model):
    """States after the first block, taken from a prompt about another person: which make the model tell that one's facts?"""
    told = {2: 0, -1: 0}
    for one, other in zip(WORLD.held_out[:48], WORLD.held_out[200:248], strict=True):
        if one.value == other.value:
            continue
        ids, others = (torch.tensor(all_token_ids(model, [fact.prompts[0]])) for fact in (one, other))
        _, cache = model.run_with_cache(others)
        for place in told:

            def put(state, hook, taken=cache["blocks.0.hook_out"], place=place):
                state[:, place] = taken[:, place]
                return state

            logits = model.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_out", put)])
            said = model.tokenizer.convert_ids_to_tokens(int(logits[0, -1].argmax()))
            told[place] += said == other.value
    assert told[2] >= 3 * told[-1] + 4
