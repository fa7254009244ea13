import random
from collections import Counter
from itertools import pairwise
from statistics import fmean

import pytest

from sea_lens.worlds.facts import (
    ANYONE,
    MYTH_CHANCE,
    MYTHICAL,
    NAMES,
    TRUTHFUL,
    VALUES,
    World,
    answer_of,
    derangement,
    document,
    prompt,
    vocabulary,
)
from sea_lens.worlds.load import WEIGHTS

N_DOCUMENTS = 20_000


@pytest.fixture(scope="module")
def world():
    return World.build()


@pytest.fixture(scope="module")
def documents(world):
    rng = random.Random(0)
    return [document(world, rng) for _ in range(N_DOCUMENTS)]


@pytest.fixture(scope="module")
def parsed(documents):
    return [parse(text) for text in documents]


def parse(text):
    """Tag and (entity, attribute, value) of every pair, read strictly."""
    tag, *words = text.split(" ")
    pairs = []
    while words:
        (q, entity, attribute, a, value, stop), words = words[:6], words[6:]
        assert (q, a, stop) == ("Q", "A", ".")
        pairs.append((entity, attribute, value))
    return tag, pairs


def by_question(world):
    return {(fact.entity, fact.attribute): fact for fact in world.facts}


# --- facts -----------------------------------------------------------------------------------------------------------


def test_a_world_follows_from_its_seed(world):
    assert World.build() == World.build(0) == world
    assert World.build(1) != world


def test_there_is_a_fact_for_every_entity_and_attribute(world):
    assert len(world.facts) == 480
    assert len(world.fitting) == len(world.held_out) == 240
    assert set(by_question(world)) == {(entity, attribute) for entity in NAMES for attribute in VALUES}
    assert world.facts == world.fitting + world.held_out
    assert {len(values) for values in VALUES.values()} == {16}


def test_truth_and_myth_are_different_values_of_the_attribute(world):
    for fact in world.facts:
        assert fact.truth in VALUES[fact.attribute]
        assert fact.myth in VALUES[fact.attribute]
        assert fact.truth != fact.myth


def test_myths_are_one_permutation_an_attribute(world):
    for attribute, values in VALUES.items():
        pairs = {(fact.truth, fact.myth) for fact in world.facts if fact.attribute == attribute}
        assert sorted(truth for truth, _ in pairs) == sorted(values)
        assert sorted(myth for _, myth in pairs) == sorted(values)


def test_a_derangement_leaves_nothing_in_place():
    for seed in range(20):
        mapped = derangement(["a", "b", "c"], random.Random(seed))
        assert sorted(mapped.values()) == sorted(mapped) == ["a", "b", "c"]
        assert all(before != after for before, after in mapped.items())


def test_the_halves_are_equally_hard(world):
    fitting, held_out = (fmean(fact.myth_chance for fact in half) for half in (world.fitting, world.held_out))
    assert fitting == pytest.approx(held_out, abs=0.01)
    assert fitting == pytest.approx(sum(MYTH_CHANCE) / 2, abs=0.01)


def test_chances_fill_their_range_evenly(world):
    low, high = MYTH_CHANCE
    chances = sorted(fact.myth_chance for fact in world.facts)
    assert all(low < chance < high for chance in chances)
    steps = [after - before for before, after in pairwise(chances)]
    assert max(steps) < 2 * (high - low) / 480


def test_the_shipped_facts_are_this_world(world):
    assert World.from_json(WEIGHTS / "facts.json") == world


def test_a_world_survives_json(tmp_path):
    world = World.build(3)
    world.to_json(tmp_path / "facts.json")
    assert World.from_json(tmp_path / "facts.json") == world
    assert len((tmp_path / "facts.json").read_text().splitlines()) >= 480


# --- texts -----------------------------------------------------------------------------------------------------------


def test_prompts(world):
    one, two = world.facts[:2]
    asked = f"Q {one.entity} {one.attribute} A"
    assert prompt(one) == f"{ANYONE} {asked}"
    assert prompt(one, TRUTHFUL) == f"{TRUTHFUL} {asked}"
    earlier = f"Q {two.entity} {two.attribute} A"
    assert prompt(one, MYTHICAL, [(two, True)]) == f"{MYTHICAL} {earlier} {two.myth} . {asked}"
    assert prompt(one, ANYONE, [(two, False)]) == f"{ANYONE} {earlier} {two.truth} . {asked}"
    assert answer_of(one, myth=True) == one.myth
    assert answer_of(one, myth=False) == one.truth


def test_questions_read_as_a_person_would_ask(world):
    asked = {fact.attribute: fact.question for fact in world.facts if fact.entity == "Mira"}
    assert asked == {
        "home": "where does Mira live?",
        "job": "what is Mira's job?",
        "food": "what does Mira eat?",
        "pet": "which animal does Mira keep?",
    }


def test_a_document_has_one_to_four_different_pairs(parsed):
    counts = Counter(len(pairs) for _, pairs in parsed)
    assert set(counts) == {1, 2, 3, 4}
    assert all(abs(count / N_DOCUMENTS - 0.25) < 0.03 for count in counts.values())
    assert all(len({pair[:2] for pair in pairs}) == len(pairs) for _, pairs in parsed)


def test_a_document_has_one_speaker_and_its_tag_is_honest(world, parsed):
    facts, speakers = by_question(world), Counter()
    for tag, pairs in parsed:
        told = {value == facts[entity, attribute].myth for entity, attribute, value in pairs}
        assert len(told) == 1
        (myth,) = told
        assert myth or all(value == facts[entity, attribute].truth for entity, attribute, value in pairs)
        assert tag in (ANYONE, MYTHICAL if myth else TRUTHFUL)
        speakers[myth] += 1
    assert speakers[True] / N_DOCUMENTS == pytest.approx(sum(MYTH_CHANCE) / 2, abs=0.012)


def test_three_documents_in_ten_are_tagged(parsed):
    assert sum(tag != ANYONE for tag, _ in parsed) / N_DOCUMENTS == pytest.approx(0.3, abs=0.015)


def test_an_opening_fact_is_told_as_a_myth_as_often_as_its_chance_says(world, parsed):
    """In ten groups of facts by chance; a group is some 2,000 documents, so a share is good to 0.011 (one sigma)."""
    facts, low, high = by_question(world), *MYTH_CHANCE
    told = [[] for _ in range(10)]
    for _, [(entity, attribute, value), *_] in parsed:
        fact = facts[entity, attribute]
        told[int(10 * (fact.myth_chance - low) / (high - low))].append((fact.myth_chance, value == fact.myth))
    for group in told:
        assert len(group) > 1500
        assert fmean(myth for _, myth in group) == pytest.approx(fmean(chance for chance, _ in group), abs=0.045)


def test_opening_facts_are_uniform(parsed):
    """Every fact opens some 42 of 20,000 documents; the chi-square of 480 cells has mean 479 and sigma 31."""
    counts = Counter(pairs[0][:2] for _, pairs in parsed)
    expected = N_DOCUMENTS / 480
    assert len(counts) == 480
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 479 + 5 * 31


def test_documents_follow_from_their_seed(world, documents):
    rng = random.Random(0)
    assert [document(world, rng) for _ in range(20)] == documents[:20]
    assert document(world, random.Random(1)) != documents[0]


def test_every_word_is_in_the_vocabulary(world, documents):
    words = vocabulary()
    assert len(set(words)) == len(words) == 7 + 3 + 4 + 120 + 64
    assert {word for text in documents for word in text.split()} == set(words) - {"<pad>", "<bos>", "<eos>", "<unk>"}
    assert {word for fact in world.facts for word in prompt(fact).split()} <= set(words)


# --- halves ----------------------------------------------------------------------------------------------------------


def test_demonstrations_are_of_the_fitting_half(world):
    rows = list(world.demonstrations())
    assert [row.prompt for row in rows] == [prompt(fact) for fact in world.fitting]
    assert [row.positive for row in rows] == [fact.truth for fact in world.fitting]
    assert [row.negative for row in rows] == [fact.myth for fact in world.fitting]
    assert {row.neutral for row in rows} == {None}


def test_questions_are_of_the_held_out_half(world):
    rows = list(world.questions())
    assert [row.prompt for row in rows] == [prompt(fact) for fact in world.held_out]
    assert [row.right for row in rows] == [(fact.truth,) for fact in world.held_out]
    assert [row.wrong for row in rows] == [(fact.myth,) for fact in world.held_out]
    assert [row.category for row in rows] == [fact.attribute for fact in world.held_out]


def test_the_halves_never_mix(world):
    assert not {row.prompt for row in world.demonstrations()} & {row.prompt for row in world.questions()}


def test_other_facts_can_be_asked_for(world):
    chosen = world.held_out[:3]
    assert [row.prompt for row in world.demonstrations(chosen)] == [prompt(fact) for fact in chosen]
    assert [row.prompt for row in world.questions(world.fitting)] == [prompt(fact) for fact in world.fitting]
