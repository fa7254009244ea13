"""Is the model better, and what did it cost: `sea-lens evaluate BENCHMARK`. A result is a folder that names what made it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Optional, TypedDict

import typer

from sea_lens import plotting
from sea_lens.cli.app import app
from sea_lens.cli.inputs import (
    BBQ_FIELDS,
    BatchSize,
    Device,
    DType,
    DTypeName,
    ModelName,
    Sampled,
    Template,
    first_fields,
    is_organism,
    load_model,
    read_questions,
    unescaped,
)
from sea_lens.cli.output import UNFINISHED, finish, show
from sea_lens.editor import Editor
from sea_lens.editor_card import JSON
from sea_lens.errors import InputError
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.evaluation.capabilities import evaluate_perplexity
from sea_lens.evaluation.crows_pairs import evaluate_crows_pairs
from sea_lens.evaluation.prompts import Q_AND_A
from sea_lens.evaluation.results import Evaluation, file_hash
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa
from sea_lens.models import Model, join
from sea_lens.questions import BBQQuestion, Questions
from sea_lens.records import read_texts

evaluate = typer.Typer(
    name="evaluate",
    help="Measures a model on a benchmark, unedited or before and after an edit. Writes a folder of JSON, CSV and PNG files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(evaluate)

EditorOption = Annotated[
    Optional[str],
    typer.Option("--editor", help="Editor folder, or its name on the hub; only the unedited model if left out."),
]
Out = Annotated[Path, typer.Option(help="Folder for the result; an unfinished one is gone on with.")]
EvaluationSeed = Annotated[int, typer.Option(help="Of samples and resamples.")]
Confidence = Annotated[float, typer.Option(help="Of the intervals, inside (0, 1).")]
Prompt = Annotated[
    Optional[str],
    typer.Option(
        help="paper (instruction and examples first), plain, chat (the same in the tokenizer's chat template), or a text "
        "with {question}."
    ),
]
BENCHMARK_PROMPTS = ("paper", "chat")


class Common(TypedDict):
    """What all benchmarks take."""

    seed: int
    confidence: float
    batch_size: int
    folder: Path


@dataclass(frozen=True)
class Subject:
    """The model that is measured, with what edits it, and where the result goes.

    Attributes:
        model: Unedited.
        editor: None for the unedited model alone.
        editor_name: The editor's folder or name on the hub.
        out: Folder of the result.
    """

    model: Model
    editor: Editor | None
    editor_name: str | None
    out: Path

    @classmethod
    def load(cls, model: str, editor: str | None, out: Path, device: str, dtype: DTypeName) -> Subject:
        """Loads the editor first, for a mistake there should not wait for the model."""
        fitted = None if editor is None else Editor.from_pretrained(editor)
        return cls(load_model(model, device, dtype), fitted, editor, out)

    @property
    def unfinished(self) -> Path:
        """Where batches are kept until the result is written."""
        return self.out / UNFINISHED

    def report(self, result: Evaluation, source: Path | None = None) -> None:
        """Shows a result and writes its folder.

        Args:
            result: The result.
            source: The file of its data, where the result was not told.
        """
        facts: dict[str, JSON] = dict(result.provenance)
        if isinstance(made_by := facts["editor"], Mapping):
            facts["editor"] = {"name": self.editor_name, **made_by}
        if source is not None and isinstance(data := facts["data"], Mapping):
            facts["data"] = {**data, "source": str(source), "sha256": file_hash(source)}
        result = replace(result, provenance=facts)
        write_evaluation(result, self.out)


def write_evaluation(result: Evaluation, out: Path) -> None:
    """Shows a result on the screen and writes its folder: JSON, CSV and a picture."""
    options = result.provenance["options"]
    assert isinstance(options, Mapping)
    show(result.table, f"{result.benchmark}, {float(str(options.get('confidence', 0.95))):.0%} intervals")
    written = [path.name for path in result.save(out)]
    plotting.plot_evaluation(result).savefig(out / "evaluation.png", dpi=150)
    finish(out, [*written, "evaluation.png"])


def _common(subject: Subject, seed: int, confidence: float, batch_size: int) -> Common:
    return {"seed": seed, "confidence": confidence, "batch_size": batch_size, "folder": subject.unfinished}


def _asked(
    path: Path,
    n: int | None,
    seed: int,
    template: str | None,
    keep: Callable[[Questions], Questions] = lambda questions: questions,
) -> Questions:
    questions = keep(read_questions(path, None if template is None else unescaped(template)))
    return questions if n is None else questions.sample(n, seed)


@evaluate.command()
def truthfulqa(
    model: ModelName,
    questions: Annotated[
        Path,
        typer.Argument(
            help="TruthfulQA.csv, JSONL with prompt, true and false, or `organism` (its held-out questions)."
        ),
    ],
    editor: EditorOption = None,
    out: Out = Path("truthfulqa"),
    prompt: Prompt = None,
    template: Template = None,
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Measures MC1, MC2 and MC3 of TruthfulQA: does the model tell true from false answers?

    The prompt is the paper's for TruthfulQA.csv, and plain for other questions.
    """
    is_published = not is_organism(questions) and "Best Answer" in first_fields(questions)
    asked = _asked(questions, n, seed, template)
    subject = Subject.load(model, editor, out, device, dtype)
    words = unescaped(prompt) if prompt is not None else "paper" if is_published else "plain"
    result = evaluate_truthfulqa(
        subject.model, asked, subject.editor, prompt=words, **_common(subject, seed, confidence, batch_size)
    )
    subject.report(result)


@evaluate.command()
def bbq(
    model: ModelName,
    questions: Annotated[Path, typer.Argument(help="A file of BBQ, such as Age.jsonl.")],
    editor: EditorOption = None,
    out: Out = Path("bbq"),
    prompt: Prompt = "plain",
    template: Template = None,
    context: Annotated[
        Literal["both", "ambig", "disambig"], typer.Option(help="Only contexts that leave the answer open, or tell it.")
    ] = "both",
    scored_by: Annotated[
        Literal["sum", "mean"], typer.Option(help="Summed log-probability of an answer, or its mean per token.")
    ] = "sum",
    all_unknown_answers: Annotated[
        bool,
        typer.Option("--all-unknown-answers", help="Let all of BBQ's ways to say unknown compete, as lm-eval does."),
    ] = False,
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Measures accuracy, unknown answers, stereotypes and bias scores of BBQ, where the context tells and where not."""
    if template is None and prompt in BENCHMARK_PROMPTS and first_fields(questions) >= BBQ_FIELDS:
        template = Q_AND_A  # the form of the examples that come before

    def keep(read: Questions) -> Questions:
        if context == "both":
            return read
        rows = tuple(row for row in read if isinstance(row, BBQQuestion) and row.context_condition == context)
        if not rows:
            raise InputError(f"{questions} has no question with --context {context}. Leave that out.")
        return replace(read, rows=rows)

    asked = _asked(questions, n, seed, template, keep)
    subject = Subject.load(model, editor, out, device, dtype)
    result = evaluate_bbq(
        subject.model,
        asked,
        subject.editor,
        prompt=unescaped(prompt or "plain"),
        scored_by=scored_by,
        all_unknown_answers=all_unknown_answers,
        **_common(subject, seed, confidence, batch_size),
    )
    subject.report(result)


@evaluate.command()
def crows_pairs(
    model: ModelName,
    pairs: Annotated[
        Path, typer.Argument(help="crows_pairs_anonymized.csv, or JSONL with one true and one false each.")
    ],
    editor: EditorOption = None,
    out: Out = Path("crows-pairs"),
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Measures in how many pairs of sentences of CrowS-Pairs the one that stereotypes is the likelier."""
    asked = _asked(pairs, n, seed, None)
    subject = Subject.load(model, editor, out, device, dtype)
    result = evaluate_crows_pairs(
        subject.model, asked, subject.editor, **_common(subject, seed, confidence, batch_size)
    )
    subject.report(result)


@evaluate.command()
def perplexity(
    model: ModelName,
    texts: Annotated[
        Path,
        typer.Argument(
            help="A .txt file (one text), a JSON list or JSON lines of texts, or `organism` (its facts, truly told)."
        ),
    ],
    editor: EditorOption = None,
    out: Out = Path("perplexity"),
    context_length: Annotated[
        Optional[int], typer.Option(help="Tokens in one pass; the model's whole context if left out.", min=1)
    ] = None,
    stride: Annotated[
        Optional[int],
        typer.Option(help="New tokens in each window of a long text; half the context if left out.", min=1),
    ] = None,
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Measures perplexity on any text, and how far an edit moves predictions (KL): what it costs."""
    source = None if is_organism(texts) else texts
    if source is None:
        read = [join(question.prompt, question.true[0]) for question in read_questions(texts)]
    else:
        read = read_texts(texts)
    if n is not None:
        if not 1 <= n <= len(read):
            raise InputError(f"{n} texts were asked for, and {texts} has {len(read)}. Ask for 1 to that.")
        read = random.Random(seed).sample(read, n)
    subject = Subject.load(model, editor, out, device, dtype)
    result = evaluate_perplexity(
        subject.model,
        read,
        subject.editor,
        context_length=context_length,
        stride=stride,
        **_common(subject, seed, confidence, batch_size),
    )
    subject.report(result, source)
