"""What the unedited model makes of questions, before anything is steered: whether an effect could be told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.questions import Questions
from sea_lens.evaluation.study.sizes import spread
from sea_lens.methods.measures import MATCH_OF, Measure, NamedMeasure, Preferring
from sea_lens.models.bridge import Model
from sea_lens.models.log_probs import score_answers
from sea_lens.models.tokens import tokenized_answers
from sea_lens.statistics import Proportion

SAME_ANSWERS = 1.0
"""Nats by which answers are likelier after their own question than after another one, below which the model does not tell
whose answers they are."""
ROTATED = 32
"""Questions whose answers are scored after another question."""
LONGEST = 32
LEAST_GAINED = 6
"""Questions gained, with none lost, that the paired sign-flip test tells from chance: five have p = 0.06."""


@dataclass(frozen=True)
class Told:
    """What the unedited model has right, and why nothing can be told from it; no reason where something can.

    Attributes:
        right: Of all questions.
        why: In words.
    """

    right: Proportion
    why: str = ""


def answer_tokens(model: Model, demonstrations: Demonstrations) -> int:
    """The median number of tokens of positive and negative answers, so that neutral ones are no longer."""
    rows = [(str(row.prompt), (row.positive, row.negative)) for row in demonstrations[:64]]
    lengths = [len(one.ids) - one.answer_start for row in tokenized_answers(model, rows) for one in row]
    return min(LONGEST, max(1, math.ceil(statistics.median(lengths))))


def why_nothing_can_be_told(
    model: Model, fitting: Questions, held_out: Questions, measure: Measure, named: NamedMeasure
) -> Told:
    """Whether questions leave room for an effect that can be told from none.

    Args:
        model: The model, unedited.
        fitting: The half to choose by.
        held_out: The half to score on.
        measure: How they are asked.
        named: The name of the measure.
    """
    asked = replace(fitting, rows=(*fitting, *held_out))
    chosen_by, scored = measure(model, fitting), measure(model, held_out)
    found = Proportion(chosen_by.successes + scored.successes, chosen_by.n + scored.n)
    n, right = found.n, found.successes
    if right == n:
        return Told(found, f"the unedited model has all {n} questions right already, so none can be gained")
    if named in MATCH_OF and not right:
        return Told(
            found,
            f"the unedited model has none of {n} questions right by measure={named!r}, and an edit that gives one or two "
            "cannot be told from luck; take a measure that asks for less, such as 'preference_per_token'",
        )
    if scored.n - scored.successes < LEAST_GAINED:
        return Told(
            found,
            f"the unedited model has {scored.successes} of the {scored.n} held-out questions right, so "
            f"{scored.n - scored.successes} at most can be gained, and fewer than {LEAST_GAINED} cannot be told from chance; "
            "give more questions, or harder ones",
        )
    if not isinstance(measure, Preferring):
        return Told(found)
    chances = [
        1 / (1 + len(row.wrong)) if measure.best_only else len(row.right) / (len(row.right) + len(row.wrong))
        for row in asked
    ]
    spread = math.sqrt(sum(chance * (1 - chance) for chance in chances))
    if abs(right - sum(chances)) > 1.96 * spread or _own_answers(model, asked) > SAME_ANSWERS:
        return Told(found)
    return Told(
        found,
        f"the unedited model is at chance on these questions ({right} of {n}; guessing has {sum(chances):.0f}), and finds "
        "their answers as likely after another question",
    )


def _own_answers(model: Model, questions: Questions) -> float:
    """By how much answers are likelier after their own question than after another one, in nats, on average."""
    some = spread(questions, min(ROTATED, len(questions)))
    rows = [replace(row, prompt=other.prompt) for row, other in zip(some, _turned(list(some)), strict=True)]
    own, others = (
        score_answers(model, asked, progress=False).by_answer().logsumexp(1)
        for asked in (some, replace(some, rows=tuple(rows)))
    )
    return float((own - others).mean())


def _turned(rows: Sequence[object]) -> list:  # type: ignore[type-arg]
    return [*rows[1:], *rows[:1]]
