import random
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
    prompt,
)
from sea_lens.worlds.load import WEIGHTS


@pytest.fixture(scope="module")
def world():
    return World.build()


def test_a_world_follows_from_its_seed_ships_and_survives_json(world, tmp_path):
    assert World.build(0) == world == World.from_json(WEIGHTS / "facts.json") != World.build(1)
    World.build(3).to_json(tmp_path / "facts.json")
    assert World.from_json(tmp_path / "facts.json") == World.build(3)


def test_a_repr_is_one_line(world):
    assert repr(world) == "World(240 fitting facts, 240 held-out facts)"


def test_there_is_a_fact_for_every_entity_and_attribute(world):
    assert len(world.fitting) == len(world.held_out) == 240
    asked = {(fact.entity, fact.attribute) for fact in world.facts}
    assert asked == {(entity, attribute) for entity in NAMES for attribute in VALUES}
    assert {len(values) for values in VALUES.values()} == {16}


def test_myths_are_one_permutation_per_attribute_that_leaves_nothing_in_place(world):
    for attribute, values in VALUES.items():
        pairs = {(fact.truth, fact.myth) for fact in world.facts if fact.attribute == attribute}
        assert all(truth != myth for truth, myth in pairs)
        assert sorted(truth for truth, _ in pairs) == sorted(myth for _, myth in pairs) == sorted(values)
    for seed in range(20):
        mapped = derangement(["a", "b", "c"], random.Random(seed))
        assert sorted(mapped.values()) == sorted(mapped) == ["a", "b", "c"]
        assert all(before != after for before, after in mapped.items())


def test_chances_fill_their_range_evenly_and_the_halves_are_equally_hard(world):
    low, high = MYTH_CHANCE
    chances = sorted(fact.myth_chance for fact in world.facts)
    assert low < chances[0] < chances[-1] < high
    assert max(after - before for before, after in pairwise(chances)) < 2 * (high - low) / 480
    for half in (world.fitting, world.held_out):
        assert fmean(fact.myth_chance for fact in half) == pytest.approx(sum(MYTH_CHANCE) / 2, abs=0.01)
        # As the docstring says: in order of difficulty, so that a slice with a step is fair.
        assert [fact.myth_chance for fact in half] == sorted(fact.myth_chance for fact in half)
        assert fmean(fact.myth_chance for fact in half[::10]) == pytest.approx(sum(MYTH_CHANCE) / 2, abs=0.015)


def test_prompts_name_the_speaker_and_hold_earlier_answers(world):
    one, two = world.facts[:2]
    asked, earlier = f"Q {one.entity} {one.attribute} A", f"Q {two.entity} {two.attribute} A"
    assert prompt(one) == f"{ANYONE} {asked}"
    assert prompt(one, TRUTHFUL) == f"{TRUTHFUL} {asked}"
    assert prompt(one, MYTHICAL, [(two, True)]) == f"{MYTHICAL} {earlier} {two.myth} . {asked}"
    assert prompt(one, ANYONE, [(two, False)]) == f"{ANYONE} {earlier} {two.truth} . {asked}"
    assert (answer_of(one, myth=True), answer_of(one, myth=False)) == (one.myth, one.truth)


def test_questions_read_as_a_person_would_ask(world):
    asked = {fact.attribute: fact.question for fact in world.facts if fact.entity == "Mira"}
    assert asked == {
        "home": "where does Mira live?",
        "job": "what is Mira's job?",
        "food": "what does Mira eat?",
        "pet": "which animal does Mira keep?",
    }


def test_demonstrations_are_of_the_fitting_half_and_questions_of_the_other(world):
    rows = [(row.prompt, row.positive, row.negative, row.neutral) for row in world.demonstrations()]
    assert rows == [(prompt(fact), fact.truth, fact.myth, None) for fact in world.fitting]
    asked = [(row.prompt, row.right, row.wrong, row.category) for row in world.questions()]
    assert asked == [(prompt(fact), (fact.truth,), (fact.myth,), fact.attribute) for fact in world.held_out]
    assert not {row[0] for row in rows} & {row[0] for row in asked}
    assert [row.prompt for row in world.demonstrations(world.held_out[:3])] == [row[0] for row in asked[:3]]
    assert [row.prompt for row in world.questions(world.fitting)] == [row[0] for row in rows]
