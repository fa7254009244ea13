"""Is the model better, and what did it cost: evaluate. A result is a folder that names what made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from sea_lens import plotting
from sea_lens.cache import JSON
from sea_lens.cli.app import app
from sea_lens.cli.benchmarks import (
    Benchmark,
    Context,
    bbq_benchmark,
    crows_pairs_benchmark,
    generation_benchmark,
    perplexity_benchmark,
    truthfulqa_benchmark,
    truthfulqa_questions,
)
from sea_lens.cli.inputs import BatchSize, Device, DType, DTypeName, ModelName, Sampled, Template, load_model
from sea_lens.cli.output import UNFINISHED, finish, show
from sea_lens.editing.editor import Editor
from sea_lens.evaluation.evaluation import Evaluation, file_hash
from sea_lens.evaluation.lm_eval import evaluate_lm_eval
from sea_lens.evaluation.truthfulqa import write_for_judge
from sea_lens.models.bridge import Model

evaluate = typer.Typer(
    name="evaluate",
    help="Measures a model on a benchmark: unedited, or before and after an edit. Writes JSON, CSV and PNG files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(evaluate)

EditorOption = Annotated[
    Optional[str],
    typer.Option("--editor", help="Editor folder, or its name on the hub; the unedited model alone if left out."),
]
Out = Annotated[Path, typer.Option(help="Folder for the result; an unfinished one is gone on with.")]
EvaluationSeed = Annotated[int, typer.Option(help="Of samples and resamples.")]
Confidence = Annotated[float, typer.Option(help="Of the intervals, inside (0, 1).")]
Prompt = Annotated[
    Optional[str],
    typer.Option(
        help="paper (instruction and examples first), chat (the same in the tokenizer's chat template), plain, or a text "
        "with {question}."
    ),
]


@dataclass(frozen=True)
class Subject:
    """The model that is measured, what edits it, and where results go.

    Attributes:
        model: Unedited.
        editor: None for the unedited model alone.
        editor_name: The editor's folder, or its name on the hub.
        out: Folder of the result.
    """

    model: Model
    editor: Editor | None
    editor_name: str | None
    out: Path

    @classmethod
    def load(
        cls, model: str, editor: str | None, out: Path, device: str, dtype: DTypeName, reads: Path | None = None
    ) -> Subject:
        """Loads the editor first: a mistake there should not wait for the model, which is to read `reads`."""
        fitted = None if editor is None else Editor.from_pretrained(editor)
        return cls(load_model(model, device, dtype, reads=[reads]), fitted, editor, out)

    def measured(self, benchmark: Benchmark) -> Evaluation:
        """The result of a benchmark, kept on the way in a folder that is gone when all is written."""
        return benchmark(self.model, editor=self.editor, folder=self.out / UNFINISHED)

    def report(self, result: Evaluation, more: Mapping[str, JSON] | None = None, files: Sequence[str] = ()) -> None:
        """Shows a result and writes its folder.

        Args:
            result: The result.
            more: Facts about its data that the result was not told.
            files: Others that are there already.
        """
        write_evaluation(with_names(result, self.editor_name, more), self.out, files)


def write_evaluation(result: Evaluation, out: Path, files: Sequence[str] = ()) -> None:
    """Shows a result on the screen and writes its folder: JSON, CSV and a picture. `files` are there already."""
    options = result.provenance["options"]
    assert isinstance(options, Mapping)
    narrow = result.table.drop(columns=[name for name in result.table if "stderr" in str(name) or name == "interval"])
    show(narrow, f"{result.benchmark}, {float(str(options.get('confidence', 0.95))):.0%} intervals")
    written = [path.name for path in result.save(out)]
    plotting.plot_evaluation(result).savefig(out / "evaluation.png", dpi=150)
    finish(out, [*written, "evaluation.png", *files])


def with_names(result: Evaluation, editor: str | None, more: Mapping[str, JSON] | None = None) -> Evaluation:
    """A result that names the editor as it was given, and more about its data."""
    facts: dict[str, JSON] = dict(result.provenance)
    made_by, data = facts["editor"], facts["data"]
    if isinstance(made_by, Mapping):
        facts["editor"] = {"name": editor, **made_by}
    if more is not None and isinstance(data, Mapping):
        facts["data"] = {**data, **more}
    return replace(result, provenance=facts)


def of_file(path: Path) -> dict[str, JSON]:
    """A data file's name and hash."""
    return {"source": str(path), "sha256": file_hash(path)}


@evaluate.command()
def truthfulqa(
    model: ModelName,
    questions: Annotated[
        Path,
        typer.Argument(
            help="TruthfulQA.csv, JSONL with prompt, right and wrong, or `organism` (its held-out questions)."
        ),
    ],
    editor: EditorOption = None,
    out: Out = Path("truthfulqa"),
    prompt: Prompt = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Let the model answer by itself instead, for a judge: answers.jsonl.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="With --generate: longest answer, in tokens.", min=1)] = 50,
    template: Template = None,
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Measures MC1, MC2 and MC3 of TruthfulQA: does the model tell true from false answers?

    The prompt is the paper's for TruthfulQA.csv, and plain for other questions, if none is given.
    """
    if not generate:
        benchmark = truthfulqa_benchmark(questions, n, seed, confidence, batch_size, template, prompt)
        subject = Subject.load(model, editor, out, device, dtype, questions)
        subject.report(subject.measured(benchmark))
        return
    asked, words = truthfulqa_questions(questions, n, seed, template, prompt)
    subject = Subject.load(model, editor, out, device, dtype, questions)
    result = subject.measured(generation_benchmark(asked, words, seed, confidence, batch_size, max_new_tokens))
    out.mkdir(parents=True, exist_ok=True)
    write_for_judge(result, asked, out / "answers.jsonl")
    subject.report(result, files=("answers.jsonl",))


@evaluate.command()
def bbq(
    model: ModelName,
    questions: Annotated[
        Path, typer.Argument(help="A file of BBQ, such as Age.jsonl, or `bias-organism` (its held-out questions).")
    ],
    editor: EditorOption = None,
    out: Out = Path("bbq"),
    prompt: Prompt = None,
    context: Annotated[
        Context, typer.Option(help="Only contexts that leave the answer open, or that tell it.")
    ] = "both",
    scored_by: Annotated[
        Literal["sum", "mean"], typer.Option(help="Summed log-probability of an answer, or its mean over tokens.")
    ] = "sum",
    all_unknown_answers: Annotated[
        bool,
        typer.Option("--all-unknown-answers", help="Let all of BBQ's ways to say unknown compete, as lm-eval does."),
    ] = False,
    template: Template = None,
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Measures accuracy, unknown answers, stereotypes and bias scores of BBQ, by context."""
    benchmark = bbq_benchmark(
        questions, n, seed, confidence, batch_size, template, prompt, context, scored_by, all_unknown_answers
    )
    subject = Subject.load(model, editor, out, device, dtype, questions)
    subject.report(subject.measured(benchmark))


@evaluate.command()
def crows_pairs(
    model: ModelName,
    pairs: Annotated[
        Path, typer.Argument(help="crows_pairs_anonymized.csv, or JSONL with one right and one wrong answer each.")
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
    """Measures in how many pairs of CrowS-Pairs the sentence that stereotypes is the likelier one."""
    benchmark = crows_pairs_benchmark(pairs, n, seed, confidence, batch_size)
    subject = Subject.load(model, editor, out, device, dtype, pairs)
    subject.report(subject.measured(benchmark))


@evaluate.command()
def perplexity(
    model: ModelName,
    texts: Annotated[
        Path,
        typer.Argument(
            help="A .txt file (one text), a JSON list or JSON lines of texts, or `organism` or `bias-organism` (its "
            "held-out questions, rightly answered)."
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
    benchmark = perplexity_benchmark(texts, n, seed, confidence, batch_size, context_length, stride)
    subject = Subject.load(model, editor, out, device, dtype, texts)
    subject.report(subject.measured(benchmark), of_file(texts))


@evaluate.command("lm-eval")
def lm_eval(
    model: ModelName,
    tasks: Annotated[list[str], typer.Argument(help="Tasks and groups of lm-eval, such as hellaswag mmlu gsm8k.")],
    editor: EditorOption = None,
    out: Out = Path("lm-eval"),
    task_folder: Annotated[
        Optional[Path], typer.Option(help="Folder of task files (YAML) of your own, lm-eval's include_path.")
    ] = None,
    num_fewshot: Annotated[
        Optional[int], typer.Option(help="Worked examples in each prompt; each task's own number if left out.", min=0)
    ] = None,
    limit: Annotated[
        Optional[float], typer.Option(help="Samples a task, its first, or a share of them below 1; for trying out.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's own chat template.")] = False,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Runs tasks of lm-evaluation-harness on the edited model: HellaSwag, MMLU, GSM8K, ... Needs sea-lens[eval]."""
    subject = Subject.load(model, editor, out, device, dtype)
    result = evaluate_lm_eval(
        subject.model,
        tasks,
        subject.editor,
        num_fewshot=num_fewshot,
        limit=int(limit) if limit is not None and limit >= 1 else limit,
        batch_size=batch_size,
        task_folder=task_folder,
        options={"apply_chat_template": True} if chat else None,
        folder=subject.out / UNFINISHED,
        seed=seed,
        confidence=confidence,
    )
    subject.report(result)
