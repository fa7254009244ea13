"""What settings are compared by: shares of questions that a model gets right, in one of six ways or in your own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.cache import name_of
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.answers import answer_greedily, check_compared, margins_of, prefer_right, right_ones
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.branching_jobs import branched
from sea_lens.models.bridge import Model
from sea_lens.models.log_probs import AnswerScores, score_stems
from sea_lens.models.matching import Match
from sea_lens.models.one_token import one_token_answers
from sea_lens.models.tokens import all_token_ids, stems_of
from sea_lens.statistics import Proportion
from sea_lens.wording import setting

Measure = Callable[[Model, Questions], Proportion]
"""What settings are compared by, measured under the hooks that are on the model."""
NamedMeasure = Literal["answers", "exact", "rouge", "mc1", "preference", "preference_per_token"]
NAMES: tuple[NamedMeasure, ...] = get_args(NamedMeasure)
MATCH_OF: Mapping[str, Match] = {"answers": "contains", "exact": "exact", "rouge": "rouge"}
"""How answers are compared, by measure; the other measures compare log-probabilities."""
EASIER: Mapping[str, tuple[NamedMeasure, ...]] = {
    "exact": ("answers", "rouge", "preference_per_token"),
    "answers": ("rouge", "preference_per_token"),
    "rouge": ("answers", "preference_per_token"),
    "mc1": ("preference_per_token", "rouge"),
    "preference": ("preference_per_token", "rouge"),
    "preference_per_token": ("answers", "rouge"),
}
"""What to take where a measure is 0 on all questions."""
VALUES_KEPT = 2**26
"""Activations of all layers that runs which share blocks keep at once, 256 MiB in float32."""
COMPARING = {"rouge", "mc1", "preference", "preference_per_token"}
"""Measures that need wrong answers."""


def measure_of(measure: NamedMeasure | Measure, questions: Questions, max_new_tokens: int, batch_size: int) -> Measure:
    """A measure as a function.

    Raises:
        InputError: If it is neither known nor a function, or needs wrong answers where a question has none.
    """
    if callable(measure):
        return measure
    if measure not in NAMES:
        raise InputError(f"measure is one of {', '.join(NAMES)}, or a function, and {measure!r} was given.")
    if measure in COMPARING:
        check_compared(questions)
    if measure in MATCH_OF:
        match = MATCH_OF[measure]
        if max_new_tokens == 1:
            return AnsweringShortly(match, batch_size)
        return lambda model, asked: (
            answer_greedily(model, asked, max_new_tokens, match=match, batch_size=batch_size).right
        )
    return Preferring(measure == "preference_per_token", measure == "mc1", batch_size)


@dataclass(frozen=True)
class Preferring:
    """A measure by log-probabilities of given answers. Every editor runs the same tokens, so editors can share blocks.

    Attributes:
        per_token: Whether means over tokens are compared, and not sums.
        best_only: Whether only the first right answer counts.
        batch_size: Rows in one forward pass.
    """

    per_token: bool
    best_only: bool
    batch_size: int

    def __call__(self, model: Model, questions: Questions) -> Proportion:
        """Under the hooks that are on the model."""
        how = {"per_token": self.per_token, "best_only": self.best_only}
        return prefer_right(model, questions, **how, batch_size=self.batch_size).right

    def of_each(
        self, model: Model, questions: Questions, editors: Sequence[Editor]
    ) -> Iterator[tuple[int, Proportion]]:
        """What each of many editors comes to, as (index, share), in no order; that of editors by themselves, to the bit."""
        for index, margins in self.margins_of_each(model, questions, editors):
            yield index, Proportion(int((margins > 0).sum()), len(margins))

    def margins_of_each(
        self, model: Model, questions: Questions, editors: Sequence[Editor | None]
    ) -> Iterator[tuple[int, Float[Tensor, " questions"]]]:
        """By editor, as `of_each`, the margin of each question in nats: the best right answer less the best wrong one."""
        stems, n_right = stems_of(model, questions), [len(question.right) for question in questions]

        def job() -> AnswerScores:
            return score_stems(model, stems, n_right, batch_size=self.batch_size)

        for index, scores in branched(BranchingRuns(model, editors), job, _are_same):
            yield index, margins_of(scores, per_token=self.per_token, best_only=self.best_only)

    def pieces(self, model: Model, questions: Questions) -> list[Questions]:
        """Questions in order, so many together that what runs share fits in memory."""
        tokens = [len(stem.prompt) + sum(map(len, stem.rows)) for stem in stems_of(model, questions)]
        return _pieces(model, questions, tokens)


@dataclass(frozen=True)
class AnsweringShortly:
    """A measure by greedy answers of one token. Every editor runs the prompts and no more, so editors can share blocks.

    Attributes:
        match: When an answer is right, as for `answer_greedily`.
        batch_size: Prompts in one forward pass.
    """

    match: Match
    batch_size: int

    def __call__(self, model: Model, questions: Questions) -> Proportion:
        """Under the hooks that are on the model."""
        return answer_greedily(model, questions, 1, match=self.match, batch_size=self.batch_size).right

    def of_each(
        self, model: Model, questions: Questions, editors: Sequence[Editor]
    ) -> Iterator[tuple[int, Proportion]] | None:
        """As that of `Preferring`; None where each editor has to answer by itself."""
        prompts = [question.prompt for question in questions]
        found = one_token_answers(model, prompts, editors, batch_size=self.batch_size)
        if found is None:
            return None
        right = ((index, right_ones(answers, questions, self.match)) for index, answers in found)
        return ((index, Proportion(sum(each), len(each))) for index, each in right)

    def pieces(self, model: Model, questions: Questions) -> list[Questions]:
        """As those of `Preferring`."""
        return _pieces(model, questions, list(map(len, all_token_ids(model, [each.prompt for each in questions]))))


def _pieces(model: Model, questions: Questions, tokens: Sequence[int]) -> list[Questions]:
    pieces: list[list[int]] = []
    n_values = 0
    for number, length in enumerate(tokens):
        needed = length * model.cfg.d_model * model.cfg.n_layers
        if not pieces or n_values + needed > VALUES_KEPT:
            pieces.append([])
            n_values = 0
        pieces[-1].append(number)
        n_values += needed
    return [questions[piece[0] : piece[-1] + 1] for piece in pieces]


def _are_same(one: AnswerScores, other: AnswerScores) -> bool:
    return torch.allclose(one.log_probabilities, other.log_probabilities, rtol=0, atol=0, equal_nan=True)


def check_chooses(measure: NamedMeasure | Measure, unedited: Proportion, questions: Questions) -> None:
    """Refuses a named measure by which nothing can be chosen.

    Raises:
        InputError: If the unedited model has none of the questions right by it, or all of them.
    """
    if not isinstance(measure, str) or 0 < unedited.successes < unedited.n:
        return
    compared = all(question.wrong for question in questions)
    if unedited.successes:
        raise InputError(
            f"The unedited model has all {unedited.n} questions right by {setting('measure', measure)}, so no setting can be "
            f"better. Give harder questions{', or ' + setting('measure', 'mc1') if compared and measure != 'mc1' else ''}."
        )
    others = [setting("measure", one) for one in EASIER[measure] if compared or one not in COMPARING]
    advice = (
        f"Take {' or '.join(others)}"
        if others
        else f"Give the questions wrong answers too, and {setting('measure', 'rouge')}"
    )
    longer = f", or raise {setting('max_new_tokens')}" if measure in MATCH_OF else ""
    raise InputError(
        f"The unedited model has none of the {unedited.n} questions right by {setting('measure', measure)}, so "
        f"settings would be chosen by chance. {advice}{longer}."
    )


def measure_name_of(measure: NamedMeasure | Measure, given: str | None) -> str:
    """What a measure's scores are kept under.

    Raises:
        InputError: If it is a function without a name of its own, and none is given.
    """
    if given is not None or isinstance(measure, str):
        return given or str(measure)
    try:
        return name_of(measure)
    except InputError as error:
        raise InputError(f"{error} Or give measure_name.") from error
