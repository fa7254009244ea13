"""Demonstrations as token rows, and which of a row's tokens stand for it."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from sea_lens.data.demonstrations import Demonstrations
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.activations import ROLES, Role, TokenChoice
from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.prefixes import common_length
from sea_lens.models.tokens import TokenizedAnswer, check_context_length
from sea_lens.wording import either, setting

KEPT_TOKENS = 100_000
"""Tokens kept from the first reading, 4 bytes each. Later demonstrations are tokenized again when they are run."""


def shared_length(texts: Sequence[TokenizedAnswer]) -> int:
    """How many tokens texts begin with in common, at most to before the last token of the shortest prompt."""
    return common_length([text.ids for text in texts], min(text.answer_start for text in texts) - 1)


def label_of(index: int, role: str) -> str:
    """The name of a text in messages."""
    return f"Demonstration {index} ({role})"


@dataclass(eq=False)
class DemonstrationTexts:
    """The texts of demonstrations, tokenized when asked for, so that memory does not grow with their number.

    Attributes:
        model: Whose tokenizer reads them.
        demonstrations: With neutral completions in all rows or in none.
        roles: The sides that there are.
        token: Which token stands for a text: see `sea_lens.collect_activations`.
    """

    model: Model
    demonstrations: Demonstrations
    token: TokenChoice
    _kept: array[int] = field(default_factory=lambda: array("i"), repr=False, init=False)
    _bounds: array[int] = field(default_factory=lambda: array("l"), repr=False, init=False)
    _is_content: dict[int, bool] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.token, int) and self.token not in ("last", "last_content", "mean"):
            raise InputError(
                f'{setting("token")} must be "last", "last_content", "mean" or an integer, and {self.token!r} was given.'
            )
        rows = self.demonstrations.rows
        missing = [index for index, row in enumerate(rows) if row.neutral is None]
        if 0 < len(missing) < len(rows):
            raise InputError(
                f"{len(missing)} of {len(rows)} demonstrations have no neutral completion (row {missing[0]}), and the others "
                "have one. "
                + either("Call demonstrations.with_neutral_answers(model), or leave", "Give them all one, or leave")
                + " them out of all rows."
            )
        self.roles: list[Role] = [role for role in ROLES if role != "neutral" or not missing]

    def of(self, index: int) -> list[TokenizedAnswer]:
        """The texts of one demonstration, by role."""
        size = 1 + 2 * len(self.roles)  # where its tokens start and, by role, its length and where its answer starts
        bounds = self._bounds[index * size : (index + 1) * size]
        if bounds:
            start, *bounds_by_role = bounds
            found = []
            for length, answer_start in zip(bounds_by_role[::2], bounds_by_role[1::2], strict=True):
                found.append(TokenizedAnswer(list(self._kept[start : start + length]), answer_start))
                start += length
            return found
        row = self.demonstrations[index]
        return TokenizedAnswer.all_of(self.model, [(row.prompt, [getattr(row, role) for role in self.roles])])[0]

    def survey(self) -> TextSurvey:
        """Reads all texts once and keeps what has to be known of all before the first is run.

        Raises:
            InputError: If a text does not fit the context, or an answer is too short for an integer `token`.

        Warns:
            SeaLensWarning: If answers hold no content token where the last one is to be used.
        """
        lengths, room = array("l"), True
        common: list[int] | None = None
        longest, longest_label, widest = 0, "", 0
        contentless, first_contentless = 0, ""
        for index in range(len(self.demonstrations)):
            texts = self.of(index)
            for text, role in zip(texts, self.roles, strict=True):
                if len(text.ids) > longest:
                    longest, longest_label = len(text.ids), label_of(index, role)
                if self.token == "last_content" and self._last_content(text) is None:
                    contentless, first_contentless = contentless + 1, first_contentless or label_of(index, role)
                self.span(text, label_of(index, role))
            lengths.append(max(len(text.ids) for text in texts))
            shared = texts[0].ids[: shared_length(texts)]
            widest = max(widest, len(shared) + sum(len(text.ids) - len(shared) for text in texts))
            common = (
                shared if common is None else shared[: common_length([common, shared], min(len(common), len(shared)))]
            )
            room = room and len(self._kept) + sum(len(text.ids) for text in texts) <= KEPT_TOKENS
            if room:
                self._keep(texts)
        check_context_length(self.model, [longest], [longest_label])
        if contentless:
            warnings.warn(
                f"{contentless} answers hold no content token (first: {first_contentless}); their last token is used.",
                SeaLensWarning,
                stacklevel=5,
            )
        return TextSurvey(lengths, common or [], widest)

    def _keep(self, texts: Sequence[TokenizedAnswer]) -> None:
        """Keeps the texts of the next demonstration, in one array: a list per text would take ten times the memory."""
        self._bounds.append(len(self._kept))
        for text in texts:
            self._kept.extend(text.ids)
            self._bounds.extend((len(text.ids), text.answer_start))

    def span(self, text: TokenizedAnswer, label: str) -> tuple[int, int]:
        """The span of positions `[start, stop)` that stands for a text. It never starts before the prompt's last token.

        Raises:
            InputError: If the answer is too short for an integer `token`; `label` is what to call it.
        """
        length = len(text.ids)
        answer = range(text.answer_start, length)
        position = length - 1
        if self.token == "mean" and len(answer):
            return answer.start, length
        if self.token == "last_content":
            found = self._last_content(text)
            position = length - 1 if found is None else found
        elif isinstance(self.token, int):
            if not -len(answer) <= self.token < len(answer):
                raise InputError(
                    f"{label} has an answer of {len(answer)} tokens, so there is no token {self.token}. Use "
                    f"{setting('token', 'last')}, or drop such rows."
                )
            position = answer[self.token]
        return position, position + 1

    def _last_content(self, text: TokenizedAnswer) -> int | None:
        """Position of the answer's last token that is more than punctuation, white space or a special token."""
        tokenizer, known = tokenizer_of(self.model), self._is_content
        for position in range(len(text.ids) - 1, text.answer_start - 1, -1):
            token = text.ids[position]
            if token not in known:
                letters = any(character.isalnum() for character in tokenizer.decode([token]))
                known[token] = letters and token not in tokenizer.all_special_ids
            if known[token]:
                return position
        return None


@dataclass(frozen=True, eq=False)
class TextSurvey:
    """What has to be known of all texts before the first is run.

    Attributes:
        lengths: By demonstration, tokens in its longest text.
        common: What all texts begin with, at most to before the last token of the shortest prompt.
        widest: Tokens of the largest demonstration, what its texts begin with counted once.
    """

    lengths: array[int]
    common: list[int]
    widest: int
