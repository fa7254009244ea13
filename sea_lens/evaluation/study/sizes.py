"""How much of the data a study uses, so that it keeps to its time: questions of both halves, and demonstrations."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sea_lens.cache import Store
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.questions import Questions
from sea_lens.errors import SeaLensWarning
from sea_lens.methods.measures import Measure
from sea_lens.methods.method import Method
from sea_lens.models.activations import TokenChoice
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations

SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Numbers of rows that a slow model is given, so that small differences of speed change nothing."""
PER_TRIAL, TO_CONFIRM, TO_READ = 0.012, 0.35, 0.2
"""Shares of the time that one trial's questions, the questions of the confirmation, and the demonstrations may take."""
TIMED = 8
"""Rows that speed is measured on."""
MOST_TO_READ = 0.4
"""Share of the time past which no neutral answers are written, and methods that need them are left out."""
RowsT = TypeVar("RowsT", Questions, Demonstrations)


@dataclass(frozen=True)
class Sizes:
    """As much of the data as there is time for.

    Attributes:
        demonstrations: To fit on.
        fitting: Questions to choose by.
        held_out: Questions to score on.
        per_question: Seconds that a question takes; 0 where time does not count.
        writes_neutral: Whether there is time for neutral answers of the model's own.
    """

    demonstrations: Demonstrations
    fitting: Questions
    held_out: Questions
    per_question: float = 0.0
    writes_neutral: bool = True


def sized(
    model: Model,
    demonstrations: Demonstrations,
    halves: tuple[Questions, Questions],
    measure: Measure,
    seconds: float | None,
    passes: int,
    store: Store,
    *,
    tokens: Sequence[TokenChoice],
    neutral_tokens: int,
) -> Sizes:
    """As many demonstrations and questions of both halves as there is time for.

    Args:
        model: The model.
        demonstrations: To fit on.
        halves: Questions to choose by, and to score on.
        measure: How they are asked.
        seconds: Time for all; None for all of the data.
        passes: How often the held-out half will be asked.
        store: Where sizes are kept, so that a run that goes on uses the same data.
        tokens: Tokens of the fit, each of which is collected by itself.
        neutral_tokens: Longest neutral answer that the model has to write; 0 where it writes none.
    """
    fitting, held_out = halves
    if seconds is None:
        return Sizes(demonstrations, fitting, held_out)
    some = fitting[:TIMED]
    measure(model, some[:1])  # what is tried once per model
    began = time.perf_counter()
    measure(model, some)
    each = (time.perf_counter() - began) / len(some)
    kept: list[Any] = [row for row in store.rows() if isinstance(row, dict) and set(row) == {"sizes"}]
    if kept:
        n_fitting, n_held_out, n_demonstrations, writes = kept[0]["sizes"]
    else:
        n_fitting = _size(PER_TRIAL * seconds / each, len(fitting))
        n_held_out = _size(TO_CONFIRM * seconds / each / passes, len(held_out))
        reading, writing = _seconds(model, demonstrations, tokens, neutral_tokens)
        writes = (reading + writing) * min(SIZES[0], len(demonstrations)) <= MOST_TO_READ * seconds
        per_row = reading + (writing if writes else 0.0)
        n_demonstrations = _size(TO_READ * seconds / per_row, len(demonstrations))
        store.append({"sizes": [n_fitting, n_held_out, n_demonstrations, writes]})
    return Sizes(
        spread(demonstrations, n_demonstrations),
        spread(fitting, n_fitting),
        spread(held_out, n_held_out),
        each,
        bool(writes),
    )


def needs_neutral(methods: Sequence[Method], demonstrations: Demonstrations) -> bool:
    """Whether the model has to write neutral answers."""
    return any("neutral" in method.roles for method in methods) and any(row.neutral is None for row in demonstrations)


def _seconds(
    model: Model, demonstrations: Demonstrations, tokens: Sequence[TokenChoice], neutral_tokens: int
) -> tuple[float, float]:
    """What a demonstration takes to be read, and its neutral answer to be written."""
    some = demonstrations[:TIMED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        collect_activations(model, some[:1], None, tokens[0], progress=False)  # what is tried once per model
        began = time.perf_counter()
        collect_activations(model, some, None, tokens[0], progress=False)
        reading = len(tokens) * (time.perf_counter() - began) / len(some)
        if not neutral_tokens:
            return reading, 0.0
        began = time.perf_counter()
        some.with_neutral_answers(model, neutral_tokens, progress=False)
    return 1.5 * reading, (time.perf_counter() - began) / len(some)


def _size(wanted: float, there: int) -> int:
    return there if wanted >= there else min(there, max((size for size in SIZES if size <= wanted), default=SIZES[0]))


def spread(rows: RowsT, n: int) -> RowsT:
    """So many questions or demonstrations, evenly spread over those there are."""
    return rows if n == len(rows) else replace(rows, rows=tuple(rows[place] for place in evenly(len(rows), n)))


def evenly(there: int, wanted: int) -> list[int]:
    """As many places as are wanted, or as there are, evenly spread over them."""
    n = min(there, wanted)
    return [number * there // n for number in range(n)]
