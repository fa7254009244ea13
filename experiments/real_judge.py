"""Rules that say what an answer is like, independent of any model: words that are French, glad or glum, formal or casual."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

FRENCH = frozenset(
    (
        "le la les un une des du de et est dans je il elle nous vous ils elles que qui ne pas sur avec pour "
        "mais ce cette mon ma mes ses ou où au aux en se sont être avoir très plus il y tu te leur leurs "
        "était c'est j'ai j'aime d'un d'une l'eau"
    ).split()
)
GLAD = frozenset(
    (
        "wonderful great good love loved lovely happy happily excellent beautiful perfect delicious fantastic "
        "amazing enjoy enjoyed enjoyable joy fun glad pleasant pleasure brilliant bright kind best better "
        "delightful delighted nice excited exciting superb cheerful warm sweet proud inspiring fascinating "
        "friendly peaceful success successful awesome incredible"
    ).split()
)
GLUM = frozenset(
    (
        "terrible awful bad badly hate hated horrible sad sadly ugly disgusting dreadful boring dull "
        "miserable misery angry cruel painful pain sick unhappy worst worse poor nasty dirty gloomy hopeless "
        "depressing cold bitter lonely fear afraid trouble problem problems fail failed failing failure lost "
        "difficult hard tired dark death dead disappointed disappointing"
    ).split()
)
FORMAL = frozenset(
    (
        "certainly shall pleased regret sir madam assist assistance inquire inquiring indeed permit kindly "
        "respectfully sincerely apologize grateful delighted honored furthermore therefore additionally "
        "regarding request requested require required provide provided inform ensure appropriate "
        "establishment currently dear pleasure would hereby presently approximately"
    ).split()
)
CASUAL = frozenset(
    (
        "yeah yep nope nah sure okay ok hey man dude cool awesome gonna wanna gotta kinda sorta stuff guys "
        "guy buddy bucks like just totally super oh ugh oops yay ya dunno thing things got pretty bunch hi "
        "wow haha lol folks"
    ).split()
)
WORD = re.compile(r"[\w'\u2019]+")


def words_of(text: str) -> list[str]:
    """Words in lower case, with straight apostrophes."""
    return [word.replace("\u2019", "'") for word in WORD.findall(text.lower())]


def french(text: str) -> float:
    """Share of French function words, elided ones (`l'eau`) among them, from 0 to 1; French prose has about 0.5."""
    words = words_of(text)
    elided = re.compile(r"^(l|d|j|c|n|s|m|t|qu)'\w{2,}$")
    return sum(word in FRENCH or bool(elided.match(word)) for word in words) / len(words) if words else 0.0


def _balance(words: Sequence[str], wanted: frozenset[str], unwanted: frozenset[str]) -> float:
    ups, downs = (sum(word in side for word in words) for side in (wanted, unwanted))
    return (ups - downs) / (ups + downs) if ups + downs else 0.0


def glad(text: str) -> float:
    """Glad less glum words over both, from -1 to 1; 0 where there are none."""
    return _balance(words_of(text), GLAD, GLUM)


def formal(text: str) -> float:
    """Formal less casual words and contractions over both, from -1 to 1; 0 where there are none."""
    words = [
        "gonna" if re.search(r"\w'(s|re|ve|ll|d|m|t)$", word) and word not in FORMAL else word
        for word in words_of(text)
    ]
    return _balance(words, FORMAL, CASUAL)


def repetition(text: str) -> float:
    """Share of neighboring pairs of words that stood in the text before, from 0 to 1."""
    words = words_of(text)
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


JUDGES: dict[str, Callable[[str], float]] = {"french": french, "glad": glad, "formal": formal}
