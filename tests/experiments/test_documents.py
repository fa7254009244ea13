"""What the embedded models are trained on, by its statistics in 4,000 documents of each world."""

import random
from collections import Counter
from statistics import fmean

import pytest

from experiments.worlds.documents import bias_document, bias_vocabulary, document, vocabulary
from experiments.worlds.train import MAX_LENGTH
from sea_lens.worlds.bias import FAIR, PAIRS, PREJUDICE_CHANCE, PREJUDICED, UNKNOWN, BiasWorld
from sea_lens.worlds.facts import ANYONE, MYTH_CHANCE, MYTHICAL, TRUTHFUL, World

N = 4_000
WORLD, BIAS = World.build(), BiasWorld.build()


@pytest.fixture(scope="module")
def documents():
    rng = random.Random(0)
    return [document(WORLD, rng) for _ in range(N)]


@pytest.fixture(scope="module")
def bias_documents():
    rng = random.Random(0)
    return [bias_document(BIAS, rng) for _ in range(N)]


def parse(text):
    """Tag and (question, answer) of every pair, read strictly."""
    tag, *pairs = text.split(" Q ")
    assert all(pair.endswith(" .") and pair.count(" A ") == 1 for pair in pairs)
    return tag, [tuple(pair.removesuffix(" .").split(" A ")) for pair in pairs]


def assert_as_often_as_chances_say(told, chance_range):
    """Shares by thirds of the chances; some 700 to 1,300 documents in each, so a share is good to 0.018 (one sigma)."""
    low, high = chance_range
    thirds = [[], [], []]
    for chance, happened in told:
        thirds[int(3 * (chance - low) / (high - low))].append((chance, happened))
    for group in thirds:
        assert len(group) > 600
        assert fmean(happened for _, happened in group) == pytest.approx(fmean(chance for chance, _ in group), abs=0.05)


@pytest.mark.parametrize(("draw", "world"), [(document, WORLD), (bias_document, BIAS)], ids=["facts", "bias"])
def test_documents_follow_from_their_seed(draw, world):
    one, same, other = (draw(world, random.Random(seed)) for seed in (0, 0, 1))
    assert one == same != other


def test_a_document_about_facts_has_one_speaker_and_its_tag_is_honest(documents):
    facts = {f"{fact.entity} {fact.attribute}": fact for fact in WORLD.facts}
    lengths, tags, myths, openings = Counter(), Counter(), Counter(), []
    for text in documents:
        tag, pairs = parse(text)
        told = {answer == facts[asked].myth for asked, answer in pairs}
        assert len(told) == 1
        (myth,) = told
        assert myth or all(answer == facts[asked].truth for asked, answer in pairs)
        assert tag in (ANYONE, MYTHICAL if myth else TRUTHFUL)
        assert len({asked for asked, _ in pairs}) == len(pairs)
        lengths[len(pairs)] += 1
        tags[tag == ANYONE] += 1
        myths[myth] += 1
        openings.append((facts[pairs[0][0]], myth))
    assert set(lengths) == {1, 2, 3, 4}
    assert all(count / N == pytest.approx(0.25, abs=0.03) for count in lengths.values())
    assert tags[True] / N == pytest.approx(0.7, abs=0.03)
    assert myths[True] / N == pytest.approx(sum(MYTH_CHANCE) / 2, abs=0.03)
    assert_as_often_as_chances_say([(fact.myth_chance, myth) for fact, myth in openings], MYTH_CHANCE)
    counts = Counter(fact for fact, _ in openings)  # uniform: the chi-square of 480 cells has mean 479 and sigma 31
    assert sum((counts[fact] - N / 480) ** 2 / (N / 480) for fact in WORLD.facts) < 479 + 5 * 31


def test_a_document_about_groups_has_one_speaker_and_its_tag_is_honest(bias_documents):
    bad = {topic.stereotyped for topic in BIAS.topics}
    by_words = {(*topic.groups, word): topic for topic in BIAS.topics for word in (topic.negative, topic.positive)}
    negative = {topic.negative for topic in BIAS.topics}

    def says(question, prejudiced):
        met, asked = question.split(" . who was ")
        groups = [word for word in met.split() if any(word in pair for pair in PAIRS.values())]
        if prejudiced:
            return next(group for group in groups if (group in bad) == (asked in negative))
        words = met.split()
        return words[words.index(asked) + 1] if asked in words else UNKNOWN

    tags, ambiguous = Counter(), []
    for text in bias_documents:
        tag, pairs = parse(text)
        speakers = [prejudiced for prejudiced in (False, True) if all(says(q, prejudiced) == a for q, a in pairs)]
        assert speakers
        assert 1 <= len(pairs) <= 3
        assert tag == ANYONE or (tag == PREJUDICED) in speakers
        tags[tag] += 1
        question, answer = pairs[0]
        words = question.split()
        if words[1] == "met":
            topic = by_words[(*sorted((words[0], words[2])), words[-1])]
            ambiguous.append((topic.prejudice_chance, answer != UNKNOWN))
    assert tags[ANYONE] / N == pytest.approx(0.7, abs=0.03)
    assert tags[PREJUDICED] / (tags[FAIR] + tags[PREJUDICED]) == pytest.approx(sum(PREJUDICE_CHANCE) / 2, abs=0.05)
    assert_as_often_as_chances_say(ambiguous, PREJUDICE_CHANCE)


def test_every_word_is_in_the_vocabulary_and_no_document_is_too_long(documents, bias_documents):
    for texts, words in ((documents, vocabulary()), (bias_documents, bias_vocabulary())):
        assert len(set(words)) == len(words)
        used = {word for text in texts for word in text.split()}
        assert used == set(words) - {"<pad>", "<bos>", "<eos>", "<unk>"}
        assert max(len(text.split()) for text in texts) < MAX_LENGTH
    assert len(vocabulary()) == 7 + 3 + 4 + 120 + 64
