"""Demonstrations: prompts, each with a positive, a negative and (once the model has answered) a neutral completion."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.data.chat import Answer, Message, as_prompt, neutral_texts
from sea_lens.data.confounds import DemonstrationCheck, ReadsTexts
from sea_lens.data.containers import Columns, name_of, read_rows
from sea_lens.data.items import Demonstration, as_demonstration, demonstration_of
from sea_lens.data.layouts import read_source
from sea_lens.data.prompts import PromptRow, PromptRows, Tokenizer
from sea_lens.data.records import Record, as_text, parallel_lists
from sea_lens.errors import InputError

Answers = Callable[..., list[Answer]]
_ANSWERING: dict[str, Answers] = {}


def answers_prompts(function: Answers) -> Answers:
    """Registers how a model answers prompts. Data knows no model, so the module that runs models says it here."""
    _ANSWERING["model"] = function
    return function


@dataclass(frozen=True, repr=False)
class Demonstrations(PromptRows[Demonstration]):
    """An immutable list of demonstrations; every method returns a new one.

    Attributes:
        rows: The demonstrations.
        source: Where they come from, for messages and cards.

    Example:
        >>> sl.Demonstrations.from_lists(["Is it 5?"], ["Yes, 5."], ["No, 6"]).with_answer_ending(".")[0]
        Demonstration(prompt='Is it 5?', positive='Yes, 5.', negative='No, 6.', neutral=None)
    """

    called: ClassVar[str] = "demonstrations"
    row_type: ClassVar[type[PromptRow]] = Demonstration

    def __post_init__(self) -> None:
        PromptRows.__post_init__(self)
        if all(row.positive == row.negative for row in self.rows):
            raise InputError(
                f"The positive equals the negative in all {len(self.rows)} demonstrations of {self.source}, so nothing "
                "separates wanted from unwanted. Check which columns were read as positive and negative."
            )

    # --- reading -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_lists(
        cls,
        prompts: Iterable[str | Sequence[Message]],
        positives: Iterable[str],
        negatives: Iterable[str],
        neutrals: Iterable[str] | None = None,
    ) -> Demonstrations:
        """Demonstrations from lists of one length.

        A prompt may also be a list of chat messages, for `with_chat_template`.

        Raises:
            InputError: If a list holds anything but texts, or the lists are empty or differ in length.

        Example:
            >>> sl.Demonstrations.from_lists(["Is it 5?", "Is it 6?"], ["Yes.", "No."], ["No.", "Yes."])
            Demonstrations(2 from lists; first prompt: 'Is it 5?')
        """
        given = {"prompts": prompts, "positives": positives, "negatives": negatives}
        columns = parallel_lists(given if neutrals is None else {**given, "neutrals": neutrals})
        optional = {"neutrals"}  # a row may have no neutral answer yet
        texts = {
            name: [
                None
                if value is None and name in optional
                else (as_prompt if name == "prompts" else as_text)(value, f"{name}[{i}]")
                for i, value in enumerate(values)
            ]
            for name, values in columns.items()
        }
        return cls(tuple(Demonstration(*row) for row in zip(*texts.values(), strict=True)))

    @classmethod
    def from_file(
        cls,
        source: Any,
        n: int | None = None,
        seed: int = 0,
        *,
        layout: str = "auto",
        columns: Columns | None = None,
        **options: object,
    ) -> Demonstrations:
        r"""Demonstrations from a file of any layout that is known (`data/layouts.py` lists them and their options).

        Positive is the best right answer, negative the wrong one; where a question has several wrong answers, one is drawn.

        Args:
            source: A path to CSV, TSV, JSON, JSON lines or parquet, each also with `.gz`; a pandas data frame; a split of
                `datasets`; or a list of dicts.
            n: How many to sample; None for all, in file order.
            seed: Seed of the sample, and of the choice between wrong answers.
            layout: `"auto"` tells the layout from the columns.
            columns: Which columns hold what is read, where they have other names: `{"prompt": "question"}`.
            options: Options of the layout, such as `answers="texts"` (A/B choices) or `direction="stereo"` (CrowS-Pairs).

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If no layout is known, a field is missing or has an impossible value (which line), a question has no
                wrong answer, or there are fewer than `n` rows.

        Example:
            >>> rows = [{"ask": "Is it 5?", "chosen": "Yes.", "rejected": "No."}]
            >>> sl.Demonstrations.from_file(rows, columns={"prompt": "ask"})[0]
            Demonstration(prompt='Is it 5?', positive='Yes.', negative='No.', neutral=None)
        """
        check_arguments(Demonstrations.from_file, {"n": n, "seed": seed, "layout": layout, "columns": columns})
        found, records = read_source(source, layout, columns)
        found.check(options)
        if found.name == "demonstrations":
            rows = [demonstration_of(record) for record in records]
        else:
            rng = random.Random(seed)
            rows = [as_demonstration(one, rng) for one in found.questions(records, {**found.for_fits, **options})]
        demonstrations = cls(tuple(rows), name_of(source))
        return demonstrations if n is None else demonstrations.sample(n, seed)

    @classmethod
    def from_dataframe(
        cls,
        frame: pd.DataFrame,
        *,
        prompt: str = "prompt",
        positive: str = "positive",
        negative: str = "negative",
        neutral: str | None = None,
    ) -> Demonstrations:
        """Demonstrations from named columns of a pandas data frame.

        Args:
            frame: One row per demonstration.
            prompt: Name of the column with prompts.
            positive: Name of the column with positive completions.
            negative: Name of the column with negative completions.
            neutral: Name of the column with neutral completions. By default a column `"neutral"` is used if there is one,
                and its cells may be missing or null.

        Raises:
            InputError: If a column is missing or a cell is not text.

        Example:
            >>> frame = pd.DataFrame({"ask": ["Is it 5?"], "good": ["Yes."], "bad": ["No."]})
            >>> sl.Demonstrations.from_dataframe(frame, prompt="ask", positive="good", negative="bad")[0].negative
            'No.'
        """
        check_arguments(Demonstrations.from_dataframe, locals())
        if not isinstance(frame, pd.DataFrame):
            raise InputError(f"from_dataframe takes a pandas DataFrame, and {type(frame).__name__} was given.")
        return cls._of_rows(read_rows(frame), "the data frame", prompt, positive, negative, neutral)

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        *,
        prompt: str = "prompt",
        positive: str = "positive",
        negative: str = "negative",
        neutral: str | None = None,
    ) -> Demonstrations:
        """Demonstrations from named columns of a CSV file with a header line. The names are those of `from_dataframe`.

        Raises:
            FileFormatError: If the file cannot be read, or a line has more or fewer cells than the header (which line).
            InputError: If a column is missing.
        """
        check_arguments(Demonstrations.from_csv, locals())
        return cls._of_rows(read_rows(path, container="csv"), str(path), prompt, positive, negative, neutral)

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        *,
        prompt: str = "prompt",
        positive: str = "positive",
        negative: str = "negative",
        neutral: str | None = None,
    ) -> Demonstrations:
        """Demonstrations from a JSON object per line (or one JSON list of objects). The names are those of `from_dataframe`.

        Raises:
            FileFormatError: If the file cannot be read or a line is not a JSON object (which line).
            InputError: If a field is missing.
        """
        check_arguments(Demonstrations.from_jsonl, locals())
        return cls._of_rows(read_rows(path, container="json"), str(path), prompt, positive, negative, neutral)

    @classmethod
    def from_halueval(
        cls, path: str | Path, n: int | None = None, seed: int = 0, *, with_knowledge: bool = False
    ) -> Demonstrations:
        """Demonstrations from HaluEval (QA, dialogue or summarization): right is positive, hallucinated negative.

        Args:
            path: `qa_data.json`: one JSON object per line with `question`, `right_answer` and `hallucinated_answer`; or
                `dialogue_data.json` or `summarization_data.json`.
            n: How many to sample; None for all, in file order.
            seed: Seed of the sample.
            with_knowledge: Whether the prompt opens with the row's `knowledge` passage.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a field is missing, or the file has fewer than `n` rows.

        Example:
            >>> row = {"question": "Where is Oslo?", "right_answer": "Norway", "hallucinated_answer": "Oslo is in Peru."}
            >>> pd.Series(row).to_json("qa_data.json")
            >>> sl.Demonstrations.from_halueval("qa_data.json").with_answer_ending(".")[0].positive
            'Norway.'
        """
        check_arguments(Demonstrations.from_halueval, locals())
        return cls.from_file(path, n, seed, layout="halueval", with_knowledge=with_knowledge)

    @classmethod
    def from_bbq(
        cls, path: str | Path, n: int | None = None, seed: int = 0, *, context_condition: str | None = "disambig"
    ) -> Demonstrations:
        """Demonstrations from a BBQ file: right answers are positive, one of the other two each (drawn by `seed`) negative.

        Args:
            path: A `.jsonl` file with `context`, `question`, `ans0` to `ans2`, `label` and `context_condition`.
            n: How many to sample; None for all, in file order.
            seed: Seed of the sample and of the choice between the two wrong answers.
            context_condition: `"disambig"` (the SEA paper's choice), `"ambig"`, or None for both.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a field is missing or has an impossible value, or the file has fewer than `n` rows.
        """
        check_arguments(Demonstrations.from_bbq, locals())
        return cls.from_file(path, n, seed, layout="bbq", context_condition=context_condition)

    @classmethod
    def _of_rows(
        cls, records: Iterable[Record], source: str, prompt: str, positive: str, negative: str, neutral: str | None
    ) -> Demonstrations:
        return cls(tuple(demonstration_of(record, prompt, positive, negative, neutral) for record in records), source)

    # --- changing texts ----------------------------------------------------------------------------------------------

    def with_answer_ending(self, ending: str) -> Demonstrations:
        """The same rows with one ending for all completions, in place of any full stop, question or exclamation mark.

        Without it, punctuation alone can tell the last token of a positive from that of a negative.

        Example:
            >>> sl.Demonstrations.from_lists(["Is it?"], ["Yes"], ["No!"]).with_answer_ending(".")[0].negative
            'No.'
        """
        check_arguments(Demonstrations.with_answer_ending, locals())
        as_text(ending, "An ending")

        def end(answer: str) -> str:
            return answer.rstrip().rstrip(".!?").rstrip() + ending

        rows = [
            replace(
                row,
                positive=end(row.positive),
                negative=end(row.negative),
                neutral=None if row.neutral is None else end(row.neutral),
            )
            for row in self.rows
        ]
        return replace(self, rows=tuple(rows), form=replace(self.form, answer_ending=ending))

    def with_neutral_answers(
        self,
        model: object,
        max_new_tokens: int = 32,
        *,
        whole_sentences: bool = False,
        batch_size: int = 16,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> Demonstrations:
        """The same rows with the model's own greedy answers as neutral completions (the SEA paper's protocol).

        Give the prompts their template first, and `with_answer_ending` after. Of a model that reasons before it answers, the
        answer after its trace (`<think>...</think>`) is taken.

        Args:
            model: The unedited model, a TransformerBridge with a tokenizer.
            max_new_tokens: Longest answer in tokens, a reasoning trace among them; an answer also ends at a line break.
            whole_sentences: Whether an answer that is cut at `max_new_tokens` goes back to its last whole sentence.
            batch_size: Prompts per forward pass.
            folder: Where to keep answers as they come. A run that was killed goes on there.
            progress: Whether to show a progress bar.

        Raises:
            InputError: If a prompt with its answer does not fit the model's context.

        Warns:
            SeaLensWarning: If answers were cut at `max_new_tokens` (unless that is 1), or before a reasoning trace was over.
        """
        check_arguments(Demonstrations.with_neutral_answers, locals())
        prompts = [row.prompt for row in self.rows]
        if not _ANSWERING:
            raise InputError("Nothing answers prompts yet. Import sea_lens.models.generate first.")
        answers = _ANSWERING["model"](
            model, prompts, max_new_tokens, batch_size=batch_size, folder=folder, progress=progress
        )
        texts = neutral_texts(answers, max_new_tokens, whole_sentences)
        rows = [replace(row, neutral=text) for row, text in zip(self.rows, texts, strict=True)]
        form = replace(self.form, max_new_tokens=max_new_tokens, whole_sentences=whole_sentences)
        return replace(self, rows=tuple(rows), form=form)

    # --- knowing one's data ------------------------------------------------------------------------------------------

    def check(self, model: ReadsTexts | Tokenizer | None = None) -> DemonstrationCheck:
        """What separates positives from negatives besides meaning.

        Args:
            model: A model or a tokenizer, to count lengths in tokens and not only in words. With a model, texts that are
                too long for its context are found, too.

        Raises:
            ModelMismatchError: If the model has no tokenizer.

        Example:
            >>> check = sl.Demonstrations.from_lists(["Is it?"], ["Yes."], ["No, it really is not"]).check()
            >>> check.findings[0].split(",")[0]
            'Negatives are 5.0 times as long as positives (5.0 against 1.0 words on average)'
        """
        answers = {"positive": [row.positive for row in self.rows], "negative": [row.negative for row in self.rows]}
        neutrals = [row.neutral for row in self.rows if row.neutral is not None]
        if len(neutrals) == len(self):
            answers["neutral"] = neutrals
        return DemonstrationCheck.of([row.prompt for row in self.rows], answers, model)
