"""One command from demonstrations and questions to a verdict and its page."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Optional

from sea_lens.cli.app import command
from sea_lens.cli.inputs import Reading, columns_in, load, read_questions, reading_of
from sea_lens.cli.options import Of, Options
from sea_lens.cli.output import UNFINISHED, conclude, finish, keeps, record, rows_of, say, show
from sea_lens.data.texts import read_texts
from sea_lens.errors import FileFormatError
from sea_lens.evaluation.study.report import readable_rows
from sea_lens.evaluation.study.result import Study
from sea_lens.evaluation.study.study import study as run_study

STUDYING = Of(run_study, without=("methods", "neutral_texts", "max_new_tokens", "seed"))


@command("Start", studying=STUDYING)
def study(
    model: str,
    demonstrations: Path,
    questions: Path,
    out: Path = Path("study"),
    methods: Optional[str] = None,
    neutral: Optional[Path] = None,
    *,
    studying: Options,
    reading: Reading,
    loading: Options,
) -> None:
    """Find out whether it works: a verdict in words, and a page.

    The first line is the verdict: works, no effect, or breaks the model.
    """
    fitted = reading.read(demonstrations)
    columns = reading_of("auto", columns_in(questions, reading.columns), None)["columns"]
    asked = read_questions(questions, columns=columns)
    texts = None if neutral is None else _paragraphs(neutral)
    before = _earlier(out)
    bridge = load(model, loading, [demonstrations, questions])
    if reading.answer_ending is not None:
        fitted = fitted.with_answer_ending(reading.answer_ending)
    longest: Options = {} if reading.max_new_tokens is None else {"max_new_tokens": reading.max_new_tokens}
    found = run_study(
        bridge,
        reading.prompted(fitted, bridge),
        reading.prompted(asked, bridge),
        methods=None if methods is None else methods.split(","),
        neutral_texts=texts,
        seed=reading.seed,
        folder=out / UNFINISHED,
        **longest,
        **studying,
    )
    if before:
        found = replace(found, facts={**found.facts, "replaced": before})
    conclude(found.summary, *found.reasons)
    record(found)
    for title, table in {"trials": found.trials, "controls": found.controls, "examples": found.examples}.items():
        keeps(title, rows_of(table))
    keeps("facts", [dict(found.facts)])
    keeps("checked", [{"finding": finding} for finding in found.checked.findings])
    show(readable_rows(found.table).rename(columns={"": "model"}))
    if "setting" in found.facts:
        say(f"chosen of {len(found.trials)} of {found.facts['planned']} planned: {found.facts['setting']}", indent=0)
    conclude(*found.told)
    written = [*found.save(out), found.report(out / "study.html")]
    finish(out, written)
    say(f"report: {out / 'study.html'}")


def _earlier(out: Path) -> str:
    """What is said of results that lie in the folder already; empty where there are none."""
    there = out / "study.json"
    if not there.exists():
        return ""
    made = datetime.fromtimestamp(there.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    try:
        verdict = f" (its verdict: {Study.load(out).verdict})"
    except FileFormatError:
        verdict = ""
    return f"It replaces the results of a study of {made} in {out}{verdict}."


def _paragraphs(path: Path) -> list[str]:
    """Texts of a file; of a `.txt` file its paragraphs, between empty lines."""
    texts = read_texts(path)
    if path.name.removesuffix(".gz").endswith(".txt"):
        return [part.strip() for text in texts for part in text.split("\n\n") if part.strip()]
    return texts
