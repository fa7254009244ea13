"""Questions: prompts, each with true and false completions. What effects, ablations and evaluations are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

from sea_lens.demonstrations import Demonstrations
from sea_lens.errors import InputError


@dataclass(frozen=True)
class Question:
    """One prompt with its known answers.

    Attributes:
        prompt: What the model is given.
        true: Completions that are right.
        false: Completions that are wrong.
    """

    prompt: str
    true: tuple[str, ...]
    false: tuple[str, ...]
    category: str | None = None


@dataclass(frozen=True)
class Questions(Sequence[Question]):
    """An immutable list of questions.

    Attributes:
        rows: The questions.
        source: Where they came from, for messages.
    """

    rows: tuple[Question, ...]
    source: str = "lists"

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"There are no questions in {self.source}. At least one is needed.")
        unanswered = [index for index, row in enumerate(self.rows) if not row.true]
        if unanswered:
            raise InputError(f"Questions {unanswered[:10]} of {self.source} have no true completion. Give each one.")

    @classmethod
    def from_lists(
        cls, prompts: Sequence[str], true: Sequence[Sequence[str]], false: Sequence[Sequence[str]]
    ) -> Questions:
        """Builds questions from three lists of one length.

        Raises:
            InputError: If the lists are empty or differ in length, or a question has no true completion.
        """
        lengths = {"prompts": len(prompts), "true": len(true), "false": len(false)}
        if len(set(lengths.values())) > 1:
            raise InputError(f"The lists must have one length, and they have {lengths}.")
        rows = zip(prompts, true, false, strict=True)
        return cls(tuple(Question(prompt, tuple(right), tuple(wrong)) for prompt, right, wrong in rows))

    @classmethod
    def from_demonstrations(cls, demonstrations: Demonstrations) -> Questions:
        """The demonstrations' prompts, the positive completion as the true and the negative as the false answer.

        For choosing settings on the data of a fit. What a fit has seen says nothing of how it does elsewhere.
        """
        rows = tuple(Question(row.prompt, (row.positive,), (row.negative,)) for row in demonstrations)
        return cls(rows, demonstrations.source)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> Questions: ...

    def __getitem__(self, index: int | slice) -> Question | Questions:
        return replace(self, rows=self.rows[index]) if isinstance(index, slice) else self.rows[index]
