"""Peak memory, each measurement in a process of its own: `python -m benchmarks.memory N` prints that of N demonstrations."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peak:
    """Peak resident memory beyond that of the loaded model.

    Attributes:
        megabytes: How much.
        mode: Whether activations were kept in memory, or streamed.
    """

    megabytes: float
    mode: str


def of_collect_and_fit(n: int) -> Peak:
    """Of collecting from so many demonstrations and fitting every layer."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", str(n)], capture_output=True, text=True, check=True
    )
    return Peak(**json.loads(ran.stdout.splitlines()[-1]))


def _reset_peak() -> None:
    """From here on (on Linux; elsewhere the peak is that of the whole process)."""
    counters = Path("/proc/self/clear_refs")
    if counters.exists():
        counters.write_text("5")


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _measure(n: int) -> Peak:
    import torch

    from benchmarks import worlds
    from sea_lens import collect_activations, fit_sea

    torch.set_num_threads(1)
    model = worlds.llama(512, 2)
    # Once on a few, so that what the libraries allocate once and for all is not counted.
    fit_sea(collect_activations(model, worlds.demonstrations(20, prefix=""), progress=False), progress=False)
    demonstrations = worlds.demonstrations(n, prefix="")
    gc.collect()
    _reset_peak()
    before = _peak()
    fit_sea(collect_activations(model, demonstrations, progress=False), progress=False)
    return Peak(_peak() - before, "in memory")


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    found = _measure(int(sys.argv[1]))
    print(json.dumps({"megabytes": found.megabytes, "mode": found.mode}))
