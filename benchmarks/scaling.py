"""How time and memory of collecting, fitting and applying grow with sizes, with the exponents of power laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from matplotlib.ticker import LogLocator

from benchmarks import worlds
from benchmarks.memory import peak_of
from benchmarks.timing import seconds
from sea_lens import SEA, Activations, collect_activations
from sea_lens.plotting.style import INK, PROMOTED, SUPPRESSED, canvas, page, tidy

SHARE = 0.998
LARGE = {"layers": 80, "d": 8192, "n": 2000, "rank": 128}
"""A 70B model: what the laws are carried on to."""
LOOKS = ((PROMOTED, "o-"), (SUPPRESSED, "s--"), (INK, "^-."))
POWERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        step: `collect`, `fit` or `apply`.
        over: Which size grows: `n`, `d`, `layers`, `rank` or `tokens`.
        size: Its value.
        seconds: Median time.
        megabytes: By which the step's peak rises above what was there before it, what it leaves behind included.
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
    fit = partial(SEA(SHARE).fit, activations, progress=False)
    return Point("fit", over, size, *_measured(fit, 3))


def _apply(over: str, size: int, d: int, rank: int, tokens: int) -> Point:
    edit = worlds.random_editor(d, 1, rank // 2)[0]
    h = torch.randn(1, tokens, d, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Point("apply", over, size, *_measured(partial(edit, h), 15))


def _collect(over: str, size: int, n: int, d: int, layers: int) -> Point:
    model, demonstrations = worlds.llama(d, layers), worlds.demonstrations(n, prefix="")
    collect = partial(collect_activations, model, demonstrations, progress=False)
    return Point("collect", over, size, *_measured(collect, 2))


def _measured(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds, and peak megabytes of the last run."""
    run()
    return median(seconds(run) for _ in range(repeats)), peak_of(run)[0]


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
        time, memory = (exponent(group["size"].tolist(), group[name].tolist()) for name in ("seconds", "megabytes"))
        print(f"{step}: time grows as {over}^{time:.2f}, memory as {over}^{memory:.2f}")
    print(_estimate(table))


def _draw(table: pd.DataFrame, path: Path, machine: str) -> None:
    figure = canvas(None, 12, 7)
    for column, (step, steps) in zip(figure.subplots(2, 3).T, table.groupby("step", sort=False), strict=True):
        column[0].set_title(str(step))
        for axes, what in zip(column, ("seconds", "megabytes"), strict=True):
            for (over, group), (color, look) in zip(steps.groupby("over", sort=False), LOOKS, strict=False):
                slope = exponent(group["size"].tolist(), group[what].tolist())
                grown = group["size"] / group["size"].iloc[0]
                label = f"{over} from {group['size'].iloc[0]:,}: {slope:.2f}"
                axes.loglog(grown, group[what], look, color=color, label=label)
            axes.set_xticks(POWERS, [str(power) for power in POWERS])
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("size, times the smallest")
            axes.set_ylabel(what if what == "seconds" else "peak megabytes beyond the start")
            axes.legend(frameon=False, fontsize=8)
            tidy(axes)
    figure.suptitle(f"In the legends: what grows, from where, and the exponent. {machine}", fontsize=9)
    page(figure).savefig(path, dpi=120)


def _estimate(table: pd.DataFrame) -> str:
    """Fit and apply at the size of a 70B model, from the largest measurement by the measured exponents."""
    start = table[(table["step"] == "fit") & (table["over"] == "d") & (table["size"] == LARGE["d"])].iloc[0]  # n = 600
    over_n = table[(table["step"] == "fit") & (table["over"] == "n")]

    def grown(what: str) -> float:
        # Two, as in theory, where what is measured at smaller sizes grows more slowly: it will not there.
        law = max(2.0, exponent(over_n["size"].tolist(), over_n[what].tolist()))
        return float(start[what]) * (LARGE["n"] / 600) ** law

    one, memory = grown("seconds"), grown("megabytes")
    layers = LARGE["layers"]
    activations = 3 * LARGE["n"] * LARGE["layers"] * LARGE["d"] * 4
    editor = LARGE["layers"] * LARGE["rank"] * (LARGE["d"] + 1) * 4
    dense = 2 * LARGE["layers"] * LARGE["d"] ** 2 * 4
    return (
        f"A 70B model ({LARGE}), extrapolated: a fit takes about {one:.2g} s a layer on this machine, {layers} layers "
        f"{one * layers / 60:.2g} min, at a peak of {memory / 1e3:.2g} GB beyond the activations. By arithmetic: activations "
        f"{activations / 1e9:.3g} GB in float32, editor {editor / 1e9:.2g} GB (dense projections: {dense / 1e9:.3g} GB)."
    )
