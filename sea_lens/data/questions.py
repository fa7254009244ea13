"""Questions: prompts, each with true and false completions. What effects, ablations and evaluations are measured on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sea_lens.data.benchmarks import read_bbq
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.records import Record, read_csv_rows, read_json_objects
from sea_lens.data.rows import PromptRow, PromptRows
from sea_lens.errors import InputError


@dataclass(frozen=True)
class Question(PromptRow):
    """One prompt with its known answers.

    Attributes:
        prompt: What the model is given.
        right: Completions that are right; by convention the first is the best.
        wrong: Completions that are wrong.
        category: What the question is about, where the data says so.
    """

    right: tuple[str, ...]
    wrong: tuple[str, ...]
    category: str | None = None


@dataclass(frozen=True)
class BBQQuestion(Question):
    """A question of BBQ, which has one true and two false completions.

    Attributes:
        context_condition: `"ambig"` where the context does not tell the answer, so that unknown is right; `"disambig"` where
            it does.
        unknown: The completion which says that the answer is not known.
        stereotyped: The completions that follow the stereotype.
    """

    context_condition: str | None = None
    unknown: str | None = None
    stereotyped: tuple[str, ...] | None = None


@dataclass(frozen=True, repr=False)
class Questions(PromptRows[Question]):
    """An immutable list of questions; every method returns a new one.

    Attributes:
        rows: The questions.
        source: Where they came from, for messages.
    """

    called: ClassVar[str] = "questions"

    def __post_init__(self) -> None:
        PromptRows.__post_init__(self)
        unanswered = [index for index, row in enumerate(self.rows) if not row.right]
        if unanswered:
            raise InputError(f"Questions {unanswered[:10]} of {self.source} have no true completion. Give each one.")

    @classmethod
    def from_lists(
        cls, prompts: Sequence[str], right: Sequence[Sequence[str]], wrong: Sequence[Sequence[str]]
    ) -> Questions:
        """Builds questions from three lists of one length.

        Raises:
            InputError: If the lists are empty or differ in length, or a question has no true completion.
        """
        lengths = {"prompts": len(prompts), "right": len(right), "wrong": len(wrong)}
        if len(set(lengths.values())) > 1:
            raise InputError(f"The lists must have one length, and they have {lengths}.")
        rows = zip(prompts, right, wrong, strict=True)
        return cls(tuple(Question(prompt, tuple(these), tuple(those)) for prompt, these, those in rows))

    @classmethod
    def from_demonstrations(cls, demonstrations: Demonstrations) -> Questions:
        """The demonstrations' prompts, the positive completion as the true and the negative as the false answer.

        For choosing settings on the data of a fit. What a fit has seen says nothing of how it does elsewhere.
        """
        rows = tuple(Question(row.prompt, (row.positive,), (row.negative,)) for row in demonstrations)
        return cls(rows, demonstrations.source)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Questions:
        """Reads one JSON object a line with `prompt`, `true`, `false` and, if known, `category`.

        `true` and `false` are a text or a list of texts. Lines of a demonstrations file (`prompt`, `positive`, `negative`)
        are read too, the positive completion as the true and the negative as the false answer. BBQ's questions come back
        from `to_jsonl` as such.

        Raises:
            FileFormatError: If the file cannot be read or a line is not a JSON object (which line).
            InputError: If a field is missing or no text, or a question has no true completion (which line).
        """
        return cls(tuple(map(_question, read_json_objects(path))), str(path))

    @classmethod
    def from_truthfulqa(cls, path: str | Path, *, template: str = "Q: {question}\nA:") -> Questions:
        """Reads `TruthfulQA.csv` as published, the best answer first among the true ones.

        Answers stand there separated by semicolons. Empty ones and repeats (but for case and the final full stop) are
        dropped, and each gets a final full stop if it has none, as in the published scoring.

        Args:
            path: A CSV file with `Question`, `Best Answer`, `Correct Answers`, `Incorrect Answers` and `Category`.
            template: What each question is put into.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a column is missing, or a question or its answers are (which line); or by the template.
        """
        return cls(tuple(map(_truthfulqa_question, read_csv_rows(path))), str(path)).with_prompt_template(template)

    @classmethod
    def from_bbq(
        cls,
        path: str | Path,
        n: int | None = None,
        seed: int = 0,
        *,
        context_condition: str | None = None,
        template: str = "{question}\nAnswer:",
    ) -> Questions:
        r"""Reads a BBQ file as published: the gold answer is true, the other two are false.

        Args:
            path: A `.jsonl` file with `context`, `question`, `ans0` to `ans2`, `label` and `context_condition`.
            n: How many to sample; all, in file order, for None.
            seed: Seed of the sample.
            context_condition: `"disambig"`, `"ambig"`, or None for both.
            template: What each context, with its question after a space, is put into. One with `{context}` gets them apart,
                as in lm-eval's `"{context}\n\nQ: {question}\nA:"`.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a field is missing or impossible, or fewer than `n` rows are there; or by the template.
        """
        read = read_bbq(path, context_condition)
        prompts = [row.prompt for row in read]
        if "{context}" in template:
            if template.count("{context}") > 1 or template.count("{question}") != 1:
                raise InputError(f"A template holds {{context}} and {{question}} once each, and {template!r} does not.")
            prompts = [
                "".join({"{context}": row.context, "{question}": row.question}.get(part, part) for part in parts)
                for row in read
                for parts in [re.split(r"({context}|{question})", template)]
            ]
        rows = [
            BBQQuestion(
                prompt, (row.gold,), row.wrong, row.category, row.context_condition, row.unknown, row.stereotyped
            )
            for prompt, row in zip(prompts, read, strict=True)
        ]
        questions = cls(tuple(rows), str(path))
        if "{context}" not in template:
            questions = questions.with_prompt_template(template)
        return questions if n is None else questions.sample(n, seed)

    @classmethod
    def from_crows_pairs(cls, path: str | Path, n: int | None = None, seed: int = 0) -> Questions:
        """Reads CrowS-Pairs as published: pairs of sentences, one of which stereotypes more than the other.

        The prompt is the words that both begin with, the true completion the rest of the less stereotyping sentence and
        the false one the rest of the other. So the two differ in summed log-probability by what the whole sentences do,
        and for that reason no template goes around the prompt. **Where the sentences differ from the first word on, the
        prompt is empty.** Where one sentence is the beginning of the other, the last shared word is part of both
        completions. Runs of white space count as one space.

        Args:
            path: A CSV file with `sent_more`, `sent_less` and `bias_type`.
            n: How many to sample; all, in file order, for None.
            seed: Seed of the sample.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a column is missing, a sentence empty or both the same (which line), or fewer than `n` are there.
        """
        questions = cls(tuple(map(_crows_pair, read_csv_rows(path))), str(path))
        return questions if n is None else questions.sample(n, seed)


def _question(record: Record) -> Question:
    names = [("right", "wrong"), ("true", "false"), ("positive", "negative")]  # today's, those of 0.1, demonstrations'
    right, wrong = next((pair for pair in names if pair[0] in record.fields), names[0])
    answers = record.texts(right)
    if not answers:
        raise InputError(f"{record.where}: {right!r} is empty. Give at least one completion that is right.")
    texts = record.text("prompt"), answers, record.texts(wrong), record.optional_text("category")
    if "context_condition" not in record.fields:
        return Question(*texts)
    stereotyped = record.texts("stereotyped") if "stereotyped" in record.fields else None
    return BBQQuestion(*texts, record.text("context_condition"), record.optional_text("unknown"), stereotyped)


def _truthfulqa_question(record: Record) -> Question:
    prompt, best = record.text("Question").strip(), record.text("Best Answer").strip()
    correct, incorrect = (record.text(f"{kind} Answers").split(";") for kind in ("Correct", "Incorrect"))
    true, false = _answers([best, *correct]), _answers(incorrect)
    if not prompt or not best or not false:
        raise InputError(
            f"{record.where}: each row needs a text in 'Question' and 'Best Answer', and at least one answer in "
            "'Incorrect Answers'. Fill them in, or delete the row."
        )
    return Question(prompt, true, false, record.text("Category").strip())


def _answers(pieces: Sequence[str]) -> tuple[str, ...]:
    """The answers that say something, each once and with a final full stop."""
    answers: dict[str, str] = {}
    for piece in map(str.strip, pieces):
        if piece.rstrip("."):
            answers.setdefault(piece.rstrip(".").lower(), piece if piece.endswith(".") else piece + ".")
    return tuple(answers.values())


def _crows_pair(record: Record) -> Question:
    more, less = record.text("sent_more").split(), record.text("sent_less").split()
    if not more or not less or more == less:
        raise InputError(
            f"{record.where}: 'sent_more' and 'sent_less' must be two different sentences. Check this row."
        )
    shortest = min(len(more), len(less))
    shared = next((i for i in range(shortest) if more[i] != less[i]), shortest - 1)
    prompt, true, false = (" ".join(words) for words in (less[:shared], less[shared:], more[shared:]))
    return Question(prompt, (true,), (false,), record.text("bias_type").strip())
