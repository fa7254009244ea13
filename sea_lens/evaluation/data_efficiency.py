"""How many demonstrations a fit needs: the score by their number, over several draws of them."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from sea_lens.cache import JSON, fingerprint, write_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import FileFormatError, InputError, SeaLensWarning
from sea_lens.evaluation.compare import Benchmark, scores_kept_in
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.methods.sea.sea import fit_sea
from sea_lens.models.activations import Activations, BySite
from sea_lens.models.bridge import Model
from sea_lens.tables import interval_text, to_latex, to_markdown

SIZES = (25, 50, 100, 250, 500, 1000, 2000)
"""The paper goes from 25 to 2,000."""
FORMAT = "sea_lens.data_efficiency/1"


@dataclass(frozen=True, eq=False)
class DataEfficiency:
    """Scores of fits on fewer demonstrations.

    Attributes:
        table: One row a fit: `size`, the `seed` of its draw (missing for the one fit on all demonstrations),
            `score`, its `change` from the unedited model with that change's interval `low` to `high` over questions,
            `p_value`, total `rank`, and `fit_seconds`.
        unedited: The evaluation of the unedited model.
        confidence: Of the intervals of `curve`.
    """

    table: pd.DataFrame
    unedited: Evaluation
    confidence: float = 0.95

    @property
    def curve(self) -> pd.DataFrame:
        """One row a size: `fits`, their `mean` score, its interval `low` to `high`, its `change`, `lowest` and `highest`.

        The interval is Student's t of the mean over draws, `mean ± t(k - 1) s / sqrt(k)`: with three draws or so a bootstrap
        or a normal interval is far too narrow. It says how much depends on *which* demonstrations are drawn, all answering
        the same questions; how much depends on the questions is in `table`. It is cut where scores end, as at 1: no mean lies
        beyond, so it holds the mean as often. Draws that are much of all there is share rows, so near the full size it is
        too narrow; a size with one fit has none.
        """
        from scipy.stats import t  # type: ignore[import-untyped]

        rows, scale = [], self.unedited.scale()
        for size, found in self.table.groupby("size")["score"]:
            k, mean = len(found), float(found.mean())
            reach = t.ppf((1 + self.confidence) / 2, k - 1) * found.std() / k**0.5 if k > 1 else float("nan")
            change = mean - self.unedited.score
            rows.append((size, k, mean, mean - reach, mean + reach, change, found.min(), found.max()))
        names = ["size", "fits", "mean", "low", "high", "change", "lowest", "highest"]
        curve = pd.DataFrame(rows, columns=names).set_index("size")
        curve[["low", "high"]] = curve[["low", "high"]].clip(scale.low, scale.high)
        return curve

    @property
    def unedited_interval(self) -> tuple[float, float]:
        """Interval of the unedited model's score, over questions."""
        table, headline = self.unedited.table, self.unedited.headline
        return float(table["low"][headline]), float(table["high"][headline])

    def to_markdown(self) -> str:
        """The curve, for a README or an issue, the unedited model's score in its first row."""
        return to_markdown(self._readable())

    def to_latex(self) -> str:
        """The same, for a paper."""
        return to_latex(self._readable())

    def _readable(self) -> pd.DataFrame:
        headline, (low, high) = self.unedited.headline, self.unedited_interval
        rows = {"unedited": {"fits": "", headline: interval_text(self.unedited.score, low, high), "change": ""}}
        for size, row in self.curve.iterrows():
            score = interval_text(row["mean"], row["low"], row["high"])
            rows[str(size)] = {"fits": f"{row['fits']:.0f}", headline: score, "change": f"{row['change']:+.3g}"}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("demonstrations")

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `result.json`, `fits.csv`, `curve.csv`, and the unedited model's evaluation in `unedited`.

        Returns:
            The files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, JSON] = {
            "format": FORMAT,
            "benchmark": self.unedited.benchmark,
            "headline": self.unedited.headline,
            "unedited": self.unedited.score,
            "confidence": self.confidence,
            "curve": json.loads(self.curve.reset_index().to_json(orient="records", double_precision=15)),
            "made_by": dict(self.unedited.provenance),
        }
        write_text(folder / "result.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "fits.csv", self.table.to_csv(index=False))
        write_text(folder / "curve.csv", self.curve.to_csv())
        written = [folder / name for name in ("result.json", "fits.csv", "curve.csv")]
        return [*written, *self.unedited.save(folder / "unedited")]

    def __repr__(self) -> str:
        points = ", ".join(f"{size}: {mean:.4g}" for size, mean in self.curve["mean"].items())
        return (
            f"DataEfficiency({self.unedited.benchmark} {self.unedited.headline}, unedited {self.unedited.score:.4g}; "
            f"demonstrations {points})"
        )


def data_efficiency(
    model: Model,
    activations: Activations,
    benchmark: Benchmark,
    *,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    fit: Callable[[Activations], Editor] = fit_sea,
    confidence: float = 0.95,
    folder: str | Path | None = None,
    progress: bool = True,
) -> DataEfficiency:
    """Fits on ever more demonstrations, drawn anew for every seed, and evaluates each fit.

    Activations are collected once and their rows drawn, without replacement; for one seed, a larger draw holds the smaller
    ones.

    Args:
        model: A TransformerBridge with a tokenizer, unedited: the one the activations come from.
        activations: Of all demonstrations there are.
        benchmark: On questions that the demonstrations are not about; see `Benchmark`.
        sizes: Numbers of demonstrations; for None those of 25, 50, 100, 250, 500, 1,000, 2,000 that are below the number that
            there is, and that number.
        seeds: Of the draws. All demonstrations are fitted on once, whatever the seeds.
        fit: Makes an editor of activations, such as `partial(sl.fit_sea, explained_variance=0.9999)`.
        confidence: Of the intervals of `DataEfficiency.curve`.
        folder: Where to keep finished fits' evaluations, and what benchmarks keep. A run that was killed goes on there, and
            one with more sizes or seeds takes up what is done. A `fit` of your own is known by its name, arguments and code
            alone: where what it calls changes, choose another folder.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a size is below 1 or above the number of demonstrations, there is no size or seed, or `confidence` is
            not inside (0, 1).
        FileFormatError: If `folder` holds another experiment.
    """
    n = activations.n
    chosen = chosen_sizes(n, sizes, seeds)
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be inside (0, 1), and {confidence} was given.")
    draws = [(size, seed) for size in chosen if size < n for seed in dict.fromkeys(seeds)]
    fits: list[tuple[int, int | None]] = [*draws, *([(n, None)] if n in chosen else [])]
    with (
        scores_kept_in(folder) as kept,
        tqdm(total=len(fits), desc="fits", unit="fit", disable=not progress) as bar,
        warnings.catch_warnings(),
    ):
        unedited = benchmark(model, editor=None, folder=kept, progress=progress)
        _check_folder(
            kept, {"benchmark": _settled(unedited), "activations": fingerprint(activations), "fit": _told(fit)}
        )
        warnings.simplefilter("ignore", SeaLensWarning)  # an edit that does nothing is a row like any other here
        rows = []
        for size, seed in fits:
            path = kept / "fits" / (f"{size}" if seed is None else f"{size}-{seed}") / "fit.json"
            row = _read(path)
            if row is None:
                drawn = activations if seed is None else draw(activations, size, seed)
                started = time.perf_counter()
                editor = fit(drawn)
                seconds = time.perf_counter() - started
                evaluation = benchmark(model, editor=editor, folder=kept, progress=progress)
                rank = sum(edit.rank for edit in editor.edits.values())
                row = {"size": size, "seed": seed, **_numbers(evaluation), "rank": rank, "fit_seconds": seconds}
                evaluation.save(path.parent)
                write_text(path, json.dumps(row) + "\n")  # last: it says that the rest is there
            rows.append(row)
            bar.update()
    return DataEfficiency(pd.DataFrame(rows).astype({"seed": "Int64"}), unedited, confidence)


def chosen_sizes(n: int, sizes: Sequence[int] | None, seeds: Sequence[int]) -> list[int]:
    """The numbers of demonstrations to fit on, in order, where there are `n`: those given, or for None the usual ones.

    Raises:
        InputError: If there is no size or seed, seeds are a number, or a size is below 1 or above `n`.
    """
    if isinstance(seeds, int):
        raise InputError(f"seeds are a list, such as range({seeds}) for {seeds} draws of each size; {seeds} was given.")
    chosen = sorted({size for size in SIZES if size < n} | {n}) if sizes is None else sorted(set(sizes))
    wrong = [size for size in chosen if not 1 <= size <= n]
    if wrong or not chosen or not seeds:
        raise InputError(
            f"At least one size and one seed are needed, and sizes of 1 to {n}, the number of demonstrations; sizes "
            f"{wrong or chosen} and seeds {list(seeds)} were given. More demonstrations are had by collecting activations "
            "of more."
        )
    return chosen


def draw(activations: Activations, size: int, seed: int) -> Activations:
    """Some of the demonstrations, in their order; of one seed, a larger draw holds every smaller one.

    Args:
        activations: Of all.
        size: How many.
        seed: Which.

    Raises:
        InputError: If there are not as many.
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


def _numbers(evaluation: Evaluation) -> Mapping[str, float]:
    table, headline = evaluation.table, evaluation.headline
    found = {name: float(table[name][headline]) for name in ("change", "low", "high", "p_value")}
    return {"score": evaluation.score, **found}


def _settled(unedited: Evaluation) -> dict[str, JSON]:
    """What a benchmark's numbers depend on besides the editor."""
    return {name: unedited.provenance[name] for name in ("model", "data", "prompt", "options")} | {
        "benchmark": unedited.benchmark,
        "headline": unedited.headline,
    }


def _told(fit: object) -> JSON:
    """What can be told of a function by which to know it again."""
    if isinstance(fit, partial):
        return {"function": _told(fit.func), "arguments": fingerprint(list(fit.args), dict(fit.keywords))}
    name = f"{getattr(fit, '__module__', '')}.{getattr(fit, '__qualname__', type(fit).__qualname__)}"
    code = getattr(fit, "__code__", None)
    if "<" not in name or code is None:  # a name says all but of a lambda or an inner function
        return name
    plain = [value for value in code.co_consts if isinstance(value, str | int | float | bytes | tuple)]
    around = [cell.cell_contents for cell in getattr(fit, "__closure__", None) or ()]
    return f"{name} {fingerprint(code.co_code, list(code.co_names), plain, around)}"


def _check_folder(folder: Path, manifest: Mapping[str, JSON]) -> None:
    """Notes what is to be kept in a folder, or checks that it is that which is kept there.

    Raises:
        FileFormatError: If something else is.
    """
    path = folder / "data_efficiency.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(manifest, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(manifest))
        different = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} could not be read: {error}. Delete the folder to start anew.") from error
    if different:
        raise FileFormatError(
            f"{folder} holds fits that differ in {', '.join(different)}. Choose another folder, or delete this one."
        )


def _read(path: Path) -> dict[str, JSON] | None:
    """A finished fit; None where it is missing or damaged, and so to be done again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found) if {"size", "score", "fit_seconds"} <= {*found} else None
    except (OSError, ValueError, TypeError):
        return None
