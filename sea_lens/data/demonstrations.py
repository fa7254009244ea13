"""Demonstrations: prompts, each with a positive, a negative and (once the model has answered) a neutral completion."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from sea_lens.data.benchmarks import read_bbq
from sea_lens.data.confounds import DemonstrationCheck
from sea_lens.data.records import Record, read_csv_rows, read_json_objects
from sea_lens.data.rows import PromptRow, PromptRows
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model


@dataclass(frozen=True)
class Demonstration(PromptRow):
    """One prompt with its completions.

    Attributes:
        prompt: What the model is given.
        positive: A completion that shows the wanted behaviour.
        negative: One that shows the unwanted behaviour.
        neutral: What the model itself says, or None where it has not been asked.
    """

    positive: str
    negative: str
    neutral: str | None = None


@dataclass(frozen=True, repr=False)
class Demonstrations(PromptRows[Demonstration]):
    """An immutable list of demonstrations; every method returns a new one.

    Attributes:
        rows: The demonstrations.
        source: Where they came from, for messages and cards.
    """

    called: ClassVar[str] = "demonstrations"

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
        prompts: Sequence[str],
        positives: Sequence[str],
        negatives: Sequence[str],
        neutrals: Sequence[str] | None = None,
    ) -> Demonstrations:
        """Builds demonstrations from lists of one length.

        Raises:
            InputError: If the lists are empty or differ in length.
        """
        lists = {"prompts": prompts, "positives": positives, "negatives": negatives}
        if neutrals is not None:
            lists["neutrals"] = neutrals
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"The lists must have one length, and they have {lengths}.")
        completions = neutrals if neutrals is not None else [None] * len(prompts)
        return cls(tuple(map(Demonstration, prompts, positives, negatives, completions)))

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
        """Builds demonstrations from named columns of a pandas DataFrame.

        Args:
            frame: One row a demonstration.
            prompt: Name of the column with prompts.
            positive: Name of the column with positive completions.
            negative: Name of the column with negative completions.
            neutral: Name of the column with neutral completions; `"neutral"` is used if it is there, and may then be
                left out (or null) in rows whose model has not been asked.

        Raises:
            InputError: If a column is missing or a cell is not text.
        """
        frame = frame.astype(object).where(frame.notna(), None)  # pandas turns a missing text into NaN
        records = [
            Record(f"data frame, row {label}", dict(zip(map(str, frame.columns), cells, strict=True)))
            for label, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True)
        ]
        return cls._from_records(records, "the data frame", prompt, positive, negative, neutral)

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
        """Reads named columns of a CSV file with a header line. Arguments as for `from_dataframe`.

        Raises:
            FileFormatError: If the file cannot be read, or a line has more or fewer cells than the header (which line).
            InputError: If a column is missing.
        """
        return cls._from_records(read_csv_rows(path), str(path), prompt, positive, negative, neutral)

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
        """Reads a file with one JSON object a line (or one JSON list of objects). Arguments as for `from_dataframe`.

        Raises:
            FileFormatError: If the file cannot be read or a line is not a JSON object (which line).
            InputError: If a field is missing.
        """
        return cls._from_records(read_json_objects(path), str(path), prompt, positive, negative, neutral)

    @classmethod
    def from_halueval(
        cls, path: str | Path, n: int | None = None, seed: int = 0, *, with_knowledge: bool = False
    ) -> Demonstrations:
        """Reads HaluEval's QA file as published: the right answer is positive, the hallucinated one negative.

        Args:
            path: `qa_data.json`: one JSON object a line with `question`, `right_answer` and `hallucinated_answer`.
            n: How many to sample; all, in file order, for None.
            seed: Seed of the sample.
            with_knowledge: Whether the prompt opens with the row's `knowledge` passage.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a field is missing, or fewer than `n` rows are there.
        """
        records = read_json_objects(path)
        if with_knowledge:
            records = [
                Record(r.where, {**r.fields, "question": f"{r.text('knowledge')}\n{r.text('question')}"})
                for r in records
            ]
        demonstrations = cls._from_records(records, str(path), "question", "right_answer", "hallucinated_answer")
        return demonstrations if n is None else demonstrations.sample(n, seed)

    @classmethod
    def from_bbq(
        cls, path: str | Path, n: int | None = None, seed: int = 0, *, context_condition: str | None = "disambig"
    ) -> Demonstrations:
        """Reads a BBQ file as published: the gold answer is positive, one of the other two (drawn by `seed`) negative.

        Args:
            path: A `.jsonl` file with `context`, `question`, `ans0` to `ans2`, `label` and `context_condition`.
            n: How many to sample; all, in file order, for None.
            seed: Seed of the sample and of the choice between the two wrong answers.
            context_condition: `"disambig"` (the paper's choice), `"ambig"`, or None for both.

        Raises:
            FileFormatError: If the file is malformed (which line).
            InputError: If a field is missing or impossible, or fewer than `n` rows are there.
        """
        rng = random.Random(seed)
        rows = [
            Demonstration(question.prompt, positive=question.gold, negative=rng.choice(question.wrong))
            for question in read_bbq(path, context_condition)
        ]
        demonstrations = cls(tuple(rows), source=str(path))
        return demonstrations if n is None else demonstrations.sample(n, seed)

    @classmethod
    def _from_records(
        cls,
        records: Sequence[Record],
        source: str,
        prompt: str,
        positive: str,
        negative: str,
        neutral: str | None = None,
    ) -> Demonstrations:
        if not records:
            raise InputError(f"There are no demonstrations in {source}. At least one row is needed.")
        columns = records[0].fields
        missing = [name for name in (prompt, positive, negative, neutral) if name is not None and name not in columns]
        if missing:
            raise InputError(
                f"{source} has no column {', '.join(map(repr, missing))}. It has: {', '.join(columns)}. "
                "Rename them, or name the right ones with prompt=, positive=, negative=, neutral=."
            )

        def neutral_of(record: Record) -> str | None:
            if neutral is None and record.fields.get("neutral") is None:
                return None
            return record.text("neutral" if neutral is None else neutral)

        rows = [
            Demonstration(record.text(prompt), record.text(positive), record.text(negative), neutral_of(record))
            for record in records
        ]
        return cls(tuple(rows), source=source)

    # --- changing texts ----------------------------------------------------------------------------------------------

    def with_answer_ending(self, ending: str) -> Demonstrations:
        """Gives every completion the same ending, in place of any final full stop, question or exclamation mark.

        Without it the last token of an answer can tell positive from negative by punctuation alone.
        """

        def end(answer: str) -> str:
            return answer.rstrip().rstrip(".!?").rstrip() + ending

        return replace(
            self,
            rows=tuple(
                Demonstration(
                    row.prompt,
                    end(row.positive),
                    end(row.negative),
                    None if row.neutral is None else end(row.neutral),
                )
                for row in self.rows
            ),
        )

    def with_neutral_answers(
        self, model: Model, max_new_tokens: int = 32, *, batch_size: int = 16, progress: bool = True
    ) -> Demonstrations:
        """Sets every neutral completion to the model's own greedy answer (the paper's protocol).

        Give the prompts their template first, and `with_answer_ending` after.

        Args:
            model: The model to be edited, unedited.
            max_new_tokens: Longest answer in tokens; an answer also ends at a line break.
            batch_size: Prompts in one forward pass.
            progress: Whether to show a progress bar.
        """
        from sea_lens.models.generate import greedy_answers

        answers = greedy_answers(
            model, [row.prompt for row in self.rows], max_new_tokens, batch_size=batch_size, progress=progress
        )
        return replace(
            self, rows=tuple(replace(row, neutral=answer) for row, answer in zip(self.rows, answers, strict=True))
        )

    # --- knowing what one has ----------------------------------------------------------------------------------------

    def check(self, model: Model | None = None) -> DemonstrationCheck:
        """Reports what separates positives from negatives besides meaning.

        Args:
            model: Counts lengths in this model's tokens (in words otherwise) and finds texts too long for its context.
        """
        neutrals = [row.neutral for row in self.rows if row.neutral is not None]
        answers = {"positive": [row.positive for row in self.rows], "negative": [row.negative for row in self.rows]}
        if len(neutrals) == len(self):
            answers["neutral"] = neutrals
        return DemonstrationCheck.of([row.prompt for row in self.rows], answers, model)
