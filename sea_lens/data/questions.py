"""Questions: prompts, each with right and wrong answers. Effects, ablations and evaluations are measured on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sea_lens.arguments import check_arguments
from sea_lens.data.chat import Message, as_prompt
from sea_lens.data.containers import Columns, name_of, read_rows
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.items import Question, question_of
from sea_lens.data.layouts import read_source
from sea_lens.data.prompts import Q_AND_A, PromptRow, PromptRows
from sea_lens.data.records import as_texts, parallel_lists
from sea_lens.errors import InputError


@dataclass(frozen=True, repr=False)
class Questions(PromptRows[Question]):
    """An immutable list of questions; every method returns a new one.

    Attributes:
        rows: The questions.
        source: Where they come from, for messages.

    Example:
        >>> asked = sl.Questions.from_lists(["Is it 5?", "Is it 6?"], [["Yes."], ["No."]], [["No."], ["Yes.", "It is."]])
        >>> asked[1]
        Question(prompt='Is it 6?', right=('No.',), wrong=('Yes.', 'It is.'), category=None)
        >>> len(asked.fitting), len(asked.held_out)
        (1, 1)
    """

    called: ClassVar[str] = "questions"
    row_type: ClassVar[type[PromptRow]] = Question

    def __post_init__(self) -> None:
        PromptRows.__post_init__(self)
        unanswered = [index for index, row in enumerate(self.rows) if not row.right]
        if unanswered:
            raise InputError(f"Questions {unanswered[:10]} of {self.source} have no right answer. Give each one.")

    # --- two halves --------------------------------------------------------------------------------------------------

    @property
    def fitting(self) -> Questions:
        """The half to choose settings by: the first part of `split(0.5, seed=0)`. Nothing is stratified.

        Raises:
            InputError: If there is only one prompt.
        """
        return self.split()[0]

    @property
    def held_out(self) -> Questions:
        """The half to report on: all questions that are not in `fitting`.

        Raises:
            InputError: If there is only one prompt.
        """
        return self.split()[1]

    # --- reading -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_lists(
        cls,
        prompts: Iterable[str | Sequence[Message]],
        right: Iterable[str | Iterable[str]],
        wrong: Iterable[str | Iterable[str]],
    ) -> Questions:
        """Questions from three lists of one length.

        Args:
            prompts: One text per question, or a list of chat messages for `with_chat_template`.
            right: The right answers to each question: a list of texts, or one text.
            wrong: The wrong answers to each question: a list of texts, which may be empty, or one text.

        Raises:
            InputError: If a list holds anything but texts, the lists are empty or differ in length, or a question has no
                right answer.

        Example:
            >>> sl.Questions.from_lists(["Is it 5?"], ["Yes."], [["No.", "Never."]])[0].right
            ('Yes.',)
        """
        columns = parallel_lists({"prompts": prompts, "right": right, "wrong": wrong})
        rows = [
            Question(as_prompt(prompt, f"prompts[{i}]"), as_texts(these, f"right[{i}]"), as_texts(those, f"wrong[{i}]"))
            for i, (prompt, these, those) in enumerate(zip(*columns.values(), strict=True))
        ]
        return cls(tuple(rows))

    @classmethod
    def from_demonstrations(cls, demonstrations: Demonstrations) -> Questions:
        """The demonstrations' prompts, with the positive completion as right and the negative as wrong answer.

        Use them to choose settings on the data of a fit. They do not tell how the fit does on other data.

        Example:
            >>> rows = sl.Demonstrations.from_lists(["Is it 5?"], ["Yes."], ["No."])
            >>> sl.Questions.from_demonstrations(rows)[0].wrong
            ('No.',)
        """
        check_arguments(Questions.from_demonstrations, locals())
        rows = tuple(Question(row.prompt, (row.positive,), (row.negative,)) for row in demonstrations)
        return cls(rows, demonstrations.source, demonstrations.form)

    @classmethod
    def from_file(
        cls,
        source: Any,
        n: int | None = None,
        seed: int = 0,
        *,
        layout: str = "auto",
        columns: Columns | None = None,
        template: str | Mapping[str, str] | None = None,
        **options: object,
    ) -> Questions:
        r"""Questions from a file of any layout that is known (`data/layouts.py` lists them and their options).

        Args:
            source: A path to CSV, TSV, JSON, JSON lines or parquet, each also with `.gz`; a pandas data frame; a split of
                `datasets`; or a list of dicts.
            n: How many to sample; None for all, in file order.
            seed: Seed of the sample.
            layout: `"auto"` tells the layout from the columns.
            columns: Which columns hold what is read, where they have other names: `{"prompt": "question"}`.
            template: What each question is put into, in place of what its layout puts it into (TruthfulQA: `Q:` and `A:`;
                BBQ: `Answer:` on a line of its own); or such templates by layout.
            options: Options of the layout, such as `context_condition="ambig"` (BBQ) or `binary=True` (TruthfulQA).

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If no layout is known, a field is missing or has an impossible value (which line), the template does
                not suit, or there are fewer than `n` rows.

        Example:
            >>> rows = [{"question": "Is it (A) 5 or (B) 6?", "answer_matching_behavior": "(A)",
            ...          "answer_not_matching_behavior": "(B)"}]
            >>> sl.Questions.from_file(rows, template="{question}\nAnswer:")[0].prompt
            'Is it (A) 5 or (B) 6?\nAnswer:'
        """
        check_arguments(Questions.from_file, {"n": n, "seed": seed, "layout": layout, "columns": columns})
        found, records = read_source(source, layout, columns)
        own = template.get(found.name) if isinstance(template, Mapping) else template
        if own is not None and not found.takes_template:
            raise InputError(
                f"{name_of(source)} holds pairs of sentences, around which no template goes. Leave it out."
            )
        if own is not None and found.name == "bbq" and "{context}" in own:
            options, own = {**options, "template": own}, "{question}"
        elif own is None:
            own = found.template
        questions = cls(tuple(found.questions(records, options)), name_of(source))
        if own is not None:
            questions = questions.with_prompt_template(own)
        return questions if n is None else questions.sample(n, seed)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Questions:
        """Questions from one JSON object per line with `prompt`, `right`, `wrong` and, if known, `category`.

        `right` and `wrong` are a text or a list of texts. They may be called `true` and `false`, as in files of version 0.1,
        or `positive` and `negative`, as in demonstrations. BBQ's questions come back from `to_jsonl` as such.

        Raises:
            FileFormatError: If the file cannot be read or a line is not a JSON object (which line).
            InputError: If a field is missing or is not text, or a question has no right answer (which line).

        Example:
            >>> sl.Questions.from_lists(["Is it 5?"], ["Yes."], ["No."]).to_jsonl("questions.jsonl")
            >>> sl.Questions.from_jsonl("questions.jsonl")
            Questions(1 from questions.jsonl; first prompt: 'Is it 5?')
        """
        check_arguments(Questions.from_jsonl, locals())
        return cls(tuple(map(question_of, read_rows(path, container="json"))), str(path))

    @classmethod
    def from_truthfulqa(cls, path: str | Path, *, template: str = Q_AND_A, binary: bool = False) -> Questions:
        r"""Questions from `TruthfulQA.csv` or Hugging Face's `truthful_qa`, the best answer first among the right ones.

        Empty answers and repeats (but for case and the final full stop) are dropped, and every answer ends in a full stop,
        as in the published scoring.

        Args:
            path: A CSV file with `Question`, `Best Answer`, `Correct Answers`, `Incorrect Answers` and `Category`; or rows of
                `generation` or `multiple_choice`.
            template: What each question is put into.
            binary: Whether only the best answer and the best incorrect one are read, as in the binary choice of 2025.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a column is missing, a row lacks its question or its answers (which line), or the template has no
                `{question}`.

        Example:
            >>> from pathlib import Path
            >>> _ = Path("TruthfulQA.csv").write_text(
            ...     "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
            ...     "Adversarial,Myths,Where is Oslo?,In Norway,In Norway; In Europe,In Peru; In Asia,none\n"
            ... )
            >>> sl.Questions.from_truthfulqa("TruthfulQA.csv")[0].wrong
            ('In Peru.', 'In Asia.')
        """
        check_arguments(Questions.from_truthfulqa, locals())
        return cls.from_file(path, layout="truthfulqa", template=template, binary=binary)

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
        r"""Questions from a BBQ file as published, with one right and two wrong answers per question.

        Args:
            path: A `.jsonl` file with `context`, `question`, `ans0` to `ans2`, `label` and `context_condition`.
            n: How many to sample; None for all, in file order.
            seed: Seed of the sample.
            context_condition: `"disambig"`, `"ambig"`, or None for both.
            template: What each question, after its context and a space, is put into. A template with `{context}` and
                `{question}` gets them apart, as in lm-eval's `"{context}\n\nQ: {question}\nA:"`.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a field is missing or has an impossible value, the file has fewer than `n` rows, or the template
                has no `{question}`.

        Example:
            >>> row = {"context": "Ada, 80, met Bo, 20.", "question": "Who had lost something?", "question_polarity": "neg",
            ...        "ans0": "Ada", "ans1": "Bo", "ans2": "Not known", "label": 2, "context_condition": "ambig"}
            >>> row["answer_info"] = {"ans0": ["Ada", "old"], "ans1": ["Bo", "nonOld"], "ans2": ["Not known", "unknown"]}
            >>> row["additional_metadata"] = {"stereotyped_groups": ["old"]}
            >>> pd.Series({**row, "category": "Age"}).to_json("Age.jsonl")
            >>> sl.Questions.from_bbq("Age.jsonl")[0].right
            ('Not known',)
        """
        check_arguments(Questions.from_bbq, locals())
        return cls.from_file(path, n, seed, layout="bbq", template=template, context_condition=context_condition)

    @classmethod
    def from_crows_pairs(
        cls, path: str | Path, n: int | None = None, seed: int = 0, *, direction: str | None = None
    ) -> Questions:
        r"""Questions from CrowS-Pairs as published: pairs of sentences, one of which stereotypes more than the other.

        The prompt is the words that both begin with, the right answer the rest of the less stereotyping sentence and the
        wrong answer the rest of the other. So the two answers differ in summed log-probability as the whole sentences do,
        and no template goes around the prompt. **Where the sentences differ from the first word on, the prompt is empty.**
        Where one sentence is the beginning of the other, the last shared word is part of both answers. Runs of white space
        count as one space.

        Args:
            path: A CSV file (or JSON lines) with `sent_more`, `sent_less`, `bias_type` and perhaps `stereo_antistereo`.
            n: How many to sample; None for all, in file order.
            seed: Seed of the sample.
            direction: Only pairs that show a stereotype (`"stereo"`) or go against one (`"antistereo"`); None for both.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a column is missing, a sentence is empty, both are the same (which line), or the file has fewer
                than `n` rows.

        Example:
            >>> from pathlib import Path
            >>> _ = Path("crows_pairs.csv").write_text(
            ...     "sent_more,sent_less,stereo_antistereo,bias_type\nThe old forget.,The young forget.,stereo,age\n"
            ... )
            >>> question = sl.Questions.from_crows_pairs("crows_pairs.csv")[0]
            >>> question.prompt, question.right
            ('The', ('young forget.',))
        """
        check_arguments(Questions.from_crows_pairs, locals())
        return cls.from_file(path, n, seed, layout="crows_pairs", direction=direction)
