"""What a study's folder holds already, said before anything is run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from tqdm.auto import tqdm

from sea_lens.cache import JSON, Store
from sea_lens.evaluation.study.plans import Plan
from sea_lens.models.distributed import shows

FINISHED = "finished"
"""Key of the row of a run that came to its end: settings gone through, random directions and shuffles that were scored."""


def keep_finished(store: Store, through: int, random: int, shuffles: int) -> None:
    """Notes that a run came to its end.

    Args:
        store: Of the study.
        through: Settings that were tried, or found not to be possible.
        random: Random directions that were scored.
        shuffles: Shuffles that were scored.
    """
    row: JSON = {FINISHED: [through, random, shuffles]}
    if row not in store.rows():
        store.append(row)


def going_on(
    store: Store, folder: Path, planned: Sequence[Plan], trials: int | None, minutes: float, asked: tuple[int, int]
) -> str:
    """How much of a study is in its folder, and what is still to be done, in a sentence or two; empty for a new one.

    Args:
        store: Of the study.
        folder: The folder.
        planned: All settings.
        trials: How many of them are to be tried; None for as many as there is time for.
        minutes: How much time.
        asked: How many random directions and shuffles are to be scored.
    """
    rows = [row for row in store.rows() if isinstance(row, dict)]
    if not rows:
        return ""
    names = {row.get("plan") for row in rows}
    tried = sum(plan.name in names for plan in planned)
    settings = f"{tried} of {len(planned)} planned settings {'is' if tried == 1 else 'are'} tried"
    ends = [end for row in rows if isinstance(end := row.get(FINISHED), list)]
    goes_on = "It goes on from there" if trials is not None else f"It goes on from there, for {minutes:g} minutes"
    if not ends:
        return f"{folder} holds a run of this study that was stopped: {settings}. {goes_on}."
    enough = len(planned) if trials is None else min(trials, len(planned))
    for through, *scored in ends:
        if max(int(str(through)), tried) >= enough and all(
            int(str(done)) >= wanted for done, wanted in zip(scored, asked, strict=True)
        ):
            return (
                f"Everything of this study is in {folder} ({settings}, and the best is confirmed): it is read, and only fits "
                "and damage are made again."
            )
    return f"{folder} holds a finished run of this study: {settings}. {goes_on}."


def announce(sentence: str, progress: bool) -> None:
    """Says something on stderr, as wide as the terminal, where progress is shown."""
    if sentence and shows(progress):
        width = shutil.get_terminal_size().columns
        told = wrap(f"note: {sentence}", width, break_long_words=False, break_on_hyphens=False)
        tqdm.write("\n".join(told), file=sys.stderr)
