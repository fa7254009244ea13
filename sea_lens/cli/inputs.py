"""What the words of a command line stand for: models, demonstrations, questions, layers, folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, TypeVar

from sea_lens.cli.options import HELP, SHARED, Of, Options
from sea_lens.cli.prompting import Prompting
from sea_lens.data.containers import Columns, read_rows
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.prompts import PromptRows
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.models.loading import load_model
from sea_lens.models.sites import model_sites, named_layers
from sea_lens.worlds.bias import BiasWorld
from sea_lens.worlds.facts import World
from sea_lens.worlds.load import BIAS_WEIGHTS, WEIGHTS

Rows = TypeVar("Rows", bound="PromptRows[Any]")
SHARED["loading"] = Of(load_model, only=("device", "dtype", "quantization", "revision"))
SHARED["collecting"] = Of(collect_activations, only=("token", "site", "batch_size"))


HELP |= {
    "columns": "A column that has another name, as in prompt=question; repeat for more.",
    "activations": "Fit from this folder of `sea-lens collect`, without a model.",
    "also": "Another method to try, with its default settings; repeat for more.",
    "demonstrations": "A published file (HaluEval, BBQ, A/B choices, chosen and rejected, ...) or one with prompt, positive, "
    "negative (--column names others); or organism or bias-organism, an embedded world's.",
    "draws": "Draws of each size, by the seeds from --seed on.",
    "editor": "Editor folder, or its name on the hub.",
    "editors": "Editor folders, or their names on the hub; NAME=FOLDER gives one a name.",
    "held_out": "Questions to score on; those of --questions are then for tuning alone.",
    "in_sequence": "Fit layer after layer, each on what the edits below have moved already; one collection per layer.",
    "kl": "In the place of a strength, what the edit may cost: nats per token on neutral text, such as 0.1.",
    "layers": "all, first:N, last:N, or a list such as 3,5,10-20.",
    "methods": "all, or names of methods, such as sea,leace.",
    "model": "Hub name, local folder, GGUF file, smollm2 or gemma3-270m (Python packages), or organism, bias-organism or "
    "knowledge-organism, the embedded models.",
    "neutral": "Texts that the edit should leave alone, such as French ones where it makes a model answer in French: .txt "
    "with empty lines between them, a JSON list, or JSON lines; left out for the sample that ships.",
    "n": "How many rows to sample; all if left out.",
    "n_questions": "How many questions or texts to sample; all if left out.",
    "negative": "The authors' uu_negative.pt.",
    "out": "Folder for the results. An unfinished run continues there.",
    "pairs": "Measure also how pairs of layers work together.",
    "positive": "The authors' uu_positive.pt.",
    "prompts": "One or more prompts, each in quotes.",
    "questions": "A published file (TruthfulQA, BBQ, CrowS-Pairs, ...), one with prompt, right, wrong (--column names "
    "others), or demonstrations; or organism or bias-organism, an embedded world's held-out ones.",
    "random_editors": "How many random editors to compare with.",
    "sae": "Sparse autoencoder for sas: a folder, a file, or organism, that of the embedded model.",
    "select": "Choose layers greedily on half of the questions, confirmed on the others.",
    "sources": "Demonstrations to fit on, file by file, or organism or bias-organism. NAME=FILE gives one a name: bbq=FILE "
    "that of a benchmark whose data it is.",
    "texts": "Texts to run: .txt, which is one text, a JSON list, or JSON lines; left out for the sample that ships.",
    "unless": "Prompts that the editor should leave alone, in such a file.",
    "when": "Prompts that the editor should edit: a JSON list, JSON lines with text, or a file of questions or "
    "demonstrations, whose prompts are taken.",
    "strength": "1 is the fitted editor, 0 no edit.",
    "strengths": "Several strengths to read beside each other, such as -2,-1,0,1,2.",
}


@dataclass(frozen=True)
class Sampling:
    """Which rows of a file are used, and how they are read.

    Attributes:
        n: How many to sample; all if left out.
        seed: Seed of everything that is drawn.
        format: Layout of the file, such as bbq, choices or demonstrations; auto finds it out from its columns.
        columns: A column that has another name, as in prompt=question; repeat for more.
        reader_options: An option of the layout, as in context_condition=ambig (BBQ), direction=stereo (CrowS-Pairs) or
            answers=texts (A/B choices); repeat for more.
    """

    n: Optional[int] = None
    seed: int = 0
    format: str = "auto"
    columns: Optional[list[str]] = None
    reader_options: Optional[list[str]] = None

    @property
    def reading(self) -> Options:
        """Keywords of `read_demonstrations` and `read_questions`."""
        return reading_of(self.format, self.columns, self.reader_options)

    def sampled(self, rows: Rows) -> Rows:
        """The rows, or a sample of them."""
        return rows if self.n is None else rows.sample(self.n, self.seed)


def reading_of(layout: str, columns: list[str] | None, options: list[str] | None) -> Options:
    """How a file is read, from the words of a command line.

    Args:
        layout: auto, or a name in `data/layouts.py`; `jsonl` and `csv` are demonstrations in such a file, whatever its name.
        columns: Words such as `prompt=question`.
        options: Words such as `direction=stereo`; `none`, `true` and `false` are Python's.

    Raises:
        InputError: If a word has no `=`, or a name is given twice.
    """
    values = {"none": None, "true": True, "false": False}
    given = {name: values.get(word.lower(), word) for name, word in _pairs(options, "--reader-option").items()}
    return {"layout": layout, "columns": _pairs(columns, "--column"), **given}


def columns_in(path: object, columns: list[str] | None) -> list[str] | None:
    """Of the columns that were named for several files, those that this one has."""
    if not columns or not isinstance(path, Path) or is_embedded(path):
        return None
    first = next(read_rows(path), None)
    return [word for word in columns if first is not None and word.partition("=")[2] in first.fields]


def _pairs(words: list[str] | None, flag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not name or not equals or not value or name in found:
            raise InputError(f"{flag} takes NAME=VALUE, each name once, and {word!r} was given.")
        found[name] = value
    return found


@dataclass(frozen=True)
class Asking(Sampling, Prompting):
    """Which questions of a file are asked, and how."""

    def questions(self, path: Path, model: Model) -> Questions:
        """The questions of a file as the model reads them."""
        return self.prompted(self.sampled(read_questions(path, **self.reading)), model)


@dataclass(frozen=True)
class Reading(Sampling, Prompting):
    """How demonstrations are read and answered.

    Attributes:
        answer_ending: Give every answer this ending, such as '.'.
        max_new_tokens: Longest neutral answer, in tokens, where the file has none; 32 if left out.
        whole_sentences: A neutral answer that is cut goes back to its last whole sentence.
    """

    answer_ending: Optional[str] = None
    max_new_tokens: Optional[int] = None
    whole_sentences: bool = False

    def read(self, path: Path) -> Demonstrations:
        """The demonstrations of a file, or of an embedded world."""
        return read_demonstrations(path, n=self.n, seed=self.seed, **self.reading)

    def as_fitted(self, editor: Editor) -> Reading:
        """With the prompts, endings and lengths of the editor's fit where nothing else is said."""
        form = editor.card.form
        if form is None:
            return self
        says_how = self.template is not None or self.chat is not None or self.is_chat
        found = self if says_how else Prompting.as_fitted(self, editor)
        ending = form.answer_ending if self.answer_ending is None else self.answer_ending
        longest = form.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        whole = self.whole_sentences or form.whole_sentences
        found = replace(found, answer_ending=ending, max_new_tokens=longest, whole_sentences=whole)
        if not says_how:
            object.__setattr__(found, "template", form.template)  # a fit in Python may have both templates
        return found

    def collect(
        self,
        model: Model,
        data: Demonstrations,
        options: Options,
        folder: Path | None = None,
        layers: str = "all",
        neutral: bool = True,
    ) -> Activations:
        """Activations of demonstrations as `read`, with the model's own answers if there are none.

        Args:
            model: The model.
            data: The demonstrations.
            options: Keywords of `collect_activations`.
            folder: A folder to keep answers and activations in.
            layers: Which layers.
            neutral: Whether neutral answers are needed.
        """
        chosen = named_layers(layers, model.cfg.n_layers)
        model_sites(model, chosen, options.get("site", "resid_post"))  # said before answers are generated
        data = self.answered(self.prompted(data, model), model, options["batch_size"], folder, neutral)
        return collect_activations(model, data, chosen, folder=folder, **options)

    def answered(
        self, data: Demonstrations, model: Model, batch_size: int, folder: Path | None, neutral: bool = True
    ) -> Demonstrations:
        """Adds the model's answers, kept in a folder so that a resumed run has the same, and gives all one ending."""
        if neutral and any(row.neutral is None for row in data):
            longest = 32 if self.max_new_tokens is None else self.max_new_tokens
            how: Options = {"whole_sentences": self.whole_sentences, "batch_size": batch_size, "folder": folder}
            data = data.with_neutral_answers(model, longest, **how)
        return data if self.answer_ending is None else data.with_answer_ending(self.answer_ending)


def named(words: list[str], what: str) -> dict[str, str]:
    """Folders or files by name; one without a name is called as it is in its folder.

    Args:
        words: As `NAME=FOLDER`, or the folder alone.
        what: What they are, for messages.

    Raises:
        InputError: If two have one name.
    """
    found: dict[str, str] = {}
    for given in words:
        name, equals, place = given.partition("=")
        if not equals or not place:
            name, place = Path(given).name or given, given
        if name in found:
            raise InputError(f"Two {what} are called {name!r}. Give them names: first={found[name]} second={place}.")
        found[name] = place
    return found


EMBEDDED = ("organism", "bias-organism")
"""The embedded models and their worlds, by the words that stand for them."""


def load(name: str, loading: Options, reads: Iterable[Path | None] = ()) -> Model:
    """Loads a model that is to read some data.

    Args:
        name: Hub name, folder, or one of `EMBEDDED`.
        loading: Keywords of `load_model`.
        reads: The data.

    Raises:
        InputError: If there is no such model, or an embedded one is to read the other world's data.
    """
    others = [str(path) for path in reads if path is not None and is_embedded(path) and str(path) != name]
    if name in EMBEDDED and others:
        raise InputError(
            f"The model {name!r} does not know the words of {others[0]!r}, another world. Give {others[0]!r} as the "
            f"model, or {name!r} as the data."
        )
    return load_model(name, **loading)


def is_embedded(path: Path) -> bool:
    """Whether a word stands for an embedded world's data, as it does unless there is a file of that name."""
    return str(path) in EMBEDDED and not path.exists()


def _world(path: Path) -> World | BiasWorld:
    """The embedded world that a word stands for; its model need not be loaded."""
    if str(path) == "organism":
        return World.from_json(WEIGHTS / "facts.json")
    return BiasWorld.from_json(BIAS_WEIGHTS / "topics.json")


def read_demonstrations(
    path: Path,
    layout: str = "auto",
    n: int | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    **options: Any,
) -> Demonstrations:
    """Reads a file, or an embedded world's; `auto` finds out the layout from the first row."""
    if is_embedded(path):
        _refuse_for_world(path, layout, columns, options)
        data = _world(path).demonstrations()
        return data if n is None else data.sample(n, seed)
    if layout in ("jsonl", "csv") and not columns and not options:
        data = Demonstrations.from_csv(path) if layout == "csv" else Demonstrations.from_jsonl(path)
        return data if n is None else data.sample(n, seed)
    return Demonstrations.from_file(path, n, seed, layout=_name(layout), columns=columns, **options)


def read_questions(
    path: Path,
    template: str | Mapping[str, str] | None = None,
    *,
    to_choose_by: bool = False,
    layout: str = "auto",
    columns: Columns | None = None,
    **options: Any,
) -> Questions:
    """Reads a file, finding out its layout from its first row; or an embedded world's held-out questions.

    Args:
        path: The file.
        template: What each question is put into, in place of what a published file's reader puts it into; or such templates
            by layout.
        to_choose_by: Whether settings are chosen on them: then an embedded world's fitting questions, as the held-out ones
            are for the result.
        layout: The file's layout.
        columns: Which columns hold what is read.
        options: Options of the layout.

    Raises:
        InputError: If the layout is unknown, or questions with a template are pairs of sentences.
    """
    if not is_embedded(path):
        return Questions.from_file(path, layout=_name(layout), columns=columns, template=template, **options)
    _refuse_for_world(path, layout, columns, options)
    world = _world(path)
    questions = world.questions()
    if to_choose_by and isinstance(world, BiasWorld):
        questions = world.questions(world.items("fitting"))
    elif to_choose_by and isinstance(world, World):
        questions = world.questions(world.fitting)
    questions = replace(questions, source=str(path))
    return questions.with_prompt_template(template) if isinstance(template, str) else questions


def _name(layout: str) -> str:
    return "demonstrations" if layout in ("jsonl", "csv") else layout


def _refuse_for_world(path: Path, layout: str, columns: Columns | None, options: Mapping[str, object]) -> None:
    if layout != "auto" or columns or options:
        raise InputError(f"{path} is an embedded world, and no file: leave out --format, --column and --reader-option.")
