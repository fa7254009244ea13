"""Peak memory of collecting and fitting, each measurement in a process of its own: `python -m benchmarks.memory MODE N`."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from sea_lens import Demonstrations, Editor
    from sea_lens.editing.affine import AffineEdit
    from sea_lens.models.bridge import Model

Result = TypeVar("Result")
Mode = Literal["streaming", "in memory", "checked"]
"""Sums instead of activations; activations; and sums, with an in-memory fit after the measurement to compare with."""

D_MODEL, N_LAYERS = 512, 2
"""Of the model: small, so that its sums and one pass are, and what grows with n shows."""

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has glibc give memory back as soon as it is freed, so that what is in use is measured, and not what is held for later."""


@dataclass(frozen=True)
class Peak:
    """Peak resident memory beyond that of the loaded model and of the texts, which the caller holds.

    Attributes:
        megabytes: How much.
        ranks: Of the editor, by layer and side.
        apart: Largest difference of an entry of the two fits' `P+ + P-`, where both were made.
    """

    megabytes: float
    ranks: str
    apart: float | None = None


def of_collect_and_fit(measured: Sequence[tuple[Mode, int]]) -> list[Peak]:
    """Of collecting so many demonstrations and fitting every layer; two processes of one thread at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(_in_a_process, measured))


def _in_a_process(measured: tuple[Mode, int]) -> Peak:
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, measured)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ALLOCATOR})
    return Peak(**json.loads(ran.stdout.splitlines()[-1]))


def peak_of(run: Callable[[], Result]) -> tuple[float, Result]:
    """Megabytes by which resident memory rises above what it was before, and what was run returns.

    On Linux; elsewhere by which the peak of the whole process rises, which an earlier and higher one hides.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)  # what is free, and would otherwise be used without being counted
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = _peak()
    result = run()
    return _peak() - before, result


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _fit(model: Model, demonstrations: Demonstrations, in_memory: bool) -> Editor:
    from sea_lens import SEA, collect_activations, collect_statistics

    if in_memory:
        return SEA(center=True).fit(collect_activations(model, demonstrations, progress=False), progress=False)
    return collect_statistics(model, demonstrations, progress=False).fit(center=True, progress=False)


def measure(mode: Mode, n: int) -> Peak:
    """In this process, whose peak must not have been raised by anything else."""
    import torch

    from benchmarks import worlds

    torch.set_num_threads(1)
    model = worlds.llama(D_MODEL, N_LAYERS)
    # Once on a few, so that what the libraries allocate once and for all is not counted.
    _fit(model, worlds.demonstrations(20, prefix=""), mode == "in memory")
    demonstrations = worlds.demonstrations(n, prefix="")
    megabytes, editor = peak_of(partial(_fit, model, demonstrations, mode == "in memory"))
    facts = editor.card.reports.values()
    ranks = " ".join(f"{found['rank_positive']}+{found['rank_negative']}" for found in facts)
    if mode != "checked":
        return Peak(megabytes, ranks)
    other = _fit(model, demonstrations, in_memory=True)
    return Peak(megabytes, ranks, max(_apart(editor[layer], other[layer]) for layer in editor.layers))


def _apart(one: AffineEdit, other: AffineEdit) -> float:
    ours, theirs = ((edit.directions * edit.eigenvalues) @ edit.directions.T for edit in (one, other))
    return float((ours - theirs).abs().max())


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    wanted: Mode = sys.argv[1]  # type: ignore[assignment]
    print(json.dumps(asdict(measure(wanted, int(sys.argv[2])))))
