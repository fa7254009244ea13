"""How time and memory of collecting, fitting and applying grow with sizes, with the exponents of power laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import matplotlib
import pandas as pd
import torch

from benchmarks import worlds
from benchmarks.timing import seconds
from sea_lens import Activations, collect_activations, fit_sea

SHARE = 0.998
LARGE = {"layers": 80, "d": 8192, "n": 2000, "rank": 128}
"""A 70B model: what the laws are carried on to."""


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        step: `collect`, `fit` or `apply`.
        over: Which size grows: `n`, `d`, `layers`, `rank` or `tokens`.
        size: Its value.
        seconds: Median time.
        megabytes: Of what the step leaves behind: activations, or the editor; none for `apply`.
    """

    step: str
    over: str
    size: int
    seconds: float
    megabytes: float


def points() -> Iterator[Point]:
    """All measurements; the sizes that do not grow are fixed."""
    for n in (512, 1024, 2000):
        yield _fit("n", n, n=n, d=2048)
    for d in (1024, 2048, 4096, 8192):
        yield _fit("d", d, n=600, d=d)
    for layers in (1, 2, 4, 8):
        yield _fit("layers", layers, n=600, d=1024, layers=layers)
    for d in (1024, 2048, 4096, 8192):
        yield _apply("d", d, d=d, rank=128, tokens=256)
    for rank in (32, 64, 128, 256):
        yield _apply("rank", rank, d=4096, rank=rank, tokens=256)
    for tokens in (16, 64, 256, 1024):
        yield _apply("tokens", tokens, d=4096, rank=128, tokens=tokens)
    for n in (50, 100, 200, 400):
        yield _collect("n", n, n=n, d=128, layers=4)
    for d in (128, 256, 512):
        yield _collect("d", d, n=50, d=d, layers=4)
    for layers in (2, 4, 8):
        yield _collect("layers", layers, n=50, d=128, layers=layers)


def _fit(over: str, size: int, n: int, d: int, layers: int = 1) -> Point:
    sides = worlds.activations(n, d)
    by_role = [dict.fromkeys(range(layers), side) for side in sides]
    activations = Activations.from_tensors(neutral=by_role[0], positive=by_role[1], negative=by_role[2])
    fit = partial(fit_sea, activations, SHARE, progress=False)
    editor = fit()
    kept = sum(edit.directions.nbytes + edit.eigenvalues.nbytes for edit in editor.edits.values())  # type: ignore[attr-defined]
    return Point("fit", over, size, _median(fit, 3), kept / 1e6)


def _apply(over: str, size: int, d: int, rank: int, tokens: int) -> Point:
    edit = worlds.random_editor(d, 1, rank // 2)[0]
    h = torch.randn(1, tokens, d, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Point("apply", over, size, _median(partial(edit, h), 15), math.nan)


def _collect(over: str, size: int, n: int, d: int, layers: int) -> Point:
    model, demonstrations = worlds.llama(d, layers), worlds.demonstrations(n, prefix="")
    collect = partial(collect_activations, model, demonstrations, progress=False)
    activations = collect()
    kept = sum(tensor.nbytes for role in ("neutral", "positive", "negative") for tensor in activations[role].values())
    return Point("collect", over, size, _median(collect, 2), kept / 1e6)


def _median(run: Callable[[], object], repeats: int) -> float:
    run()
    return median(seconds(run) for _ in range(repeats))


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of a line through logarithms, by least squares."""
    x, y = (torch.tensor(side, dtype=torch.float64).log() for side in (sizes, values))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def run(folder: Path, machine: str) -> None:
    """Measures, and writes `scaling.csv` and `scaling.png`."""
    found = []
    for point in points():
        print(
            f"  {point.step} over {point.over} = {point.size}: {point.seconds:.4g} s, {point.megabytes:.3g} MB",
            flush=True,
        )
        found.append(point)
    table = pd.DataFrame(found)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "scaling.csv", index=False)
    _draw(table, folder / "scaling.png", machine)
    for (step, over), group in table.groupby(["step", "over"], sort=False):
        print(f"{step}: time grows as {over}^{exponent(group['size'].tolist(), group['seconds'].tolist()):.2f}")
    print(_estimate(table))


def _draw(table: pd.DataFrame, path: Path, machine: str) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, (step, steps) in zip(axes, table.groupby("step", sort=False), strict=True):
        for over, group in steps.groupby("over", sort=False):
            slope = exponent(group["size"].tolist(), group["seconds"].tolist())
            axis.loglog(group["size"], group["seconds"], "o-", label=f"{over}: exponent {slope:.2f}")
        axis.set(title=str(step), xlabel="size", ylabel="seconds")
        axis.legend()
    figure.suptitle(machine, fontsize=9)
    figure.savefig(path, dpi=120)


def _estimate(table: pd.DataFrame) -> str:
    """Fit and apply at the size of a 70B model, from the largest measurement by the measured exponents."""

    def law(step: str, over: str) -> float:
        group = table[(table["step"] == step) & (table["over"] == over)]
        return exponent(group["size"].tolist(), group["seconds"].tolist())

    start = table[(table["step"] == "fit") & (table["over"] == "d")].iloc[-1]  # n = 600 at d = 8192
    one = (
        start["seconds"]
        * (LARGE["n"] / 600) ** max(2.0, law("fit", "n"))
        * (LARGE["d"] / start["size"]) ** law("fit", "d")
    )
    layers = LARGE["layers"]
    activations = 3 * LARGE["n"] * LARGE["layers"] * LARGE["d"] * 4
    editor = LARGE["layers"] * LARGE["rank"] * (LARGE["d"] + 1) * 4
    dense = 2 * LARGE["layers"] * LARGE["d"] ** 2 * 4
    working = (3 * LARGE["n"] ** 2 + 2 * LARGE["n"] * 1024) * 8
    return (
        f"A 70B model ({LARGE}), extrapolated: a fit takes about {one:.2g} s a layer on this machine, {layers} layers "
        f"{one * layers / 60:.2g} min. By arithmetic: activations {activations / 1e9:.3g} GB in float32, working memory of a "
        f"fit {working / 1e9:.2g} GB, editor {editor / 1e9:.2g} GB (dense projections: {dense / 1e9:.3g} GB)."
    )
