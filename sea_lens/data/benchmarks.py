"""BBQ files as published, read once for demonstrations and questions alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sea_lens.data.records import Record, read_json_objects
from sea_lens.errors import InputError

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
"""The ways in which BBQ's files say that the answer is not known, as HELM and lm-eval list them."""


@dataclass(frozen=True)
class BBQRow:
    """One row of a BBQ file.

    Attributes:
        context: What is told.
        question: What is asked.
        gold: The right answer.
        wrong: The other two.
        category: What the bias is about, such as `Age`; None if the file does not say.
        context_condition: `"ambig"` or `"disambig"`: whether the context tells the answer; None if the file does not say.
        unknown: The answer which says that it is not known; None if the file does not say.
        stereotyped: The answers that follow the stereotype, most often one; None if the file does not say.
    """

    context: str
    question: str
    gold: str
    wrong: tuple[str, str]
    category: str | None
    context_condition: str | None
    unknown: str | None
    stereotyped: tuple[str, ...] | None

    @property
    def prompt(self) -> str:
        """Context and question."""
        return f"{self.context} {self.question}"


def read_bbq(path: str | Path, context_condition: str | None) -> list[BBQRow]:
    """Reads the rows of one context condition, in file order.

    Args:
        path: A `.jsonl` file with `context`, `question`, `ans0` to `ans2`, `label` and `context_condition`. What is unknown
            and what a stereotype come from `question_polarity`, `answer_info` and `additional_metadata`.
        context_condition: `"disambig"`, `"ambig"`, or None for both.

    Raises:
        FileFormatError: If the file is malformed (which line).
        InputError: If a field is missing or impossible (which line).
    """
    if context_condition not in ("disambig", "ambig", None):
        raise InputError(
            f'context_condition is "disambig", "ambig" or None for both, and {context_condition!r} was given.'
        )
    rows = []
    for record in read_json_objects(path):
        if context_condition is not None and record.text("context_condition") != context_condition:
            continue
        label = record.fields.get("label")
        if label not in (0, 1, 2):
            raise InputError(f"{record.where}: `label` must be 0, 1 or 2, and is {label!r}. Is this a BBQ file?")
        answers = [record.text(f"ans{i}") for i in range(3)]
        gold, first, second = [answers[i] for i in sorted(range(3), key=lambda index: index != label)]
        unknown, stereotyped = _bias_of(record, answers)
        rows.append(
            BBQRow(
                record.text("context"),
                record.text("question"),
                gold,
                (first, second),
                record.optional_text("category"),
                record.optional_text("context_condition"),
                unknown,
                stereotyped,
            )
        )
    return rows


def _bias_of(record: Record, answers: Sequence[str]) -> tuple[str | None, tuple[str, ...] | None]:
    """The answer that says unknown, and those that follow the stereotype, by lm-eval's rule.

    A negative question ("who was forgetful?") is answered by stereotype with a member of the stereotyped group, and a
    non-negative one with one who is not.
    """
    polarity, info = record.fields.get("question_polarity"), record.fields.get("answer_info")
    metadata = record.fields.get("additional_metadata")
    if polarity is None and info is None and metadata is None:
        return None, None
    groups = metadata.get("stereotyped_groups") if isinstance(metadata, dict) else None
    if polarity not in ("neg", "nonneg") or not isinstance(info, dict) or not isinstance(groups, list):
        raise InputError(
            f"{record.where}: to tell stereotypes, `question_polarity` must be neg or nonneg, `answer_info` an object and "
            "`additional_metadata` hold `stereotyped_groups`. Mend the row, or leave out all three."
        )
    described: list[list[str]] = []
    for i in range(3):
        names = info.get(f"ans{i}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{record.where}: `answer_info` must have a list of texts for each of ans0 to ans2.")
        described.append(names)
    targets = {str(group).lower() for group in groups}
    members = [
        # Some rows of Race_x_gender lack what describes a Latina.
        answer_groups(names) if any(names) else ({"latino"} if "Latina" in answer else set[str]())
        for names, answer in zip(described, answers, strict=True)
    ]
    unknown = [
        answer for names, answer in zip(described, answers, strict=True) if names and names[-1].lower() == "unknown"
    ]
    if len(unknown) != 1:
        raise InputError(f"{record.where}: one answer must be described as unknown, and {len(unknown)} are.")
    stereotyped = [
        answer
        for answer, own in zip(answers, members, strict=True)
        if answer != unknown[0] and (own & targets if polarity == "neg" else not own & targets)
    ]
    return unknown[0], tuple(stereotyped)


def answer_groups(names: Sequence[str]) -> set[str]:
    """The groups that an answer's description names, in lower case: `["Khalil", "lowSES-M-Black"]` is of three.

    As lm-eval takes them apart, but by whole words: it finds the man in German, Roman and Coleman.
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
