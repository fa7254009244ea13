"""Peak memory, each measurement in a process of its own: `python -m benchmarks.memory N` prints that of N demonstrations."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass


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


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _measure(n: int) -> Peak:
    import torch

    from benchmarks import worlds
    from sea_lens import collect_activations, fit_sea

    torch.set_num_threads(1)
    model = worlds.llama(512, 2)
    # Once on a few, so that what the libraries allocate once and for all is not counted.
    fit_sea(collect_activations(model, worlds.demonstrations(20, prefix=""), progress=False), progress=False)
    demonstrations = worlds.demonstrations(n, prefix="")
    before = _peak()
    fit_sea(collect_activations(model, demonstrations, progress=False), progress=False)
    return Peak(_peak() - before, "in memory")


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    found = _measure(int(sys.argv[1]))
    print(json.dumps({"megabytes": found.megabytes, "mode": found.mode}))
