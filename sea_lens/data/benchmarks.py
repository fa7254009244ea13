"""Readers of published files, one per format: HaluEval, BBQ, TruthfulQA, CrowS-Pairs.

A reader gives the rows of a file as published. `Demonstrations.from_*` and `Questions.from_*` make their rows of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from sea_lens.data.records import Record, first_fields, read_csv_rows, read_json_objects
from sea_lens.errors import InputError

Layout = Literal["halueval", "bbq", "truthfulqa", "crows_pairs"]
LAYOUTS: Mapping[Layout, tuple[bool, frozenset[str]]] = {
    "halueval": (False, frozenset({"right_answer", "hallucinated_answer"})),
    "bbq": (False, frozenset({"ans0", "ans1", "ans2", "label"})),
    "truthfulqa": (True, frozenset({"Question", "Best Answer"})),
    "crows_pairs": (True, frozenset({"sent_more", "sent_less"})),
}
"""Published layouts: whether the file is CSV (or JSON), and the columns that tell it."""
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


def layout_of(path: str | Path) -> Layout | None:
    """The published layout of a file, told from the columns of its first row; None for any other file.

    Raises:
        FileFormatError: If the first row cannot be read.
    """
    is_csv, fields = Path(path).suffix.lower() == ".csv", first_fields(path)
    return next((name for name, (csv, columns) in LAYOUTS.items() if csv is is_csv and fields >= columns), None)


class HaluEvalRow(NamedTuple):
    """A row of HaluEval's QA file: `right` is the right answer, `wrong` the hallucinated one."""

    question: str
    right: str
    wrong: str


def read_halueval(path: str | Path, *, with_knowledge: bool = False) -> list[HaluEvalRow]:
    """Reads HaluEval's QA file; see `Demonstrations.from_halueval`."""
    return [
        HaluEvalRow(
            f"{record.text('knowledge')}\n{record.text('question')}" if with_knowledge else record.text("question"),
            record.text("right_answer"),
            record.text("hallucinated_answer"),
        )
        for record in read_json_objects(path)
    ]


class TruthfulQARow(NamedTuple):
    """A row of TruthfulQA, the best answer first among the right ones."""

    question: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    category: str


def read_truthfulqa(path: str | Path) -> list[TruthfulQARow]:
    """Reads `TruthfulQA.csv`; see `Questions.from_truthfulqa`."""
    return [_truthfulqa_row(record) for record in read_csv_rows(path)]


def _truthfulqa_row(record: Record) -> TruthfulQARow:
    question, best = record.text("Question").strip(), record.text("Best Answer").strip()
    correct, incorrect = (record.text(f"{kind} Answers").split(";") for kind in ("Correct", "Incorrect"))
    right, wrong = _answers([best, *correct]), _answers(incorrect)
    if not question or not best or not wrong:
        raise InputError(
            f"{record.where}: each row needs a text in 'Question' and 'Best Answer', and at least one answer in "
            "'Incorrect Answers'. Fill them in, or delete the row."
        )
    return TruthfulQARow(question, right, wrong, record.text("Category").strip())


def _answers(pieces: Sequence[str]) -> tuple[str, ...]:
    """The answers that say something, each once and with a final full stop."""
    answers: dict[str, str] = {}
    for piece in map(str.strip, pieces):
        if piece.rstrip("."):
            answers.setdefault(piece.rstrip(".").lower(), piece if piece.endswith(".") else piece + ".")
    return tuple(answers.values())


class CrowsPairsRow(NamedTuple):
    """A pair of sentences, taken apart where they differ: `less` and `more` are the rests of the two, by stereotyping."""

    shared: str
    less: str
    more: str
    bias_type: str


def read_crows_pairs(path: str | Path) -> list[CrowsPairsRow]:
    """Reads CrowS-Pairs; see `Questions.from_crows_pairs`."""
    return [_crows_pair(record) for record in read_csv_rows(path)]


def _crows_pair(record: Record) -> CrowsPairsRow:
    more, less = record.text("sent_more").split(), record.text("sent_less").split()
    if not more or not less or more == less:
        raise InputError(
            f"{record.where}: 'sent_more' and 'sent_less' must be two different sentences. Check this row."
        )
    shortest = min(len(more), len(less))
    shared = next((i for i in range(shortest) if more[i] != less[i]), shortest - 1)
    beginning, rest, other = (" ".join(words) for words in (less[:shared], less[shared:], more[shared:]))
    return CrowsPairsRow(beginning, rest, other, record.text("bias_type").strip())


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

    @property
    def prompt(self) -> str:
        """Context and question, with a space between them."""
        return f"{self.context} {self.question}"


def read_bbq(path: str | Path, context_condition: str | None = None) -> list[BBQRow]:
    """Reads a BBQ file, in file order.

    Args:
        path: A `.jsonl` file with `context`, `question`, `ans0` to `ans2`, `label` and `context_condition`.
            `question_polarity`, `answer_info` and `additional_metadata` tell the unknown and the stereotyped answers.
        context_condition: The rows to keep: `"disambig"`, `"ambig"`, or None for both.

    Raises:
        FileFormatError: If the file is malformed (which line).
        InputError: If a field is missing or has an impossible value (which line).
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
        right, first, second = [answers[i] for i in sorted(range(3), key=lambda index: index != label)]
        unknown, stereotyped = _bias_of(record, answers)
        rows.append(
            BBQRow(
                record.text("context"),
                record.text("question"),
                right,
                (first, second),
                record.optional_text("category"),
                record.optional_text("context_condition"),
                unknown,
                stereotyped,
            )
        )
    return rows


def _bias_of(record: Record, answers: Sequence[str]) -> tuple[str | None, tuple[str, ...] | None]:
    """The answer that says unknown, and the answers that follow the stereotype, by lm-eval's rule.

    A stereotyped answer to a negative question ("who was forgetful?") names a member of the stereotyped group; a
    stereotyped answer to any other question names someone else.
    """
    polarity, info = record.fields.get("question_polarity"), record.fields.get("answer_info")
    metadata = record.fields.get("additional_metadata")
    if polarity is None and info is None and metadata is None:
        return None, None
    groups = metadata.get("stereotyped_groups") if isinstance(metadata, dict) else None
    if polarity not in ("neg", "nonneg") or not isinstance(info, dict) or not isinstance(groups, list):
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
