"""The rows of the table, a file per user path. Each makes its world, times both ways in turns and compares their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.rows.ablating import ablation_rows
from benchmarks.rows.attaching import attach_rows
from benchmarks.rows.collecting import chat_rows, collect_rows
from benchmarks.rows.edits import apply_rows, disk_rows
from benchmarks.rows.fits import fit_rows
from benchmarks.rows.forward import forward_rows
from benchmarks.rows.generating import generate_rows
from benchmarks.rows.scoring import harness_rows, truthfulqa_rows
from benchmarks.rows.sizes import memory_rows, vocabulary_rows
from benchmarks.rows.tuning import fit_settings_rows, tune_rows
from benchmarks.timing import Row

ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "fit": fit_rows,
    "apply": apply_rows,
    "forward": forward_rows,
    "attach": attach_rows,
    "collect": collect_rows,
    "chats": chat_rows,
    "generate": generate_rows,
    "ablation": ablation_rows,
    "truthfulqa": truthfulqa_rows,
    "lm-eval": harness_rows,
    "fit-settings": fit_settings_rows,
    "tune": tune_rows,
    "disk": disk_rows,
    "memory": memory_rows,
    "vocabulary": vocabulary_rows,
}
"""By the name that `--only` takes."""
