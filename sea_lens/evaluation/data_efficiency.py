"""How many demonstrations a fit needs: the score by their number, over several draws of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.stats import t as student_t  # type: ignore[import-untyped]
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.cache import JSON, Store, digest, name_of, write_text
from sea_lens.cells import to_latex, to_markdown
from sea_lens.editing.editor import Editor
from sea_lens.errors import BrokenModelWarning, InputError, SeaLensWarning
from sea_lens.evaluation.benchmark import Benchmark
from sea_lens.evaluation.compare import kept_in
from sea_lens.evaluation.evaluation import Evaluation, Run
from sea_lens.evaluation.guard import guarded_from_outside, passing_on
from sea_lens.evaluation.side_by_side import CONTROLS, NUMBERS, with_interval
from sea_lens.methods.method import Method
from sea_lens.methods.sea.sea import SEA
from sea_lens.models.activations import Activations, BySite
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.distributed import from_first, shows
from sea_lens.models.shared_meters import sharing
from sea_lens.results import Result

PUBLISHED = SEA()
"""The published method with its published settings."""
SIZES = (25, 50, 100, 250, 500, 1000, 2000)
"""The paper goes from 25 to 2,000."""


Fits = Method | Callable[[Activations], Editor]
"""What makes an editor of activations: a method, or any function."""


def fitting_function(method: Fits) -> Callable[[Activations], Editor]:
    """The function that fits."""
    return method.fit if isinstance(method, Method) else method


@dataclass(frozen=True, eq=False, repr=False)
class DataEfficiency(Result):
    """Scores of fits on fewer demonstrations.

    Attributes:
        table: One row per fit: `size`; the `seed` of its draw (missing for the one fit on all demonstrations); `score`; its
            `change` from the unedited model with its paired interval `low` to `high` over questions (see `metric_table`);
            `p_value`; with controls `control`, `control_low`, `control_high` and `control_p_value`; the damage `kl`,
            `perplexity_ratio` and `is_broken`; total `rank`; and `fit_seconds`.
        unedited: The evaluation of the unedited model.
        confidence: Confidence of the intervals of `curve`.
    """

    table: pd.DataFrame
    unedited: Evaluation
    confidence: float = 0.95

    @property
    def curve(self) -> pd.DataFrame:
        """One row per size: `fits`, their `mean` score, its interval `low` to `high`, its `change`, `lowest` and `highest`.

        The interval is Student's t for the mean over draws, `mean ± t(k - 1) s / sqrt(k)`: for about three draws, a bootstrap
        or a normal interval is far too narrow. It covers the choice of demonstrations for fixed questions; the intervals in
        `table` cover the choice of questions. It is cut where scores end, such as at 1. Draws that are a large part of all
        demonstrations share rows, so near the full size it is too narrow; a size with one fit has none.
        """
        rows, scale = [], self.unedited.scale()
        for size, found in self.table.groupby("size")["score"]:
            k, mean = len(found), float(found.mean())
            reach = student_t.ppf((1 + self.confidence) / 2, k - 1) * found.std() / k**0.5 if k > 1 else float("nan")
            change = mean - self.unedited.score
            rows.append((size, k, mean, mean - reach, mean + reach, change, found.min(), found.max()))
        names = ["size", "fits", "mean", "low", "high", "change", "lowest", "highest"]
        curve = pd.DataFrame(rows, columns=names).set_index("size")
        curve[["low", "high"]] = curve[["low", "high"]].clip(scale.low, scale.high)
        return curve

    @property
    def unedited_interval(self) -> tuple[float, float]:
        """Interval of the unedited model's score, over questions (see `metric_table`)."""
        table, headline = self.unedited.table, self.unedited.headline
        return float(table["low"][headline]), float(table["high"][headline])

    def _below(self) -> str:
        if "is_broken" not in self.table or not self.table["is_broken"].any():
            return ""
        count, most = int(self.table["is_broken"].sum()), self.table["kl"].max()
        told = f"{count} of {len(self.table)} fits break the model (KL up to {most:.3g} nats per token)"
        return f"{told}: their scores say little."

    def save(self, folder: str | Path) -> list[Path]:
        """Writes what every result does, and the curve as `curve.csv`."""
        written = super().save(folder)
        path = Path(folder) / "curve.csv"
        write_text(path, self.curve.to_csv())
        return [*written, path]

    def to_markdown(self) -> str:
        """The curve for a README or an issue, after the unedited model's score."""
        return to_markdown(self._curve_cells())

    def to_latex(self) -> str:
        """The same for a paper."""
        return to_latex(self._curve_cells())

    def _curve_cells(self) -> pd.DataFrame:
        headline = self.unedited.headline
        rows = [["unedited", "", with_interval(self.unedited.score, *self.unedited_interval), ""]]
        for size, row in self.curve.iterrows():
            score = with_interval(row["mean"], row["low"], row["high"])
            rows.append([str(size), f"{row['fits']:.0f}", score, f"{row['change']:+.3g}"])
        return pd.DataFrame(rows, columns=["demonstrations", "fits", headline, "change"])


def data_efficiency(
    model: Model,
    activations: Activations,
    benchmark: Benchmark,
    *,
    method: Fits = PUBLISHED,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    control: int | Sequence[Editor] = 0,
    damage: bool = True,
    confidence: float = 0.95,
    folder: str | Path | None = None,
    progress: bool = True,
) -> DataEfficiency:
    """Fits on more and more demonstrations, drawn anew for every seed, and evaluates each fit.

    Activations are collected once and their rows drawn without replacement; for one seed, a larger draw holds the smaller
    ones.

    Args:
        model: A TransformerBridge with a tokenizer, unedited: the one that the activations come from.
        activations: Activations of all demonstrations.
        benchmark: A benchmark on questions that the demonstrations are not about; see `Benchmark`.
        method: A method, such as `sl.SEA(0.9999)`, or a function from activations to an editor. With `folder`, a function
            must have a name that it can be imported by.
        sizes: Numbers of demonstrations. None is all of 25, 50, 100, 250, 500, 1,000 and 2,000 that are below the number of
            demonstrations, and that number.
        seeds: Seeds of the draws. All demonstrations are fitted once, whatever the seeds.
        control: How many norm-matched random editors each fit is compared with, or editors of your own. None by default: the
            fits are many, what they are compared with is each other, and every control costs as much as a fit's evaluation.
        damage: Whether to measure what each edit costs on the benchmark's prompts and on neutral text.
        confidence: Confidence of the intervals of `DataEfficiency.curve`.
        folder: A folder for finished fits, and for what the benchmark computes. A killed run continues there, and a run with
            more sizes or seeds reuses what is done. If the code of your function changes, choose another folder.
        progress: Whether to show progress bars.

    Returns:
        A result whose `table` has one row per fit, with its number of demonstrations, its headline score, the change
        from the unedited model with its interval, controls and damage. `curve` has means over the draws.

    Raises:
        InputError: If a size is below 1 or above the number of demonstrations, there is no size or seed, `confidence` is not
            inside (0, 1), or `folder` is given and the function has no name.
        FileFormatError: If `folder` holds another experiment.

    Warns:
        BrokenModelWarning: If edits break the model.

    Example:
        >>> from functools import partial
        >>> truth = partial(sl.evaluate_truthfulqa, questions=questions)
        >>> found = sl.data_efficiency(model, activations, truth, method=sl.SEA(0.5, center=True), sizes=[10, 120])
        >>> found.curve["fits"].to_dict()
        {10: 3, 120: 1}
    """
    check_arguments(data_efficiency, locals())
    check_is_model(model)
    if not isinstance(activations, Activations):
        raise InputError(
            f"Activations are needed, and a {type(activations).__name__} was given. Collect them with "
            "sl.collect_activations(model, demonstrations)."
        )
    n = activations.n
    chosen = chosen_sizes(n, sizes, seeds)
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be inside (0, 1), and {confidence} was given.")
    run = Run(folder=folder, progress=progress, control=control, damage=damage)
    ready = passing_on(benchmark, control=control, damage=damage)
    facts: dict[str, object] = {}
    if folder is not None:
        facts = {"method": name_of(fitting_function(method)), "activations": digest(activations)}
        facts |= {"control": digest(control), "damage": damage}
    draws = [(size, seed) for size in chosen if size < n for seed in dict.fromkeys(seeds)]
    fits: list[tuple[int, int | None]] = [*draws, *([(n, None)] if n in chosen else [])]
    with (
        kept_in(folder) as kept,
        sharing(),
        tqdm(total=len(fits), desc="fits", unit="fit", disable=not shows(progress)) as bar,
        warnings.catch_warnings(),
    ):
        unedited = ready(model, editor=None, folder=kept, progress=progress)
        store = Store(kept, "fits", facts | {"benchmark": _settled(unedited)})
        finished: dict[tuple[int, int | None], Any] = {
            (row["size"], row["seed"]): row for row in from_first(_rows(store))
        }
        warnings.simplefilter("ignore", SeaLensWarning)  # an edit that does nothing is a row like any other here
        for size, seed in fits:
            if (size, seed) not in finished:
                drawn = activations if seed is None else draw(activations, size, seed)
                started = time.perf_counter()
                editor = fitting_function(method)(drawn)
                seconds = time.perf_counter() - started
                evaluate = partial(_of, ready, model, kept, progress)
                evaluation = guarded_from_outside(evaluate(editor), model, editor, evaluate, replace(run, folder=kept))
                rank = sum(edit.rank for edit in editor.edits.values())
                row = {"size": size, "seed": seed, **_numbers(evaluation), "rank": rank, "fit_seconds": seconds}
                store.append(row)
                finished[size, seed] = row
            bar.update()
    result = DataEfficiency(
        pd.DataFrame([finished[key] for key in fits]).astype({"seed": "Int64"}), unedited, confidence
    )
    if result._below():
        warnings.warn(result._below(), BrokenModelWarning, stacklevel=2)
    return result


def _of(benchmark: Callable[..., Evaluation], model: Model, folder: Path, progress: bool, editor: Editor) -> Evaluation:
    return benchmark(model, editor=editor, folder=folder, progress=progress)


def chosen_sizes(n: int, sizes: Sequence[int] | None, seeds: Sequence[int]) -> list[int]:
    """The numbers of demonstrations to fit on, in order: those given, or the usual ones for None.

    Args:
        n: How many demonstrations there are.
        sizes: As for `data_efficiency`.
        seeds: As for `data_efficiency`.

    Raises:
        InputError: If there is no size or seed, seeds are a number, or a size is below 1 or above `n`.
    """
    if isinstance(seeds, int):
        raise InputError(f"seeds are a list, such as range({seeds}) for {seeds} draws of each size; {seeds} was given.")
    chosen = sorted({size for size in SIZES if size < n} | {n}) if sizes is None else sorted(set(sizes))
    wrong = [size for size in chosen if not 1 <= size <= n]
    if wrong or not chosen or not seeds:
        raise InputError(
            f"Give at least one seed and one size, with sizes of 1 to {n}, the number of demonstrations; sizes "
            f"{wrong or chosen} and seeds {list(seeds)} were given. For more, collect activations of more demonstrations."
        )
    return chosen


def draw(activations: Activations, size: int, seed: int) -> Activations:
    """Some of the demonstrations, in their order; for one seed, a larger draw holds every smaller one.

    Args:
        activations: Activations of all demonstrations.
        size: How many to draw.
        seed: Seed of the draw.

    Raises:
        InputError: If there are fewer.
    """
    if not 1 <= size <= activations.n:
        raise InputError(f"{size} demonstrations were asked for, and there are {activations.n}.")
    rows = torch.randperm(activations.n, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    sides = {
        role: BySite({site: tensor[rows.to(tensor.device)] for site, tensor in side.items()})
        for role, side in activations.sides.items()
    }
    known = activations.demonstrations
    known = None if known is None or size == activations.n else f"{known} {size} of {activations.n}, seed {seed}"
    return replace(activations, sides=sides, demonstrations=known)


def _numbers(evaluation: Evaluation) -> dict[str, JSON]:
    table, headline = evaluation.table, evaluation.headline
    found: dict[str, JSON] = {name: float(table[name][headline]) for name in NUMBERS}
    if "control" in table:
        found |= {name: float(table[name][headline]) for name in CONTROLS}
    if evaluation.damage is not None:
        known = evaluation.damage
        found |= {"kl": known.kl, "perplexity_ratio": known.perplexity_ratio, "is_broken": known.is_broken}
    return {"score": evaluation.score, **found}


def _settled(unedited: Evaluation) -> Mapping[str, JSON]:
    """What a benchmark's numbers depend on besides the editor."""
    return {name: unedited.provenance[name] for name in ("model", "data", "prompt", "options")} | {
        "benchmark": unedited.benchmark,
        "headline": unedited.headline,
    }


def _rows(store: Store) -> list[Any]:
    return [row for row in store.rows() if isinstance(row, dict) and {"size", "seed", "score", "fit_seconds"} <= {*row}]
