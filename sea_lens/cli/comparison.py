"""Editors side by side: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import pandas as pd
import typer

from sea_lens import plotting
from sea_lens.cli.app import app
from sea_lens.cli.benchmarks import (
    Benchmark,
    bbq_benchmark,
    crows_pairs_benchmark,
    perplexity_benchmark,
    truthfulqa_benchmark,
)
from sea_lens.cli.evaluation import Confidence, EvaluationSeed, Out
from sea_lens.cli.inputs import BatchSize, Device, DType, ModelName, Sampled, load_model
from sea_lens.cli.output import UNFINISHED, finish, show
from sea_lens.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.experiments import Comparison, cells
from sea_lens.evaluation.experiments import compare as compare_editors
from sea_lens.tensor_files import write_text


@app.command()
def compare(
    model: ModelName,
    editors: Annotated[
        list[str], typer.Argument(help="Editor folders, or their names on the hub; NAME=FOLDER gives one a name.")
    ],
    out: Out = Path("comparison"),
    truthfulqa: Annotated[
        Optional[Path], typer.Option(help="TruthfulQA.csv, JSONL, or `organism`: compare by MC1.")
    ] = None,
    truthfulqa_prompt: Annotated[Optional[str], typer.Option(help="As for `sea-lens evaluate truthfulqa`.")] = None,
    bbq: Annotated[Optional[Path], typer.Option(help="A file of BBQ: compare by accuracy.")] = None,
    bbq_prompt: Annotated[Optional[str], typer.Option(help="As for `sea-lens evaluate bbq`.")] = None,
    crows_pairs: Annotated[Optional[Path], typer.Option(help="crows_pairs_anonymized.csv.")] = None,
    perplexity: Annotated[Optional[Path], typer.Option(help="Texts, or `organism`.")] = None,
    repeats: Annotated[int, typer.Option(help="Pairs of passes to time the slowdown by; 0 for none.", min=0)] = 20,
    n: Sampled = None,
    seed: EvaluationSeed = 0,
    confidence: Confidence = 0.95,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    dtype: DType = "float32",
) -> None:
    """Compares editors on the benchmarks whose files are given, with what each costs, in one table."""
    common = (n, seed, confidence, batch_size)
    benchmarks: dict[str, Benchmark] = {}
    if truthfulqa is not None:
        benchmarks["TruthfulQA"] = truthfulqa_benchmark(truthfulqa, *common, prompt=truthfulqa_prompt)
    if bbq is not None:
        benchmarks["BBQ"] = bbq_benchmark(bbq, *common, prompt=bbq_prompt)
    if crows_pairs is not None:
        benchmarks["CrowS-Pairs"] = crows_pairs_benchmark(crows_pairs, *common)
    if perplexity is not None:
        benchmarks["texts"] = perplexity_benchmark(perplexity, *common)
    if not benchmarks:
        raise InputError(
            "Give at least one benchmark: --truthfulqa, --bbq, --crows-pairs or --perplexity with its file."
        )
    fitted = {name: Editor.from_pretrained(folder) for name, folder in _named(editors).items()}
    bridge = load_model(model, device, dtype)
    result = compare_editors(bridge, fitted, benchmarks, folder=out / UNFINISHED, repeats=repeats)
    _show(result, confidence)
    written = [str(path.relative_to(out)) for path in result.save(out) if path.parent == out]
    write_text(out / "comparison.md", result.to_markdown())
    write_text(out / "comparison.tex", result.to_latex())
    plotting.plot_comparison(result).savefig(out / "comparison.png", dpi=150)
    finish(out, [*written, "comparison.md", "comparison.tex", "comparison.png", "evaluations/"])


def _named(editors: list[str]) -> dict[str, str]:
    """Folders by name; one without a name is called as its folder is."""
    found: dict[str, str] = {}
    for given in editors:
        name, equals, folder = given.partition("=")
        if not equals or not folder:
            name, folder = Path(given).name or given, given
        if name in found:
            raise InputError(f"Two editors are called {name!r}. Give them names: first={found[name]} second={folder}.")
        found[name] = folder
    return found


def _show(result: Comparison, confidence: float) -> None:
    """A table a benchmark, and one of costs: all in one would not fit the screen."""
    for name, headline in result.headlines.items():
        own = result.table[[f"{name} {what}" for what in (headline, "change", "low", "high", "p_value")]]
        texts = [cells(*row) for row in own.itertuples(index=False)]
        title = f"{name}: {headline.replace('_', ' ')}, {confidence:.0%} intervals"
        show(pd.DataFrame(texts, index=own.index, columns=["score", "change", "p"]), title)
    costs = [name for name in ("slowdown", "bytes", "rank", "layers") if result.table[name].notna().any()]
    show(result.table[costs].iloc[1:], "Costs")
