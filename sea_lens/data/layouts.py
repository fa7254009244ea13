"""The layouts of published files, in one table: how each is known, how it is read, and where the layout was seen.

`Demonstrations.from_file`, `Questions.from_file` and every command that reads a file take the layouts from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from sea_lens.data.answers import read_choices, read_halueval, read_statements, read_truthfulqa
from sea_lens.data.bbq import read_bbq
from sea_lens.data.containers import Columns, Container, name_of, read_rows
from sea_lens.data.items import Question, question_of
from sea_lens.data.pairs import read_crows_pairs, read_preferences, read_stereoset
from sea_lens.data.prompts import Q_AND_A
from sea_lens.data.records import Record
from sea_lens.data.winobias import read_winobias
from sea_lens.errors import InputError
from sea_lens.wording import either


@dataclass(frozen=True)
class Layout:
    """A layout of published files.

    Attributes:
        name: Its name, as in `from_file(path, layout=NAME)`.
        told_by: The columns that tell it; one set for each form.
        read: Makes questions of rows; its keywords are the layout's options.
        source: Where it was seen, and what could not be checked against real files here.
        template: What questions are put into unless another template is given.
        takes_template: Whether anything can go around the prompt. Around halves of sentences nothing can.
        for_fits: Options with which demonstrations are read, unless others are given.
    """

    name: str
    told_by: tuple[frozenset[str], ...]
    read: Callable[..., Iterator[Question]]
    source: str
    template: str | None = None
    takes_template: bool = True
    for_fits: Mapping[str, object] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """The names of the options."""
        parameters = inspect.signature(self.read).parameters.values()
        return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "template"]

    def questions(self, records: Iterable[Record], options: Mapping[str, object]) -> list[Question]:
        """The questions of rows.

        Raises:
            InputError: If the layout lacks an option, or a row is malformed (which line).
        """
        self.check(options)
        return list(self.read(records, **options))

    def check(self, options: Mapping[str, object]) -> None:
        """Refuses what is no option of the layout.

        Raises:
            InputError: If the layout lacks an option.
        """
        unknown = [name for name in options if name not in self.options and name != "template"]
        if unknown:
            known = f"It has: {', '.join(self.options)}" if self.options else "It has none"
            raise InputError(f"The layout {self.name!r} has no option {', '.join(unknown)}. {known}.")


def _own(records: Iterable[Record]) -> Iterator[Question]:
    return map(question_of, records)


def _columns(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(one.split("|")) for one in sets)


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("questions", _columns("prompt|right|wrong", "prompt|true|false"), _own, "Questions.to_jsonl"),
        Layout("demonstrations", _columns("prompt|positive|negative"), _own, "Demonstrations.to_jsonl"),
        Layout(
            "truthfulqa",
            _columns(
                "Question|Best Answer|Correct Answers|Incorrect Answers",
                "question|best_answer|correct_answers|incorrect_answers",
                "question|mc1_targets",
                "question|mc2_targets",
            ),
            read_truthfulqa,
            "sylinrl/TruthfulQA, TruthfulQA.csv (817 rows read). `Best Incorrect Answer` and truthful_qa of Hugging Face "
            "(generation, multiple_choice) by their documentation.",
            template=Q_AND_A,
        ),
        Layout(
            "halueval",
            _columns(
                "right_answer|hallucinated_answer",
                "right_response|hallucinated_response",
                "right_summary|hallucinated_summary",
            ),
            read_halueval,
            "RUCAIBox/HaluEval, data/*_data.json (500 rows of QA read). Dialogue and summarization by the repository's "
            "evaluation/evaluate.py.",
        ),
        Layout(
            "bbq",
            _columns("context|question|ans0|ans1|ans2|label", "context|question|ans0|ans1|ans2|answer_label"),
            read_bbq,
            "nyu-mll/BBQ, data/*.jsonl (8,880 rows read). Elfsong/BBQ of Hugging Face by its card.",
            template="{question}\nAnswer:",
            for_fits={"context_condition": "disambig"},
        ),
        Layout(
            "crows_pairs",
            _columns("sent_more|sent_less"),
            read_crows_pairs,
            "nyu-mll/crows-pairs, data/crows_pairs_anonymized.csv (1,508 rows read). Hugging Face's numbers by its card.",
            takes_template=False,
        ),
        Layout(
            "stereoset",
            _columns("context|target|sentences", "version|data"),
            read_stereoset,
            "moinnadeem/StereoSet, data/dev.json, by the repository's code/dataloader.py; McGill-NLP/stereoset of Hugging "
            "Face by its card. No real row was at hand.",
            takes_template=False,
            for_fits={"shared": True},
        ),
        Layout(
            "winobias",
            _columns("line", "tokens|coreference_clusters"),
            read_winobias,
            "uclanlp/corefBias, WinoBias/wino/data/*_stereotyped_type*.txt.* (3,168 lines read). uclanlp/wino_bias of "
            "Hugging Face by the script that made it.",
        ),
        Layout(
            "choices",
            _columns("question|answer_matching_behavior|answer_not_matching_behavior"),
            read_choices,
            "nrimsky/CAA, datasets/*.json (2,100 rows read); anthropics/evals, persona/ and advanced-ai-risk/ (a file of "
            "each read).",
        ),
        Layout(
            "preferences",
            _columns("chosen|rejected"),
            read_preferences,
            "TRL's preference formats, standard and conversational, with and without a prompt, by its documentation; "
            "Anthropic/hh-rlhf by its card.",
        ),
        Layout(
            "statements",
            _columns("statement|label"),
            read_statements,
            "saprmarks/geometry-of-truth, datasets/*.csv (seven files read).",
            for_fits={"pairs": True},
        ),
    )
}
"""The layouts by name."""


def layout_of(record: Record, columns: Columns | None = None) -> Layout | None:
    """The layout that a file's first row tells; one with the columns that were named goes first. None for any other row."""
    found = [one for one in LAYOUTS.values() if any(own <= record.fields.keys() for own in one.told_by)]
    named = set(columns or ())
    return min(found, key=lambda one: not any(named <= own for own in one.told_by), default=None)


def _lacking(record: Record) -> str:
    """What a row lacks for the layout that it is most like; a layout, if it is like none."""
    told = [own for one in LAYOUTS.values() for own in one.told_by]
    nearest = max(told, key=lambda own: len(own & record.fields.keys()) / len(own))
    if 2 * len(nearest & record.fields.keys()) < len(nearest) or len(nearest) < 2:
        return "layout that is known"
    return f"column {', '.join(map(repr, sorted(nearest - record.fields.keys())))}"


def read_source(
    source: Any, layout: str = "auto", columns: Columns | None = None, container: Container | None = None
) -> tuple[Layout, Iterator[Record]]:
    """The layout of a source, and its rows.

    Args:
        source: What `containers.read_rows` reads.
        layout: A name of `LAYOUTS`; `"auto"` finds it out from the columns of the first row.
        columns: Where a reader finds what it looks for, as in `{"prompt": "question"}`.
        container: What the file is; None finds it out.

    Raises:
        FileFormatError: If a file cannot be read or is malformed.
        InputError: If there is no such layout, or the source has none that is known.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"There is no layout {layout!r}. It is auto or one of {', '.join(LAYOUTS)}.")
    records = read_rows(source, columns, container)
    if layout != "auto":
        return LAYOUTS[layout], records
    first = next(records, None)
    if first is None:
        raise InputError(f"There are no rows in {name_of(source)}. Give at least one.")
    found = layout_of(first, columns)
    if found is None:
        raise InputError(
            f"{name_of(source)} has no {_lacking(first)}. {first.has} Say which columns hold prompt, positive and negative "
            "(or right and wrong): "
            + either('columns={"prompt": NAME, ...}', "--column prompt=NAME")
            + f". Known layouts: {', '.join(LAYOUTS)}."
        )
    return found, chain([first], records)
