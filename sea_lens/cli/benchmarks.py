"""Benchmarks as the command line names them: a file read as its evaluation reads it, all but model and editor settled."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from sea_lens.cli.inputs import is_embedded, read_questions, unescaped
from sea_lens.data.benchmarks import layout_of
from sea_lens.data.prompts import Q_AND_A
from sea_lens.data.questions import BBQQuestion, Questions
from sea_lens.data.records import read_texts
from sea_lens.errors import InputError
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.evaluation.crows_pairs import evaluate_crows_pairs
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.perplexity import evaluate_perplexity
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa, generate_answers
from sea_lens.models.tokens import join

Benchmark = Callable[..., Evaluation]
"""Called with a model, `editor=` and `folder=`."""
Context = Literal["both", "ambig", "disambig"]
PROMPTS_WITH_EXAMPLES = ("paper", "chat")


def truthfulqa_questions(
    path: Path, n: int | None, seed: int, template: str | None, prompt: str | None
) -> tuple[Questions, str]:
    """Questions, and the prompt they go into: the paper's for `TruthfulQA.csv`, plain for others, if none is given."""
    is_published = not is_embedded(path) and layout_of(path) == "truthfulqa"
    questions = read_questions(path, _template(template))
    if all(isinstance(row, BBQQuestion) for row in questions):
        raise InputError(
            f"{path} has BBQ's questions, not TruthfulQA's. Measure them with `sea-lens evaluate bbq`, or --bbq."
        )
    questions = _sampled(questions, n, seed)
    return questions, unescaped(prompt) if prompt is not None else "paper" if is_published else "plain"


def truthfulqa_benchmark(
    path: Path,
    n: int | None,
    seed: int,
    confidence: float,
    batch_size: int,
    template: str | None = None,
    prompt: str | None = None,
) -> Benchmark:
    """TruthfulQA's multiple choice."""
    questions, words = truthfulqa_questions(path, n, seed, template, prompt)
    return partial(
        evaluate_truthfulqa,
        questions=questions,
        prompt=words,
        seed=seed,
        confidence=confidence,
        batch_size=batch_size,
    )


def generation_benchmark(
    questions: Questions, prompt: str, seed: int, confidence: float, batch_size: int, max_new_tokens: int
) -> Benchmark:
    """TruthfulQA's generation."""
    return partial(
        generate_answers,
        questions=questions,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        seed=seed,
        confidence=confidence,
        batch_size=batch_size,
    )


def bbq_benchmark(
    path: Path,
    n: int | None,
    seed: int,
    confidence: float,
    batch_size: int,
    template: str | None = None,
    prompt: str | None = None,
    context: Context = "both",
    scored_by: Literal["sum", "mean"] = "sum",
    all_unknown_answers: bool = False,
) -> Benchmark:
    """BBQ, read in the form of the examples where those come before it."""
    if template is None and prompt in PROMPTS_WITH_EXAMPLES and not is_embedded(path) and layout_of(path) == "bbq":
        template = Q_AND_A
    questions = read_questions(path, _template(template))
    if not any(isinstance(row, BBQQuestion) for row in questions):
        raise InputError(
            f"{path} has no questions of BBQ. Give a file of BBQ, or `bias-organism`, an embedded world's. (Those with true "
            "and false answers are measured with `sea-lens evaluate truthfulqa`, or --truthfulqa.)"
        )
    if context != "both":
        rows = tuple(row for row in questions if isinstance(row, BBQQuestion) and row.context_condition == context)
        if not rows:
            raise InputError(f"{path} has no question with --context {context}. Leave that out.")
        questions = replace(questions, rows=rows)
    return partial(
        evaluate_bbq,
        questions=_sampled(questions, n, seed),
        prompt="plain" if prompt is None else unescaped(prompt),
        scored_by=scored_by,
        all_unknown_answers=all_unknown_answers,
        seed=seed,
        confidence=confidence,
        batch_size=batch_size,
    )


def crows_pairs_benchmark(path: Path, n: int | None, seed: int, confidence: float, batch_size: int) -> Benchmark:
    """CrowS-Pairs."""
    pairs = _sampled(read_questions(path), n, seed)
    return partial(evaluate_crows_pairs, questions=pairs, seed=seed, confidence=confidence, batch_size=batch_size)


def perplexity_benchmark(
    path: Path,
    n: int | None,
    seed: int,
    confidence: float,
    batch_size: int,
    context_length: int | None = None,
    stride: int | None = None,
) -> Benchmark:
    """Perplexity and KL on texts; those of an embedded world are its held-out questions, rightly answered."""
    if is_embedded(path):
        texts = [join(question.prompt, question.right[0]) for question in read_questions(path)]
    else:
        texts = read_texts(path)
    if n is not None:
        if not 1 <= n <= len(texts):
            raise InputError(
                f"{n} texts were asked for, and {path} has {len(texts)}. Give a number from 1 to {len(texts)}."
            )
        texts = random.Random(seed).sample(texts, n)
    return partial(
        evaluate_perplexity,
        texts=texts,
        context_length=context_length,
        stride=stride,
        seed=seed,
        confidence=confidence,
        batch_size=batch_size,
    )


@dataclass(frozen=True)
class BenchmarkOptions:
    """Benchmarks by the options that name their files, for commands that measure on several."""

    truthfulqa: Annotated[Optional[Path], typer.Option(help="TruthfulQA.csv, JSONL, or `organism`: by MC1.")] = None
    truthfulqa_prompt: Annotated[Optional[str], typer.Option(help="As --prompt of `sea-lens evaluate truthfulqa`.")] = (
        None
    )
    bbq: Annotated[Optional[Path], typer.Option(help="A file of BBQ, or `bias-organism`: by accuracy.")] = None
    bbq_prompt: Annotated[Optional[str], typer.Option(help="As --prompt of `sea-lens evaluate bbq`.")] = None
    crows_pairs: Annotated[Optional[Path], typer.Option(help="crows_pairs_anonymized.csv.")] = None
    perplexity: Annotated[Optional[Path], typer.Option(help="Texts, or `organism` or `bias-organism`.")] = None

    @property
    def files(self) -> tuple[Path | None, ...]:
        """Those given, and None for the others."""
        return self.truthfulqa, self.bbq, self.crows_pairs, self.perplexity

    def read(self, n: int | None, seed: int, confidence: float, batch_size: int) -> dict[str, Benchmark]:
        """The benchmarks whose files are given, by name.

        Raises:
            InputError: If there is none, or a file is not what its option says.
        """
        common = (n, seed, confidence, batch_size)
        found: dict[str, Benchmark] = {}
        if self.truthfulqa is not None:
            found["TruthfulQA"] = truthfulqa_benchmark(self.truthfulqa, *common, prompt=self.truthfulqa_prompt)
        if self.bbq is not None:
            found["BBQ"] = bbq_benchmark(self.bbq, *common, prompt=self.bbq_prompt)
        if self.crows_pairs is not None:
            found["CrowS-Pairs"] = crows_pairs_benchmark(self.crows_pairs, *common)
        if self.perplexity is not None:
            found["texts"] = perplexity_benchmark(self.perplexity, *common)
        if not found:
            raise InputError(
                "Give at least one benchmark: --truthfulqa, --bbq, --crows-pairs or --perplexity with its file."
            )
        return found


def _template(template: str | None) -> str | None:
    return None if template is None else unescaped(template)


def _sampled(questions: Questions, n: int | None, seed: int) -> Questions:
    return questions if n is None else questions.sample(n, seed)
