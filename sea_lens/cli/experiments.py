"""Several fits or editors on benchmarks, in one table: compare, transfer, data-efficiency."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import pandas as pd
import typer
from matplotlib.figure import Figure

from sea_lens import plotting
from sea_lens.cache import write_text
from sea_lens.cli.app import app
from sea_lens.cli.benchmarks import BenchmarkOptions
from sea_lens.cli.evaluation import Confidence, EvaluationSeed, Out
from sea_lens.cli.inputs import BatchSize, DemonstrationsFile, Device, DType, Layers, ModelName, Sampled, load_model
from sea_lens.cli.options import FitOptions, ReadingOptions, spread
from sea_lens.cli.output import UNFINISHED, finish, show
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation import data_efficiency as efficiency
from sea_lens.evaluation.compare import Comparison, score_cells, with_interval
from sea_lens.evaluation.compare import compare as compare_editors
from sea_lens.evaluation.transfer import Transfer
from sea_lens.evaluation.transfer import transfer as transfer_editors

QuestionNumber = Annotated[Optional[int], typer.Option(help="Questions (or texts) to sample; all if left out.", min=1)]


@app.command()
@spread
def compare(
    model: ModelName,
    editors: Annotated[
        list[str], typer.Argument(help="Editor folders, or their names on the hub; NAME=FOLDER gives one a name.")
    ],
    out: Out = Path("comparison"),
    *,
    benchmarks: BenchmarkOptions,
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Compares editors on the benchmarks whose files are given, with what each costs, in one table."""
    measured = benchmarks.read(n, seed, confidence, batch_size)
    fitted = {name: Editor.from_pretrained(folder) for name, folder in _named(editors, "editors").items()}
    bridge = load_model(model, device, dtype, reads=benchmarks.files)
    result = compare_editors(bridge, measured, fitted, folder=out / UNFINISHED)
    _show_scores(result, confidence)
    costs = [name for name in ("slowdown", "bytes", "rank", "layers") if result.table[name].notna().any()]
    show(result.table[costs].iloc[1:], "Costs")
    _write(result, plotting.plot_comparison(result), out, "comparison", "evaluations/")


@app.command()
@spread
def transfer(
    model: ModelName,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Demonstrations to fit on, file by file, or `organism` or `bias-organism`; NAME=FILE gives one a name, "
            "TruthfulQA=FILE that of a benchmark, whose data it then is."
        ),
    ],
    out: Out = Path("transfer"),
    *,
    benchmarks: BenchmarkOptions,
    n_questions: QuestionNumber = None,
    confidence: Confidence = 0.95,
    rule: FitOptions,
    reading: ReadingOptions,
    layers: Layers = "all",
    dtype: DType = "float32",
) -> None:
    """Fits SEA on each demonstrations file and measures each editor on every benchmark: does it carry over?"""
    files = {name: Path(file) for name, file in _named(sources, "sources").items()}
    measured = benchmarks.read(n_questions, reading.seed, confidence, reading.batch_size)
    read = {name: reading.read(file) for name, file in files.items()}
    bridge = load_model(model, reading.device, dtype, reads=[*files.values(), *benchmarks.files])
    collected = {
        name: reading.collect(bridge, data, out / UNFINISHED / "activations" / data.fingerprint, layers)
        for name, data in read.items()
    }
    result = transfer_editors(bridge, measured, collected, method=rule.method, folder=out / UNFINISHED)
    _show_scores(result, confidence)
    _write(result, plotting.plot_transfer(result), out, "transfer", "evaluations/")


@app.command()
@spread
def data_efficiency(
    model: ModelName,
    demonstrations: DemonstrationsFile,
    out: Out = Path("data-efficiency"),
    *,
    benchmarks: BenchmarkOptions,
    size: Annotated[
        Optional[list[int]],
        typer.Option(help="Demonstrations of a fit; repeat for more. 25, 50, 100, ... up to all if left out."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws of each size, by the seeds from --seed on.", min=1)] = 3,
    n_questions: QuestionNumber = None,
    confidence: Confidence = 0.95,
    rule: FitOptions,
    reading: ReadingOptions,
    layers: Layers = "all",
    dtype: DType = "float32",
) -> None:
    """Fits SEA on ever more demonstrations, several draws of each number, and measures each fit on one benchmark."""
    measured = benchmarks.read(n_questions, reading.seed, confidence, reading.batch_size)
    if len(measured) > 1:
        raise InputError(f"Give one benchmark, and not {len(measured)}: {', '.join(measured)}.")
    (benchmark,) = measured.values()
    data = reading.read(demonstrations)
    seeds = range(reading.seed, reading.seed + draws)
    sizes = efficiency.chosen_sizes(
        len(data), size, seeds
    )  # refuses what is impossible before the model runs, not after
    bridge = load_model(model, reading.device, dtype, reads=[demonstrations, *benchmarks.files])
    result = efficiency.data_efficiency(
        bridge,
        reading.collect(bridge, data, out / UNFINISHED / "activations", layers),
        benchmark,
        sizes=sizes,
        seeds=seeds,
        method=rule.method,
        confidence=confidence,
        folder=out / UNFINISHED,
    )
    what = f"{result.unedited.benchmark}: {result.unedited.headline.replace('_', ' ')}"
    typer.echo(f"{what}, unedited {with_interval(result.unedited.score, *result.unedited_interval)}")
    show(result.curve, f"{what} by demonstrations, {confidence:.0%} intervals of the mean over draws")
    _write(result, plotting.plot_data_efficiency(result), out, "curve", "unedited/")


def _named(words: list[str], what: str) -> dict[str, str]:
    """Folders or files by name; one without a name is called as it is in its folder."""
    found: dict[str, str] = {}
    for given in words:
        name, equals, place = given.partition("=")
        if not equals or not place:
            name, place = Path(given).name or given, given
        if name in found:
            raise InputError(f"Two {what} are called {name!r}. Give them names: first={found[name]} second={place}.")
        found[name] = place
    return found


def _show_scores(result: Comparison | Transfer, confidence: float) -> None:
    """A table per benchmark: all in one would not fit the screen."""
    for name, headline in result.headlines.items():
        cells = pd.DataFrame(score_cells(result.table, name, headline), index=result.table.index)
        show(cells, f"{name}: {headline.replace('_', ' ')}, {confidence:.0%} intervals")


def _write(
    result: Comparison | Transfer | efficiency.DataEfficiency, figure: Figure, out: Path, name: str, folder: str
) -> None:
    """Writes a result's files, its table as Markdown and LaTeX and its picture by `name`; says so, and of its folder."""
    written = [str(path.relative_to(out)) for path in result.save(out) if path.parent == out]
    write_text(out / f"{name}.md", result.to_markdown())
    write_text(out / f"{name}.tex", result.to_latex())
    figure.savefig(out / f"{name}.png", dpi=150)
    finish(out, [*written, f"{name}.md", f"{name}.tex", f"{name}.png", folder])
