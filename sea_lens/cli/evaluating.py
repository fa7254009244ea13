"""Is the model better, and what did it cost: evaluate, compare, transfer, data-efficiency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import pandas as pd
import typer
from matplotlib.figure import Figure

from sea_lens import plotting
from sea_lens.cache import write_text
from sea_lens.cli.app import command_of_each
from sea_lens.cli.benchmark_data import DATA, Chosen, files_of, read_all, read_data
from sea_lens.cli.fitting_facts import of_demonstrations
from sea_lens.cli.inputs import Reading, columns_in, is_embedded, load, named, read_questions, reading_of
from sea_lens.cli.options import Of, Options, spread
from sea_lens.cli.output import UNFINISHED, conclude, draw, finish, record, save_editor, say, show
from sea_lens.cli.prompting import note_plain
from sea_lens.cli.verdicts import of_each, of_evaluation
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation import data_efficiency as efficiency
from sea_lens.evaluation.benchmark import RegisteredBenchmark
from sea_lens.evaluation.benchmark import benchmarks as registered
from sea_lens.evaluation.compare import Comparison
from sea_lens.evaluation.compare import compare as compare_editors
from sea_lens.evaluation.evaluation import Evaluation, Run, file_hash
from sea_lens.evaluation.method_comparison import SCORED, MethodComparison
from sea_lens.evaluation.side_by_side import score_cells, with_interval
from sea_lens.evaluation.transfer import Transfer
from sea_lens.evaluation.transfer import transfer as transfer_editors
from sea_lens.evaluation.which_method import compare_methods as compare_all
from sea_lens.methods.method import METHODS, MethodEntry


@command_of_each("Evaluating", registered, lambda entry: entry.summary, noun="benchmark")
def evaluate(entry: RegisteredBenchmark) -> Callable[..., None]:
    """Measure a model on a benchmark, with and without an edit."""

    def evaluate_benchmark(
        model: str,
        data: Any,
        editor: Optional[str] = None,
        out: Path = Path(entry.name),
        *,
        rows: Options,
        options: Options,
        loading: Options,
    ) -> None:
        asked = read_data(entry, data, options, **rows)
        fitted = None if editor is None else Editor.from_pretrained(editor)
        bridge = load(model, loading, [data] if isinstance(data, Path) else [])
        if options.get("prompt", "") is None and isinstance(asked, Questions):
            note_plain(bridge, asked[0].prompt, "--prompt chat puts them into it, and --prompt plain leaves this out")
        result = entry.evaluate(bridge, asked, fitted, folder=out / UNFINISHED, **options)
        out.mkdir(parents=True, exist_ok=True)
        more = [] if entry.also_writes is None else entry.also_writes(result, asked, out)
        names_file = entry.reads == "texts" or callable(entry.reads)
        write_evaluation(_with_names(result, editor, data if names_file else None), out, more)

    kind = list[str] if entry.reads == "tasks" else Path
    told = typer.Argument(help=DATA.get(str(entry.reads), "The file."), metavar="DATA")
    evaluate_benchmark.__annotations__["data"] = Annotated[kind, told]
    is_file = entry.reads in ("questions", "texts")
    takes = {"n": entry.reads != "tasks", "template": "prompt" in entry.options}
    takes |= dict.fromkeys(("format", "columns", "reader_options"), is_file)
    rows = Of(read_data, without=[name for name, has in takes.items() if not has])
    return spread(evaluate_benchmark, rows=rows, options=Of(entry.evaluate))


def write_evaluation(result: Evaluation, out: Path, files: Sequence[Path] = ()) -> None:
    """Shows a result on the screen and writes its folder: JSON, CSV and a picture. `files` are there already."""
    confidence = result.provenance["options"]["confidence"]  # type: ignore[index, call-overload]
    narrow = result.table.drop(columns=[name for name in result.table if "stderr" in str(name) or name == "interval"])
    conclude(of_evaluation(result))
    show(narrow, f"{result.benchmark}, {confidence:.0%} intervals")
    if result.damage is not None:
        show(result.damage.table, "Damage: perplexity, and KL in nats per token")
    if len(result.examples):
        show(result.examples, "Answers", lines=True)
    conclude(*result.findings)
    written = result.save(out)
    record(result)
    draw(out, {"evaluation": plotting.plot_evaluation(result)})
    finish(out, [*written, out / "evaluation.png", *files])


def _with_names(result: Evaluation, editor: str | None, file: Path | None) -> Evaluation:
    """A result that names the editor as it was given, and the file of its texts or facts."""
    facts: dict[str, Any] = dict(result.provenance)
    if facts["editor"] is not None:
        facts["editor"] = {"name": editor, **facts["editor"]}
    if file is not None:
        facts["data"] = {**facts["data"], "source": str(file), "sha256": file_hash(file)}
    return replace(result, provenance=facts)


# --- several editors or fits -----------------------------------------------------------------------------------------


COMPARED = {
    "editors": "Compare editors on benchmarks, with what each costs.",
    "methods": "Tune every method by one budget, and score each once on held-out questions.",
}


def _compared(words: list[str]) -> str:
    """Methods where they are asked for, and else editors."""
    return "methods" if any(word.split("=")[0] == "--methods" for word in words) else "editors"


@command_of_each("Evaluating", lambda: COMPARED, str, default=_compared)
def compare(summary: str) -> Callable[..., None]:
    """Compare editors; or, with --methods, all methods there are."""
    if summary == COMPARED["methods"]:
        return spread(_compare_all_methods, comparing=COMPARING)
    return spread(_compare_editors)


def _compare_editors(
    model: str,
    editors: list[str],
    out: Path = Path("comparison"),
    n: Optional[int] = None,
    columns: Optional[list[str]] = None,
    *,
    benchmarks: Chosen,
    run: Run,
    loading: Options,
) -> None:
    measured = read_all(benchmarks, n, run, columns)
    fitted = {name: Editor.from_pretrained(folder) for name, folder in named(editors, "editors").items()}
    bridge = load(model, loading, files_of(benchmarks))
    result = compare_editors(bridge, measured, fitted, control=run.control, damage=run.damage, folder=out / UNFINISHED)
    conclude(*of_each(result))
    _show_scores(result, run.confidence)
    _show_costs(result.table, "slowdown", "bytes", "rank", "layers")
    _write(result, plotting.plot_comparison(result), out)


COMPARING = Of(
    compare_all,
    only=("layers", "trials", "measure", "max_kl", "token", "control", "shuffles", "batch_size"),
)


def _compare_all_methods(
    model: str,
    demonstrations: Path,
    out: Path = Path("methods"),
    methods: str = "all",
    questions: Optional[Path] = None,
    held_out: Optional[Path] = None,
    sae: Optional[str] = None,
    *,
    reading: Reading,
    comparing: Options,
    loading: Options,
) -> None:
    fitted = reading.read(demonstrations)
    chosen: list[Any] = methods.split(",")
    if sae is not None:
        chosen = [*(name for name in chosen if name != "sas"), METHODS["sas"].cls(sae)]
    fitting, scored = _halves(demonstrations, questions, held_out, reading)
    bridge = load(model, loading, [demonstrations, questions, held_out])
    fitting, scored = (reading.prompted(one, bridge) for one in (fitting, scored))
    longest: Options = {} if reading.max_new_tokens is None else {"max_new_tokens": reading.max_new_tokens}
    if reading.answer_ending is not None:
        fitted = fitted.with_answer_ending(reading.answer_ending)
    result = compare_all(
        bridge,
        reading.prompted(fitted, bridge),
        fitting,
        scored,
        methods=chosen,
        seed=reading.seed,
        folder=out / UNFINISHED,
        **longest,
        **comparing,
    )
    conclude(
        f"better than chance and than every control: {', '.join(result.more_than_chance) or 'none'}",
        f"of these, not bettered at their damage: {', '.join(result.front) or 'none'}",
    )
    cells = pd.DataFrame(score_cells(result.comparison.table, SCORED, result.metric), index=result.table.index)
    show(cells, f"{result.metric.replace('_', ' ')} on {len(scored)} held-out questions, 95% intervals")
    _show_costs(result.table, "fit_seconds", "bytes", "tried", "setting")
    for name, why in result.left_out.items():
        say(f"{name} did not run: {why}")
    for name, editor in result.editors.items():
        save_editor(editor, out, f"editors/{name}")
    _write(result, plotting.plot_methods(result), out)


def _halves(
    demonstrations: Path, questions: Path | None, held_out: Path | None, reading: Reading
) -> tuple[Questions, Questions]:
    """The questions to tune by and those to score on: of two files, of an embedded world, or the halves of one file."""
    source = demonstrations if questions is None and is_embedded(demonstrations) else questions
    if source is None:
        raise InputError(
            "Give --questions, which are split into two halves, or --questions to tune by and --held-out to score on."
        )
    how = reading_of("auto", columns_in(source, reading.columns), None)["columns"]
    if held_out is None and not is_embedded(source):
        return read_questions(source, columns=how).split()
    last = source if held_out is None else held_out
    columns = reading_of("auto", columns_in(last, reading.columns), None)["columns"]
    return read_questions(source, to_choose_by=True, columns=how), read_questions(last, columns=columns)


@command_of_each("Evaluating", of_demonstrations, lambda entry: f"Fit {entry.name} on each file.", default="sea")
def transfer(entry: MethodEntry) -> Callable[..., None]:
    """Fit on each data set, measure on all: does it carry over?"""

    def transfer_method(
        model: str,
        sources: list[str],
        out: Path = Path("transfer"),
        layers: str = "all",
        n_questions: Optional[int] = None,
        *,
        benchmarks: Chosen,
        settings: Options,
        run: Run,
        reading: Reading,
        collecting: Options,
        loading: Options,
    ) -> None:
        method = entry.cls(**settings)
        files = {name: Path(file) for name, file in named(sources, "sources").items()}
        measured = read_all(benchmarks, n_questions, run, reading.columns)
        read = {name: reading.read(file) for name, file in files.items()}
        bridge = load(model, loading, [*files.values(), *files_of(benchmarks)])
        kept, neutral = out / UNFINISHED / "activations", "neutral" in entry.cls.roles
        collected = {
            name: reading.collect(bridge, data, collecting, kept / data.fingerprint, layers, neutral)
            for name, data in read.items()
        }
        beside: Options = {"control": run.control, "damage": run.damage}
        result = transfer_editors(bridge, measured, collected, method=method, **beside, folder=out / UNFINISHED)
        conclude(*of_each(result))
        _show_scores(result, run.confidence)
        _show_costs(result.table)
        _write(result, plotting.plot_transfer(result), out)

    return spread(transfer_method, settings=Of(entry.cls))


@command_of_each("Evaluating", of_demonstrations, lambda entry: f"Fit {entry.name} on ever more.", default="sea")
def data_efficiency(entry: MethodEntry) -> Callable[..., None]:
    """Fit on more and more demonstrations: how many are enough?"""

    def data_efficiency_method(
        model: str,
        demonstrations: Path,
        out: Path = Path("data-efficiency"),
        layers: str = "all",
        n_questions: Optional[int] = None,
        draws: int = 3,
        *,
        benchmarks: Chosen,
        sizing: Options,
        settings: Options,
        run: Run,
        reading: Reading,
        collecting: Options,
        loading: Options,
    ) -> None:
        method, measured = entry.cls(**settings), read_all(benchmarks, n_questions, run, reading.columns)
        if len(measured) > 1:
            raise InputError(f"Give one benchmark, and not {len(measured)}: {', '.join(measured)}.")
        (benchmark,) = measured.values()
        data, seeds = reading.read(demonstrations), range(reading.seed, reading.seed + draws)
        sizes = efficiency.chosen_sizes(len(data), sizing["sizes"], seeds)
        bridge = load(model, loading, [demonstrations, *files_of(benchmarks)])
        kept, neutral = out / UNFINISHED / "activations", "neutral" in entry.cls.roles
        activations = reading.collect(bridge, data, collecting, kept, layers, neutral)
        result = efficiency.data_efficiency(
            bridge,
            activations,
            benchmark,
            method=method,
            sizes=sizes,
            seeds=seeds,
            control=run.control,
            damage=run.damage,
            confidence=run.confidence,
            folder=out / UNFINISHED,
        )
        what = f"{result.unedited.benchmark}: {result.unedited.headline.replace('_', ' ')}"
        say(f"{what}, unedited {with_interval(result.unedited.score, *result.unedited_interval)}")
        show(result.curve, f"{what} by demonstrations, {run.confidence:.0%} intervals of the mean over draws")
        _write(result, plotting.plot_data_efficiency(result), out)

    sizing = Of(efficiency.data_efficiency, only=("sizes",))
    bare = Of(Run, builds=True, defaults={"control": 0})  # as the function's own default
    return spread(data_efficiency_method, sizing=sizing, settings=Of(entry.cls), run=bare)


def _show_scores(result: Comparison | Transfer, confidence: float) -> None:
    """One table per benchmark."""
    for name, headline in result.headlines.items():
        cells = pd.DataFrame(score_cells(result.table, name, headline), index=result.table.index)
        show(cells, f"{name}: {headline.replace('_', ' ')}, {confidence:.0%} intervals")


def _show_costs(table: pd.DataFrame, *costs: str) -> None:
    """What each edit costs, as far as it is known."""
    known = [
        name for name in ("kl", "perplexity_ratio", "is_broken", *costs) if name in table and table[name].notna().any()
    ]
    if known:
        show(table[known].iloc[1:], "Costs")


def _write(
    result: Comparison | Transfer | MethodComparison | efficiency.DataEfficiency, figure: Figure, out: Path
) -> None:
    """Writes a result's files, its table as Markdown and LaTeX and its picture."""
    written = result.save(out)
    record(result)
    name = written[0].stem
    for ending, text in {"md": result.to_markdown(), "tex": result.to_latex()}.items():
        write_text(out / f"{name}.{ending}", text)
    draw(out, {name: figure})
    finish(out, [*written, *(out / f"{name}.{ending}" for ending in ("md", "tex", "png"))])
