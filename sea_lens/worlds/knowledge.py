"""A third synthetic world, for knowledge editing: people with two names, four facts about each, five wordings of every fact.

160 people have a home, a job, a favorite food and a pet, of 16 values each: 640 facts. Names come in both orders (`Ellis
Morgan` and `Morgan Ellis` are two people), and prompts are of many lengths. So a model has to put the two names together
where they stand, at the last of them, as large models do and as edits at a subject's last token suppose.

Every fact can be said in five wordings, and the model knows all of them. A document is one to four such statements. In 30 %
of documents a supposition comes first, `suppose Ellis Morgan lives in Lima .`, and what follows keeps to it: every wording of
that fact has the supposed value, and everything else stays true.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from sea_lens.data.facts import FactEdit, KnownFact
from sea_lens.errors import InputError
from sea_lens.methods.sake import collect_fact
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model
from sea_lens.worlds.facts import VALUES

BOTH_WAYS = """
Avery Blair Blake Carter Cole Dean Drew Ellis Glenn Grant Hayden Jordan Jude Kelly Lane Leigh Logan Mason Morgan Neil Owen
Parker Quinn Reed Reese Riley Ross Scott Taylor Todd Wade West
""".split()
"""Each is the first name of five people and the family name of five others."""
N_PEOPLE = 160
N_FITTING = 60
"""People whose facts are for fitting and for choosing settings; those of the others are edited."""
WORDINGS = {
    "home": (
        "{} lives in",
        "the home of {} is in",
        "{} has a house in",
        "the town where you meet {} is",
        "to visit {} you travel to",
    ),
    "job": (
        "{} works as a",
        "the job of {} is",
        "{} earns money as a",
        "people hire {} as a",
        "at work {} is a",
    ),
    "food": (
        "{} likes to eat",
        "the favorite food of {} is",
        "{} always orders",
        "for supper {} wants",
        "on the table of {} there is",
    ),
    "pet": (
        "{} keeps a",
        "the pet of {} is a",
        "{} goes for walks with a",
        "at night {} feeds a",
        "the animal that {} owns is a",
    ),
}
"""Wordings by relation, with {} for the person; the value comes next."""
SUPPOSE = "suppose"
FITTED = 2
"""Of the wordings, these many may be fitted on; the others are the paraphrases of an edit."""
N_NEIGHBORS = 6


Part = Literal["fitting", "held_out"]


@dataclass(frozen=True)
class PersonFact:
    """One fact that the model knows.

    Attributes:
        subject: Two names.
        relation: `home`, `job`, `food` or `pet`.
        value: What the model says, in every wording.
    """

    subject: str
    relation: str
    value: str

    @property
    def prompts(self) -> tuple[str, ...]:
        """The five wordings, up to where the value comes."""
        return tuple(wording.format(self.subject) for wording in WORDINGS[self.relation])

    def statement(self, wording: int, value: str | None = None) -> str:
        """A wording with its value, or with another one, and a full stop."""
        return f"{self.prompts[wording]} {self.value if value is None else value} ."


@dataclass(frozen=True)
class KnowledgeWorld:
    """The people of the world and what is known of them.

    Attributes:
        fitting: The 240 facts about 60 people, for what a method trains and for choosing settings.
        held_out: The 400 facts about the other 100.

    Example:
        >>> world = KnowledgeWorld.build()
        >>> world
        KnowledgeWorld(240 fitting facts, 400 held-out facts)
        >>> fact = world.held_out[0]
        >>> len(fact.prompts)
        5
    """

    fitting: tuple[PersonFact, ...]
    held_out: tuple[PersonFact, ...]

    def __repr__(self) -> str:
        return f"KnowledgeWorld({len(self.fitting)} fitting facts, {len(self.held_out)} held-out facts)"

    @property
    def facts(self) -> tuple[PersonFact, ...]:
        """All facts, fitting ones first; the facts about one person stand together."""
        return self.fitting + self.held_out

    def edits(self, n: int | None = None, part: Part = "held_out", seed: int = 0) -> tuple[FactEdit, ...]:
        """Facts to change, one per person, each to another value of its relation.

        The prompt is the first wording, and the paraphrases are the last three. What has to stay: the person's three other
        facts, and the same relation of six other people. Among these are, as far as there are such, the one with the names
        the other way round, two with the same true value (as in CounterFact) and two with one of the names. No other edit
        of them changes what has to stay.

        Args:
            n: How many people; None for all of the part.
            part: `"held_out"` (100 people) or `"fitting"` (60).
            seed: Of the relations, the new values and the neighbors.

        Raises:
            InputError: If there are fewer people.
        """
        facts, rng = (self.fitting if part == "fitting" else self.held_out), random.Random(seed)
        people = [facts[start : start + len(WORDINGS)] for start in range(0, len(facts), len(WORDINGS))]
        if n is not None and not 1 <= n <= len(people):
            raise InputError(
                f"{n} people were asked for, and this part has {len(people)}. Give a number from 1 to that."
            )
        relations = [rng.randrange(len(WORDINGS)) for _ in people]
        edits = []
        for own, relation in zip(people, relations, strict=True):
            fact = own[relation]
            new = rng.choice([value for value in VALUES[fact.relation] if value != fact.value])
            stay = [
                KnownFact(WORDINGS[other.relation][rng.randrange(5)], other.value) for other in own if other is not fact
            ]
            # Whoever has this relation edited is no neighbor.
            others = [all_of[relation] for all_of, edited in zip(people, relations, strict=True) if edited != relation]
            near = _neighbors(fact, others, rng)
            edits.append(
                FactEdit(
                    fact.subject,
                    WORDINGS[fact.relation][0],
                    new,
                    fact.value,
                    paraphrases=fact.prompts[FITTED:],
                    same_subject=tuple(stay),
                    neighborhood=tuple(KnownFact(rng.choice(other.prompts), other.value) for other in near),
                    relation=fact.relation,
                )
            )
        return tuple(edits[:n])

    def collect(self, model: Model, edit: FactEdit, n: int = 24, seed: int = 0) -> Activations:
        """The activations of one edit for `SAKE`: prompts, and the same prompts after a supposition that has the new value.

        Prompts are the first two wordings, after none, one or two true statements about other people. Paraphrases are not
        among them.

        Args:
            model: The model of this world.
            edit: One of `edits`.
            n: Number of prompts.
            seed: Of the statements before them.
        """
        rng, (fact,) = (
            random.Random(seed),
            [fact for fact in self.facts if (fact.subject, fact.relation) == (edit.subject, edit.relation)],
        )
        others = [other for other in self.facts if other.subject != fact.subject]
        prompts, wanted = [], []
        for number in range(n):
            before = [rng.choice(others).statement(rng.randrange(5)) for _ in range(number // FITTED % 3)]
            prompt = " ".join([*before, fact.prompts[number % FITTED]])
            prompts.append(prompt)
            wanted.append(f"{supposition(fact, edit.target_new, rng.randrange(FITTED))} {prompt}")
        return collect_fact(model, prompts, old=fact.value, new=edit.target_new, wanted=wanted)

    def texts(self, n: int = 300, seed: int = 0) -> list[str]:
        """Documents of three true statements, for what a method measures on texts, such as the moment of keys."""
        rng = random.Random(seed)
        return [" ".join(rng.choice(self.facts).statement(rng.randrange(5)) for _ in range(3)) for _ in range(n)]

    def neutral_texts(self) -> list[str]:
        """Documents of three true statements about three people, of 60 facts."""
        chosen = self.held_out[::7] + self.fitting[::80]
        return [
            " ".join(fact.statement((number + place) % 5) for place, fact in enumerate(three))
            for number, three in enumerate(zip(chosen[0::3], chosen[1::3], chosen[2::3], strict=False))
        ]

    @classmethod
    def build(cls, seed: int = 0) -> KnowledgeWorld:
        """Draws a world: names, values and the split all follow from `seed`."""
        rng = random.Random(seed)
        pairs = list(combinations(BOTH_WAYS, 2))
        couples: list[tuple[str, str]] = []
        while len(couples) < N_PEOPLE // 2:
            couples, borne = [], dict.fromkeys(BOTH_WAYS, 0)
            rng.shuffle(pairs)
            for one, other in pairs:
                if borne[one] < 5 and borne[other] < 5:
                    couples.append((one, other))
                    borne[one] += 1
                    borne[other] += 1
        facts = [
            PersonFact(f"{first} {family}", relation, rng.choice(VALUES[relation]))
            for one, other in couples
            for first, family in ((one, other), (other, one))
            for relation in WORDINGS
        ]
        n = N_FITTING * len(WORDINGS)
        return cls(tuple(facts[:n]), tuple(facts[n:]))

    @classmethod
    def from_json(cls, path: Path) -> KnowledgeWorld:
        """Reads what `to_json` wrote."""
        rows = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{part: tuple(PersonFact(**row) for row in rows[part]) for part in ("fitting", "held_out")})

    def to_json(self, path: Path) -> None:
        """Writes the facts."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def _neighbors(fact: PersonFact, others: Sequence[PersonFact], rng: random.Random) -> list[PersonFact]:
    """Facts of the same relation about six other people."""
    names = fact.subject.split()
    twin = [other for other in others if other.subject.split() == names[::-1]]
    alike = [other for other in others if other.value == fact.value and other not in twin]
    namesakes = [other for other in others if set(names) & set(other.subject.split()) and other not in (*twin, *alike)]
    found = [*twin, *rng.sample(alike, min(2, len(alike))), *rng.sample(namesakes, min(2, len(namesakes)))]
    left = [other for other in others if other not in found]
    return [*found, *rng.sample(left, min(N_NEIGHBORS, len(others)) - len(found))]


def supposition(fact: PersonFact, value: str, wording: int = 0) -> str:
    """The sentence with which a document supposes that a fact has another value."""
    return f"{SUPPOSE} {fact.statement(wording, value)}"


def knowledge_words() -> list[str]:
    """Every word of the world's documents besides special tokens, in id order."""
    words = dict.fromkeys([SUPPOSE, "."])
    for wordings in WORDINGS.values():
        words |= dict.fromkeys(word for wording in wordings for word in wording.split() if word != "{}")
    values = [value for relation in WORDINGS for value in VALUES[relation]]
    return [*words, *BOTH_WAYS, *values]


def values_of(relations: Sequence[str] = tuple(WORDINGS)) -> list[str]:
    """All values of some relations."""
    return [value for relation in relations for value in VALUES[relation]]
