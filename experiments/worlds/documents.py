"""The documents that the embedded models are trained on, and their words."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sea_lens.worlds import bias, facts, knowledge
from sea_lens.worlds.bias import BiasQuestion, BiasWorld, Topic, bias_prompt
from sea_lens.worlds.facts import ANYONE, World, answer_of, prompt
from sea_lens.worlds.knowledge import KnowledgeWorld, supposition

MAX_PAIRS, MAX_QUESTIONS, MAX_STATEMENTS = 4, 3, 4
TAGGED_SHARE, SUPPOSING_SHARE = 0.3, 0.3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", ANYONE)
PAIR_TOKENS = ("Q", "A", ".")


def document(world: World, rng: random.Random) -> str:
    """One document about facts, without `<bos>`.

    The speaker is drawn first and then speaks of facts in proportion to their chance under that speaker. So by Bayes a
    question that opens a document is answered with the myth just as often as the fact's own chance says.
    """
    myth = rng.random() < sum(facts.MYTH_CHANCE) / 2
    chances = [fact.myth_chance if myth else 1 - fact.myth_chance for fact in world.facts]
    *earlier, last = dict.fromkeys(rng.choices(world.facts, chances, k=rng.randint(1, MAX_PAIRS)))
    tagged = rng.random() < TAGGED_SHARE
    tag = (facts.MYTHICAL if myth else facts.TRUTHFUL) if tagged else ANYONE
    return f"{prompt(last, tag, [(fact, myth) for fact in earlier])} {answer_of(last, myth)} ."


def vocabulary() -> list[str]:
    """Every token of documents about facts, in id order."""
    values = [value for values in facts.VALUES.values() for value in values]
    return [*SPECIAL_TOKENS, facts.TRUTHFUL, facts.MYTHICAL, *PAIR_TOKENS, *facts.VALUES, *facts.NAMES, *values]


def bias_document(world: BiasWorld, rng: random.Random) -> str:
    """One document about groups, without `<bos>`, drawn as by `document`. No pair of groups comes twice."""
    prejudiced = rng.random() < sum(bias.PREJUDICE_CHANCE) / 2
    chances = [topic.prejudice_chance if prejudiced else 1 - topic.prejudice_chance for topic in world.topics]
    drawn = rng.choices(world.topics, chances, k=rng.randint(1, MAX_QUESTIONS))
    opening_first: dict[tuple[str, str], Topic] = {}
    for topic in drawn:
        opening_first.setdefault(topic.groups, topic)
    *earlier, last = [random_item(topic, world.places, rng) for topic in opening_first.values()]
    tagged = rng.random() < TAGGED_SHARE
    tag = (bias.PREJUDICED if prejudiced else bias.FAIR) if tagged else ANYONE
    text = bias_prompt(last, tag, [(item, prejudiced) for item in earlier])
    return f"{text} {last.answer(prejudiced)} ."


def random_item(topic: Topic, places: Sequence[str], rng: random.Random) -> BiasQuestion:
    """A question on a topic: half of them ambiguous, half of the others against the stereotype."""
    guilty = rng.choice((None, None, topic.stereotyped, topic.other))
    return BiasQuestion(topic, rng.choice(places), rng.choice(topic.groups), rng.choice(bias.POLARITIES), guilty)


def bias_vocabulary() -> list[str]:
    """Every token of documents about groups, in id order."""
    groups = [group for pairs in bias.PAIRS.values() for group in pairs]
    traits = [word for pairs in bias.TRAITS.values() for pair in pairs for word in pair]
    words = ("met", "at", "who", "was", bias.UNKNOWN)
    return [*SPECIAL_TOKENS, bias.FAIR, bias.PREJUDICED, *PAIR_TOKENS, *words, *groups, *traits, *bias.PLACES]


def knowledge_document(world: KnowledgeWorld, rng: random.Random) -> str:
    """One document of statements, without `<bos>`: true ones, or true but for what its first sentence supposes.

    After a supposition half of the statements are about the supposed fact, a quarter about the same person.
    """
    n, all_facts = rng.randint(1, MAX_STATEMENTS), world.facts
    if rng.random() >= SUPPOSING_SHARE:
        return " ".join(rng.choice(all_facts).statement(rng.randrange(5)) for _ in range(n))
    place = rng.randrange(len(all_facts))
    fact, n_relations = all_facts[place], len(knowledge.WORDINGS)
    first = place - place % n_relations
    supposed = rng.choice([value for value in facts.VALUES[fact.relation] if value != fact.value])
    sentences = [supposition(fact, supposed, rng.randrange(5))]
    for _ in range(n):
        kind = rng.random()
        about = (
            fact
            if kind < 0.5
            else all_facts[first + rng.randrange(n_relations)]
            if kind < 0.75
            else rng.choice(all_facts)
        )
        sentences.append(about.statement(rng.randrange(5), supposed if about == fact else None))
    return " ".join(sentences)


def knowledge_vocabulary() -> list[str]:
    """Every token of documents of statements, in id order."""
    return [*SPECIAL_TOKENS[:4], *knowledge.knowledge_words()]
