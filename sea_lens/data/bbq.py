"""BBQ (Parrish et al. 2022), as published and as Hugging Face has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sea_lens.data.items import BBQQuestion
from sea_lens.data.prompts import filled
from sea_lens.data.records import Record
from sea_lens.errors import InputError
from sea_lens.wording import either, option

UNKNOWN_ANSWERS = (
    "Unknown",
    "Cannot answer",
    "Can't be determined",
    "Cannot be determined",
    "Can't answer",
    "Not known",
    "Not enough info",
    "Not enough information",
    "Not answerable",
    "Undetermined",
)
"""The answers in BBQ's files that say that the answer is not known, as HELM and lm-eval list them."""
_UNKNOWN = {answer.lower() for answer in UNKNOWN_ANSWERS}
CONDITIONS = ("disambig", "ambig")


class BBQRow(NamedTuple):
    """A row of BBQ. `category` and what follows it are None if the file does not say.

    Attributes:
        context: The situation.
        question: The question about it.
        right: The right answer.
        wrong: The other two answers.
        category: The kind of bias, such as `Age`.
        context_condition: `"disambig"` if the context tells the answer, `"ambig"` if not.
        unknown: The answer that says that it is not known.
        stereotyped: The answers that follow the stereotype, most often one.
    """

    context: str
    question: str
    right: str
    wrong: tuple[str, str]
    category: str | None
    context_condition: str | None
    unknown: str | None
    stereotyped: tuple[str, ...] | None


def read_bbq(
    records: Iterable[Record], *, context_condition: str | None = None, template: str = "{context} {question}"
) -> Iterator[BBQQuestion]:
    """Questions of BBQ, in file order.

    Args:
        records: Rows with `context`, `question`, `ans0` to `ans2` and `label` (Elfsong/BBQ on Hugging Face: `answer_label`).
            `question_polarity`, `answer_info` and `additional_metadata` tell the unknown and the stereotyped answers.
        context_condition: The rows to keep: `"disambig"`, `"ambig"`, or None for both.
        template: How `{context}` and `{question}` become the prompt.

    Raises:
        InputError: If a field is missing or has an impossible value (which line), or no row has the condition.
    """
    if context_condition not in (*CONDITIONS, None):
        raise InputError(
            f'context_condition is "disambig", "ambig" or {either("None", "none")} for both, and {context_condition!r} was '
            "given."
        )
    if any(template.count(part) != 1 for part in ("{context}", "{question}")):
        raise InputError(f"A template holds {{context}} and {{question}} once each, and {template!r} does not.")
    others = kept = 0
    for record in records:
        if context_condition is not None and record.text("context_condition") != context_condition:
            others += 1
            continue
        row = bbq_row(record)
        kept += 1
        prompt = filled(template, {"context": row.context, "question": row.question})
        yield BBQQuestion(prompt, (row.right,), *row[3:])
    if others and not kept:
        raise InputError(
            f"None of the {others} rows of BBQ has the context condition {context_condition!r}. Read others with "
            f"{option('context_condition', None)}."
        )


def bbq_row(record: Record) -> BBQRow:
    """A row of BBQ.

    Raises:
        InputError: If a field is missing or has an impossible value.
    """
    name = "answer_label" if "answer_label" in record.fields and "label" not in record.fields else "label"
    label = record.fields.get(name)
    label = int(label) if isinstance(label, str) and label.strip() in ("0", "1", "2") else label
    if not isinstance(label, (int, float)) or label not in (0, 1, 2):
        raise InputError(f"{record.where}: `{name}` must be 0, 1 or 2, and is {label!r}. Is this a BBQ file?")
    answers = [record.text(f"ans{i}") for i in range(3)]
    right, first, second = [answers[i] for i in sorted(range(3), key=lambda index: index != label)]
    return BBQRow(
        record.text("context"),
        record.text("question"),
        right,
        (first, second),
        record.optional_text("category"),
        record.optional_text("context_condition"),
        *_bias_of(record, answers),
    )


def _bias_of(record: Record, answers: Sequence[str]) -> tuple[str | None, tuple[str, ...] | None]:
    """The answer that says unknown, and the answers that follow the stereotype, by lm-eval's rule.

    A stereotyped answer to a negative question ("who was forgetful?") names a member of the stereotyped group; a
    stereotyped answer to any other question names someone else.
    """
    polarity, info = record.fields.get("question_polarity"), record.fields.get("answer_info")
    metadata = record.fields.get("additional_metadata")
    if polarity is None and info is None and metadata is None:
        return None, None
    groups = metadata.get("stereotyped_groups") if isinstance(metadata, Mapping) else None
    place = record.fields.get("target_loc", record.fields.get("target_label"))
    if "answer_info" not in record.fields or (groups is None and place in (0, 1, 2)):
        return _bias_by_place(answers, polarity, place)
    if polarity not in ("neg", "nonneg") or not isinstance(info, Mapping) or not isinstance(groups, list):
        raise InputError(
            f"{record.where}: `question_polarity` must be neg or nonneg, `answer_info` an object, and `additional_metadata` "
            "an object with `stereotyped_groups`. Correct the row, or leave out all three."
        )
    described: list[list[str]] = []
    for i in range(3):
        names = info.get(f"ans{i}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{record.where}: `answer_info` must have a list of texts for each of ans0 to ans2.")
        described.append(names)
    targets = {str(group).lower() for group in groups}
    members = [
        # Some rows of Race_x_gender do not describe a Latina.
        answer_groups(names) if any(names) else ({"latino"} if "Latina" in answer else set[str]())
        for names, answer in zip(described, answers, strict=True)
    ]
    unknown = [
        answer for names, answer in zip(described, answers, strict=True) if names and names[-1].lower() == "unknown"
    ]
    if len(unknown) != 1:
        raise InputError(f"{record.where}: exactly one answer must be described as unknown, and {len(unknown)} are.")
    stereotyped = [
        answer
        for answer, own in zip(answers, members, strict=True)
        if answer != unknown[0] and (own & targets if polarity == "neg" else not own & targets)
    ]
    return unknown[0], tuple(stereotyped)


def _bias_by_place(
    answers: Sequence[str], polarity: object, place: object
) -> tuple[str | None, tuple[str, ...] | None]:
    """The same where answers are not described: by their texts, and by where the target of the stereotype stands."""
    unknown = [answer for answer in answers if answer.strip().rstrip(".").lower() in _UNKNOWN]
    if len(unknown) != 1:
        return None, None
    if place not in (0, 1, 2) or polarity not in ("neg", "nonneg"):
        return unknown[0], None
    target = answers[int(place)]
    followed = [answer for answer in answers if answer != unknown[0] and (answer == target) is (polarity == "neg")]
    return unknown[0], tuple(followed)


def answer_groups(names: Sequence[str]) -> set[str]:
    """The groups that an answer's description names, in lower case.

    They are taken apart as lm-eval does it, but by whole words: lm-eval finds the man in German, Roman and Coleman.

    Example:
        >>> sorted(answer_groups(["Khalil", "lowSES-M-Black"]))
        ['black', 'khalil', 'low ses', 'm']
    """
    found = set()
    for name in names:
        text = re.sub(r"\b(lowSES|highSES|M|F)-", lambda match: match[1] + "_", name)
        text = re.sub(r"\b(woman|girl)\b", r"F_\1", text)
        text = re.sub(r"\b(man|boy)\b", r"M_\1", text)
        for words in ("low SES", "high SES", "non Obese", "non Disabled", "non Trans"):
            text = text.replace(words.replace(" ", ""), words)
        found |= set(text.lower().split("_"))
    return found
