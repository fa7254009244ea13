"""One command from demonstrations and questions to a verdict and its page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Optional

from sea_lens.cli.app import command
from sea_lens.cli.inputs import Reading, columns_in, is_embedded, load, read_questions, reading_of
from sea_lens.cli.options import Of, Options
from sea_lens.cli.output import UNFINISHED, conclude, finish, keeps, note, record, rows_of, say, show
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.layouts import read_source
from sea_lens.data.questions import Questions
from sea_lens.data.texts import read_texts
from sea_lens.errors import FileFormatError, InputError
from sea_lens.evaluation.study.report import readable_rows
from sea_lens.evaluation.study.result import Study
from sea_lens.evaluation.study.study import study as run_study

MARGIN = "margin: nats by which right answers are likelier than wrong ones; "
LEGEND = f"{MARGIN}KL: its cost in nats per token; in brackets: 95 % intervals, or the range of several controls."
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
    fitted, asked = _read(model, demonstrations, questions, reading)
    texts = None if neutral is None else _paragraphs(neutral)
    earlier = _earlier(out)
    if earlier:
        note(f"{out} holds the results of {earlier}. They stay until those of this study replace them.")
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
    if earlier:
        found = replace(found, facts={**found.facts, "replaced": f"It replaces the results of {earlier} in {out}."})
    conclude(found.summary)
    record(found)
    for title, table in {"trials": found.trials, "controls": found.controls, "examples": found.examples}.items():
        keeps(title, rows_of(table))
    keeps("facts", [dict(found.facts)])
    keeps("repetition", [dict(found.repetition)] if found.repetition else [])
    keeps("checked", [{"finding": finding} for finding in found.checked.findings])
    say("")
    # What is among the reasons would leave no room for intervals of shares.
    told = found.table.drop(columns=["p_value", "kl_low", "kl_high"], errors="ignore")
    show(readable_rows(told).rename(columns={"": "model"}))
    if found.evaluation is not None:
        conclude(LEGEND.removeprefix("" if "margin" in found.table else MARGIN))
    if "setting" in found.facts:
        tried = "The one setting" if len(found.trials) == 1 else f"The best of {len(found.trials)} settings"
        conclude(f"{tried} tried, of {found.facts['planned']} planned: {found.facts['setting']}.")
    _list("What it rests on", found.reasons)
    _list("What separates the demonstrations besides meaning", found.checked.findings)
    _list("What to know of this run", found.told)
    written = [*found.save(out), found.report(out / "study.html")]
    finish(out, written)
    say(f"report: {out / 'study.html'}")


def _list(title: str, sentences: Sequence[str]) -> None:
    if sentences:
        say(f"\n{title}:")
    for sentence in sentences:
        say(f"- {sentence}", indent=2)


def _earlier(out: Path) -> str:
    """The study whose results lie in the folder already, with its verdict; empty where there is none."""
    there = out / "study.json"
    if not there.exists():
        return ""
    made = datetime.fromtimestamp(there.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    try:
        before = Study.load(out)
        verdict = f" (its verdict: {before.verdict}{f', {before.thin}' if before.thin else ''})"
    except FileFormatError:
        verdict = ""
    return f"a study of {made}{verdict}"


def _read(model: str, demonstrations: Path, questions: Path, reading: Reading) -> tuple[Demonstrations, Questions]:
    """Both files; where they are exchanged, an error with the right command line.

    Files of questions can be read as demonstrations and the other way round, so only both at once are taken for a mistake,
    and not where columns are named.
    """
    right = shlex.join(["sea-lens", "study", model, str(questions), str(demonstrations)])
    told = f"The order is MODEL DEMONSTRATIONS QUESTIONS: {right}, and the options as they are."
    is_auto = reading.format == "auto" and not reading.columns
    if is_auto and (_layout(demonstrations), _layout(questions)) == ("questions", "demonstrations"):
        raise InputError(
            f"{demonstrations} and {questions} seem to be exchanged: the first has right and wrong answers, as questions "
            f"have, and the second positive and negative ones, as demonstrations have. {told}"
        )
    try:
        return reading.read(demonstrations), _asked(questions, reading)
    except (InputError, FileFormatError) as error:
        try:
            reading.read(questions), _asked(demonstrations, reading)
        except (InputError, FileFormatError):
            raise error from None
        raise InputError(f"{error} {demonstrations} and {questions} seem to be exchanged. {told}") from error


def _asked(path: Path, reading: Reading) -> Questions:
    columns = reading_of("auto", columns_in(path, reading.columns), None)["columns"]
    return read_questions(path, columns=columns)


def _layout(path: Path) -> str:
    """The layout of a file by its own columns; empty where there is none."""
    with suppress(InputError, FileFormatError):
        return "" if is_embedded(path) else read_source(path)[0].name
    return ""


def _paragraphs(path: Path) -> list[str]:
    """Texts of a file; of a `.txt` file its paragraphs, between empty lines."""
    texts = read_texts(path)
    if path.name.removesuffix(".gz").endswith(".txt"):
        return [part.strip() for text in texts for part in text.split("\n\n") if part.strip()]
    return texts
