"""Questions with answers: TruthfulQA in its three layouts, HaluEval's three tasks, A/B choices, statements with labels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sea_lens.data.items import Question
from sea_lens.data.records import Record
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.wording import either, option

# --- TruthfulQA --------------------------------------------------------------------------------------------------------


def read_truthfulqa(records: Iterable[Record], *, binary: bool = False) -> Iterator[Question]:
    """TruthfulQA as published (CSV) and as Hugging Face has it, the best answer first among the right ones.

    Empty answers and repeats (but for case and the final full stop) are dropped, and every answer ends in a full stop.

    Args:
        records: Rows with `Question`, `Best Answer`, `Correct Answers`, `Incorrect Answers` (`;`-separated) and perhaps
            `Best Incorrect Answer`, as published since 2025; with `question`, `best_answer`, `correct_answers` and
            `incorrect_answers` (Hugging Face's `generation`); or with `question`, `mc1_targets` and `mc2_targets` (its
            `multiple_choice`).
        binary: Whether only the best answer and the best incorrect one are taken, as in the binary choice of 2025.

    Raises:
        InputError: If a column is missing, or a row lacks its question or its answers (which line).
    """
    for record in records:
        if "mc1_targets" in record.fields or "mc2_targets" in record.fields:
            row = _of_targets(record)
        elif "best_answer" in record.fields:
            row = _of_answers(
                record,
                record.text("question"),
                [record.text("best_answer"), *record.texts("correct_answers")],
                record.texts("incorrect_answers"),
                record.optional_text("category"),
                ("question", "best_answer", "incorrect_answers"),
            )
        else:
            correct, incorrect = (record.text(f"{kind} Answers").split(";") for kind in ("Correct", "Incorrect"))
            best_wrong = record.optional_text("Best Incorrect Answer") or ""
            row = _of_answers(
                record,
                record.text("Question"),
                [record.text("Best Answer"), *correct],
                [best_wrong, *incorrect],
                (record.optional_text("Category") or "").strip() or None,
                ("Question", "Best Answer", "Incorrect Answers"),
            )
            if binary and not best_wrong.strip():
                raise InputError(f"{record.where}: there is no 'Best Incorrect Answer'. Take TruthfulQA.csv of 2025.")
        yield Question(row.prompt, row.right[:1], row.wrong[:1], row.category) if binary else row


def _of_answers(
    record: Record,
    question: str,
    right: Sequence[str],
    wrong: Sequence[str],
    category: str | None,
    names: tuple[str, str, str],
) -> Question:
    found = Question(question.strip(), _ended(right), _ended(wrong), category)
    if not found.prompt or not right[0].strip() or not found.right or not found.wrong:
        raise InputError(
            f"{record.where}: each row needs a text in {names[0]!r} and {names[1]!r}, and at least one answer in "
            f"{names[2]!r}. Fill them in, or delete the row."
        )
    return found


def _of_targets(record: Record) -> Question:
    sides: dict[bool, list[str]] = {True: [], False: []}
    for name in ("mc1_targets", "mc2_targets"):
        if name not in record.fields:
            continue
        inside = record.inside(name)
        choices, labels = inside.texts("choices"), inside.listed("labels")
        if len(choices) != len(labels):
            raise InputError(f"{inside.where}: there are {len(choices)} choices and {len(labels)} labels.")
        for choice, label in zip(choices, labels, strict=True):
            sides[label == 1].append(choice)
    names = ("question", "mc1_targets", "mc2_targets")
    return _of_answers(
        record, record.text("question"), sides[True] or [""], sides[False], record.optional_text("category"), names
    )


def _ended(pieces: Sequence[str]) -> tuple[str, ...]:
    """The answers that say something, each once and with a final full stop."""
    answers: dict[str, str] = {}
    for piece in map(str.strip, pieces):
        if piece.rstrip("."):
            answers.setdefault(piece.rstrip(".").lower(), piece if piece.endswith(".") else piece + ".")
    return tuple(answers.values())


# --- HaluEval ----------------------------------------------------------------------------------------------------------


def read_halueval(records: Iterable[Record], *, with_knowledge: bool = False) -> Iterator[Question]:
    """HaluEval's tasks: the right answer, response or summary against the hallucinated one.

    The prompt is the question; the dialogue up to where the assistant speaks; or the document and a line `Summary:`.

    Args:
        records: Rows with `question`, `right_answer` and `hallucinated_answer`; with `dialogue_history`, `right_response` and
            `hallucinated_response`; or with `document`, `right_summary` and `hallucinated_summary`.
        with_knowledge: Whether the prompt opens with the row's `knowledge`. Summaries have none.

    Raises:
        InputError: If a field is missing.
    """
    for record in records:
        if "right_response" in record.fields or "hallucinated_response" in record.fields:
            prompt, side = f"{record.text('dialogue_history').rstrip()} [Assistant]:", "response"
        elif "right_summary" in record.fields or "hallucinated_summary" in record.fields:
            prompt, side = f"{record.text('document').rstrip()}\nSummary:", "summary"
        else:
            prompt, side = record.text("question"), "answer"
        if with_knowledge and side != "summary":
            prompt = f"{record.text('knowledge')}\n{prompt}"
        yield Question(prompt, (record.text(f"right_{side}"),), (record.text(f"hallucinated_{side}"),))


# --- A/B choices -------------------------------------------------------------------------------------------------------

_CHOICE = re.compile(r"^\s*\(([A-Z])\)\s*(.*?)\s*(?=^\s*\([A-Z]\)|\Z)", re.M | re.S)
_LETTER = re.compile(r"^\s*\(?([A-Z])\)?\s*$")


def read_choices(records: Iterable[Record], *, answers: str = "published") -> Iterator[Question]:
    """Contrastive A/B pairs of CAA (Rimsky et al. 2024), and Anthropic's persona and advanced-ai-risk questions.

    Args:
        records: Rows with `question`, `answer_matching_behavior` and `answer_not_matching_behavior`. A question ends with its
            choices, or asks for Yes or No; persona rows also have `statement` and `label_confidence`, which are not used.
        answers: `"published"`: the answers as they stand, such as `(A)` or ` Yes`. `"texts"`: the choice that a letter stands
            for, and the question without its choices.

    Raises:
        InputError: If a field is missing, or an answer names no choice of the question (which line).
    """
    if answers not in ("published", "texts"):
        raise InputError(f'answers is "published" or "texts", and {answers!r} was given.')
    for record in records:
        question = record.text("question")
        sides = record.text("answer_matching_behavior"), record.text("answer_not_matching_behavior")
        if answers == "texts":
            letters = [_LETTER.match(side) for side in sides]
            choices = dict(_CHOICE.findall(question))
            if not all(found and choices.get(found[1]) for found in letters):
                raise InputError(
                    f"{record.where}: the answers {sides[0]!r} and {sides[1]!r} name no choices of the question. Read them "
                    f"with {option('answers', 'published')}."
                )
            sides = (choices[letters[0][1]], choices[letters[1][1]])  # type: ignore[index]
            question = re.sub(r"\s*(Choices:)?\s*\Z", "", question[: _CHOICE.search(question).start()])  # type: ignore[union-attr]
        yield Question(question, (sides[0],), (sides[1],))


# --- statements --------------------------------------------------------------------------------------------------------

NEAR = 8
"""How many neighbors in sorted order a statement's partner is looked for among."""
_TRUE = {1: True, 0: False, "true": True, "false": False}


def read_statements(records: Iterable[Record], *, pairs: bool = False) -> Iterator[Question]:
    """Statements that are labelled true or false, as in Geometry of Truth (Marks and Tegmark 2023).

    Args:
        records: Rows with `statement` and `label` (1 or 0, true or false).
        pairs: False: each statement is a question, whether it is true. True: a true statement and a false one that begin with
            the same words are a pair; the prompt is what they share. What finds no partner is left out.

    Raises:
        InputError: If a column is missing or holds something else (which line), or fewer than a quarter find a
            partner.

    Warns:
        SeaLensWarning: If some find none.
    """
    rows = [(record.text("statement").strip(), record.one_of("label", _TRUE)) for record in records]
    if not pairs:
        for statement, label in rows:
            prompt = f"Is this statement true or false?\n{statement}\nAnswer:"
            yield Question(prompt, ("True" if label else "False",), ("False" if label else "True",))
        return
    found = _partners([statement.split() for statement, _ in rows], [label for _, label in rows])
    left = len(rows) - 2 * len(found)
    if 4 * left > 3 * len(rows):
        raise InputError(
            f"Only {2 * len(found)} of {len(rows)} statements have a partner that begins with the same words and is labelled "
            "otherwise, and demonstrations are pairs. "
            + either("Read them with Questions.from_file", "Give them as questions")
            + ", where each is asked about, or give prompt, positive and negative."
        )
    if left:
        warnings.warn(
            f"{left} of {len(rows)} statements have no partner that begins with the same words and were left out.",
            SeaLensWarning,
            stacklevel=2,
        )
    for shared, true, false in found:
        yield Question(shared, (true,), (false,))


def _partners(statements: Sequence[Sequence[str]], labels: Sequence[bool]) -> list[tuple[str, str, str]]:
    """Pairs that share over half of their words at the beginning, in file order: what they share, and the rests.

    Statements that begin alike are near each other once sorted; those that share most are paired first.
    """
    order = sorted(range(len(statements)), key=lambda index: list(statements[index]))
    near = [(order[i], order[j]) for i in range(len(order)) for j in range(i + 1, min(i + 1 + NEAR, len(order)))]
    shared = {
        pair: _common(*(statements[index] for index in pair)) for pair in near if labels[pair[0]] is not labels[pair[1]]
    }
    taken: set[int] = set()
    pairs = []
    for pair, words in sorted(shared.items(), key=lambda item: -item[1]):
        if taken.isdisjoint(pair) and 2 * words > min(len(statements[index]) for index in pair):
            taken.update(pair)
            pairs.append((min(pair), pair, words))
    found: list[Any] = []
    for _, pair, words in sorted(pairs):
        true, false = pair if labels[pair[0]] else pair[::-1]
        beginning, *rests = (
            " ".join(part) for part in (statements[true][:words], statements[true][words:], statements[false][words:])
        )
        found.append((beginning, rests[0], rests[1]))
    return found


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Words at the beginning that both share, but for the last word of the shorter."""
    shortest = min(len(first), len(second)) - 1
    return next((i for i in range(shortest) if first[i] != second[i]), max(shortest, 0))
