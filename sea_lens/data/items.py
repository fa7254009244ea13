"""One row: a demonstration, or a question of each kind, with what a benchmark needs to know of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from sea_lens.data.chat import as_prompt
from sea_lens.data.prompts import PromptRow
from sea_lens.data.records import Record, as_text, as_texts
from sea_lens.errors import InputError
from sea_lens.wording import either


@dataclass(frozen=True)
class Demonstration(PromptRow):
    """One prompt with its completions.

    Attributes:
        prompt: What the model reads.
        positive: A completion that shows the wanted behavior.
        negative: A completion that shows the unwanted behavior.
        neutral: The model's own completion; None until it has been asked.

    Example:
        >>> sl.Demonstration("Is it 5?", positive="Yes.", negative="No.").neutral is None
        True
    """

    positive: str
    negative: str
    neutral: str | None = None

    def __post_init__(self) -> None:
        PromptRow.__post_init__(self)
        as_text(self.positive, "A positive completion")
        as_text(self.negative, "A negative completion")
        if self.neutral is not None:
            as_text(self.neutral, "A neutral completion")


@dataclass(frozen=True)
class Question(PromptRow):
    """One prompt with its known answers.

    Attributes:
        prompt: What the model reads.
        right: The right answers; by convention the first is the best.
        wrong: The wrong answers.
        category: The question's topic, where the data says so.

    Example:
        >>> question = sl.Question("The sky is", right=("blue", "gray"), wrong=("green",))
        >>> question.right[0]
        'blue'
    """

    told_by: ClassVar[str] = ""
    """The field that tells the kind when rows are read back."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]
    category: str | None = None

    def __post_init__(self) -> None:
        PromptRow.__post_init__(self)
        for side in ("right", "wrong"):
            object.__setattr__(self, side, as_texts(getattr(self, side), f"{side!r} of {self.prompt!r}"))


@dataclass(frozen=True)
class BBQQuestion(Question):
    """A question of BBQ, which has one right and two wrong answers.

    Attributes:
        context_condition: `"disambig"` if the context tells the answer; `"ambig"` if not, so that unknown is right.
        unknown: The answer that says that it is not known.
        stereotyped: The answers that follow the stereotype.
    """

    told_by = "context_condition"

    context_condition: str | None = None
    unknown: str | None = None
    stereotyped: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CrowsPairsQuestion(Question):
    """A pair of CrowS-Pairs that says its direction. Right is the less stereotyping sentence.

    Attributes:
        direction: `"stereo"` if the wrong answer shows a stereotype of a disadvantaged group, `"antistereo"` if the right one
            goes against it.
    """

    told_by = "direction"

    direction: str | None = None


@dataclass(frozen=True)
class StereoSetQuestion(Question):
    """An item of StereoSet: right is the anti-stereotype, wrong are the stereotype and the unrelated sentence, in this order.

    Attributes:
        target: The term that the item is about. The published scores are means over terms.
        task: `"intrasentence"` or `"intersentence"`.
    """

    told_by = "target"

    target: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class WinoBiasQuestion(Question):
    """A sentence of WinoBias with the question which occupation its pronoun refers to.

    Attributes:
        stereotype: `"pro"` if the pronoun has the gender that most people of the right occupation have, `"anti"` if not.
        syntax: `"type1"`: only knowledge of the world tells the answer. `"type2"`: syntax does. None if the file's name does
            not say.
    """

    told_by = "stereotype"

    stereotype: str | None = None
    syntax: str | None = None


KINDS: tuple[type[Question], ...] = (BBQQuestion, CrowsPairsQuestion, StereoSetQuestion, WinoBiasQuestion)
_SIDES = [("right", "wrong"), ("true", "false"), ("positive", "negative")]  # ours, those of 0.1, demonstrations'


def question_of(record: Record) -> Question:
    """A question from a row with `prompt`, `right`, `wrong` and, if known, `category`.

    Raises:
        InputError: If a field is missing or holds something else.
    """
    right, wrong = next((pair for pair in _SIDES if pair[0] in record.fields), _SIDES[0])
    answers = record.texts(right)
    if not answers:
        raise InputError(f"{record.where}: {right!r} is empty. Give at least one right answer.")
    texts = _prompt(record, "prompt"), answers, record.texts(wrong), record.optional_text("category")
    kind = next((one for one in KINDS if one.told_by in record.fields), None)
    if kind is None:
        return Question(*texts)
    if kind is BBQQuestion:
        stereotyped = record.texts("stereotyped") if "stereotyped" in record.fields else None
        return BBQQuestion(*texts, record.text("context_condition"), record.optional_text("unknown"), stereotyped)
    own = [name for name in kind.__dataclass_fields__ if name not in Question.__dataclass_fields__]
    return kind(*texts, *(record.optional_text(name) for name in own))


def demonstration_of(
    record: Record,
    prompt: str = "prompt",
    positive: str = "positive",
    negative: str = "negative",
    neutral: str | None = None,
) -> Demonstration:
    """A demonstration from a row; without a name for the neutral completion, `neutral` is taken if there is one.

    Raises:
        InputError: If a column is missing or holds no text.
    """
    names = [prompt, positive, negative, *([] if neutral is None else [neutral])]
    missing = ", ".join(repr(name) for name in names if name not in record.fields)
    if missing:
        raise InputError(
            f"{record.where}: there is no column {missing}. {record.has} Name the right ones: "
            + either("prompt=, positive=, negative=, neutral=.", "--column prompt=NAME, and so on.")
        )
    own = record.optional_text("neutral") if neutral is None else record.text(neutral)
    return Demonstration(_prompt(record, prompt), record.text(positive), record.text(negative), own)


def _prompt(record: Record, name: str) -> str:
    value = record.value(name)
    return as_prompt(value, f"{record.where}: {name!r}") if isinstance(value, (list, tuple)) else record.text(name)


def as_demonstration(question: Question, rng: random.Random) -> Demonstration:
    """A question's best right answer against a wrong one: the first of a benchmark's pair, else one that is drawn.

    Raises:
        InputError: If the question has no wrong answer.
    """
    if not question.wrong:
        raise InputError(f"{question.prompt[:60]!r} has no wrong answer, so it demonstrates nothing. Give one.")
    is_drawn = type(question) in (Question, BBQQuestion)
    wrong = rng.choice(question.wrong) if is_drawn else question.wrong[0]
    return Demonstration(question.prompt, question.right[0], wrong)
