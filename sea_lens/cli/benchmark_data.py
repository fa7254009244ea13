"""The data of benchmarks: from the options that name the files to questions, texts and tasks."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from sea_lens.cli.inputs import columns_in, is_embedded, read_questions, reading_of
from sea_lens.cli.options import SHARED, Options
from sea_lens.cli.prompting import unescaped
from sea_lens.data.texts import holds_texts, read_texts
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import RegisteredBenchmark
from sea_lens.evaluation.benchmark import benchmarks as registered
from sea_lens.evaluation.evaluation import Run

DATA = {
    "questions": "A published file, JSONL with prompt, right and wrong; or organism or bias-organism (held-out questions).",
    "texts": "A .txt file (one text), JSON, CSV or parquet with text; or questions, such as organism or bias-organism, read "
    "with their right answers.",
    "tasks": "Tasks and groups of lm-eval, such as hellaswag mmlu gsm8k.",
}


def read_data(
    entry: RegisteredBenchmark,
    data: Any,
    options: Options,
    n: Optional[int] = None,
    template: Optional[str] = None,
    format: str = "auto",
    columns: Optional[list[str]] = None,
    reader_options: Optional[list[str]] = None,
) -> Any:
    r"""The data of a benchmark, in the form that its prompt needs; `options["prompt"]` gets its line breaks.

    Args:
        entry: The benchmark.
        data: A file, or the tasks.
        options: Keywords of the benchmark.
        n: How many rows to sample; all if left out.
        template: What questions are put into, such as 'Q: {question}\nA:' (\n is a line break).
        format: Layout of the file, such as bbq or crows_pairs; auto finds it out from its columns.
        columns: A column that has another name, as in prompt=question; repeat for more.
        reader_options: An option of the layout, as in context_condition=ambig (BBQ) or direction=stereo (CrowS-Pairs);
            repeat for more.

    Raises:
        InputError: If the file does not hold such data.
    """
    seed = options.get("seed", 0)
    if options.get("prompt") is not None:
        options["prompt"] = unescaped(options["prompt"])
    if entry.reads == "tasks":
        return data
    if callable(entry.reads):
        takes = {
            name: one for name, one in (("n", n), ("seed", seed)) if name in inspect.signature(entry.reads).parameters
        }
        return entry.reads(data, **takes)
    reading = reading_of(format, columns, reader_options)
    may_be_texts = entry.reads == "texts" and not is_embedded(data) and format == "auto"
    if may_be_texts and holds_texts(data, columns=reading["columns"]):
        texts = read_texts(data, reading["columns"].get("text", "text"))
        if n is not None and n > len(texts):
            raise InputError(f"{n} texts were asked for, and {data} has {len(texts)}. Give a number from 1 to that.")
        return texts if n is None else random.Random(seed).sample(texts, n)
    own = entry.templates.get(str(options.get("prompt")))
    wanted = unescaped(template) if template is not None else {entry.name: own} if own is not None else None
    questions = read_questions(data, wanted, **reading)
    return questions if n is None else questions.sample(n, seed)


@dataclass(frozen=True)
class Files:
    """Benchmarks by the options that name their data: a part of a command."""

    def options(self) -> list[inspect.Parameter]:
        """An option for each benchmark's data, and one for its prompt if it has one."""
        found = []
        for name, entry in registered().items():
            kind: Any = list[str] if entry.reads == "tasks" else Path
            found.append(
                _option(name, Optional[kind], f"Data of {name}: {entry.summary[:1].lower()}{entry.summary[1:]}")
            )
            if "prompt" in entry.options:
                found.append(_option(f"{name}-prompt", Optional[str], f"As --prompt of `sea-lens evaluate {name}`."))
        return found

    def value(self, given: Mapping[str, Any]) -> dict[str, tuple[Any, Options]]:
        """Data and keywords of each benchmark that is given, by name.

        Raises:
            InputError: If there is none.
        """
        found = {}
        for name in registered():
            data, prompt = given.get(_key(name)), given.get(_key(f"{name}-prompt"))
            if data is not None:
                found[name] = data, {} if prompt is None else {"prompt": prompt}
        if not found:
            raise InputError(
                f"Give at least one benchmark with its data: {', '.join(f'--{name}' for name in registered())}."
            )
        return found


SHARED["benchmarks"] = Files()
Chosen = dict[str, tuple[Any, Options]]


def _key(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _option(name: str, hint: Any, text: str) -> inspect.Parameter:
    made = Annotated[hint, typer.Option(f"--{'-'.join(name.split())}", help=text)]
    return inspect.Parameter(_key(name), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=made)


def read_all(chosen: Chosen, n: int | None, run: Run, columns: list[str] | None = None) -> dict[str, Any]:
    """The benchmarks with their data filled in; of the columns that were named, each file gets those that it has."""
    found = {}
    for name, (data, own) in chosen.items():
        entry, options = registered()[name], {**own, "seed": run.seed}
        read = read_data(entry, data, options, n, columns=columns_in(data, columns))
        common = {name: getattr(run, name) for name in ("confidence", "batch_size", "neutral_texts")}
        found[name] = entry.on(
            read, **{key: value for key, value in {**options, **common}.items() if key in entry.options}
        )
    return found


def files_of(chosen: Chosen) -> list[Path]:
    """The files among the data."""
    return [data for data, _ in chosen.values() if isinstance(data, Path)]
