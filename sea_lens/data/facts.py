"""What an edit of a model's knowledge is told: a fact with its new object, and facts that should stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sea_lens.arguments import check_fields
from sea_lens.errors import InputError

HERE = "{}"
"""Where the subject stands in a prompt."""


@dataclass(frozen=True)
class KnownFact:
    """A prompt and what completes it: a fact that an edit should leave alone.

    Attributes:
        prompt: Text to be completed. `{}` marks the place of the edit's subject, where the fact is about it.
        answer: What the model says, or should go on saying.

    Example:
        >>> sl.KnownFact("The currency of {} is the", "pound").answer
        'pound'
    """

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.prompt.strip() or not self.answer.strip():
            raise InputError(f"A fact needs a prompt and an answer that are not empty, and {self!r} was given.")


@dataclass(frozen=True)
class FactEdit:
    """One fact to change: which subject, in which words, to what; and what has to stay.

    Example:
        >>> edit = sl.FactEdit(
        ...     "the United Kingdom",
        ...     "The capital of {} is",
        ...     target_new="Manchester",
        ...     target_true="London",
        ...     same_subject=(sl.KnownFact("The currency of {} is the", "pound"),),
        ... )
        >>> edit.text
        'The capital of the United Kingdom is'

    Attributes:
        subject: Whose fact it is.
        prompt: Text to be completed by the object, with `{}` once where the subject stands.
        target_new: The object that the model should say, without a space before it.
        target_true: The object that it says now.
        paraphrases: The same question in other words, whole texts.
        same_subject: Other facts of the subject, each prompt with `{}` once. DiKE learns to keep them apart; locality is
            measured on them.
        neighborhood: Facts of other subjects, whole texts.
        relation: What kind of fact it is, for tables.
        generation: Beginnings about the subject to be continued at length, to see whether the model still speaks fluently.
    """

    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    same_subject: tuple[KnownFact, ...] = ()
    neighborhood: tuple[KnownFact, ...] = ()
    relation: str | None = None
    generation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("paraphrases", "same_subject", "neighborhood", "generation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.subject.strip() or not self.target_new.strip():
            raise InputError(
                f"An edit needs a subject and a target_new that are not empty, and {self!r:.200} was given."
            )
        for prompt in (self.prompt, *(each.prompt for each in self.same_subject)):
            if prompt.count(HERE) != 1:
                raise InputError(
                    f"The subject stands where a prompt has {HERE}, once, as in 'The capital of {HERE} is', and "
                    f"{prompt!r} has it {prompt.count(HERE)} times."
                )

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.about(self.prompt)

    def about(self, prompt: str) -> str:
        """A prompt with the subject in its place."""
        return prompt.replace(HERE, self.subject)


def check_facts(facts: Iterable[FactEdit]) -> list[FactEdit]:
    """The facts of an edit as a list.

    Raises:
        InputError: If there are none, one is something else, or two of them change the same prompt to different objects.
    """
    found = list(facts)
    others = [each for each in found if not isinstance(each, FactEdit)]
    if others:
        raise InputError(
            f"Facts to edit are sl.FactEdits, and one is a {type(others[0]).__name__}. Read them with sl.read_facts(path)."
        )
    if not found:
        raise InputError("At least one fact to edit is needed, and there are none. Give sl.FactEdit(...)s in a list.")
    wanted: dict[str, str] = {}
    for each in found:
        if wanted.setdefault(each.text, each.target_new) != each.target_new:
            raise InputError(
                f"Two facts change {each.text!r}, one to {wanted[each.text]!r} and one to {each.target_new!r}. Keep one."
            )
    return found
