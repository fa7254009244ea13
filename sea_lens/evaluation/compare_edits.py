"""Several ways to edit facts, so many facts at a time: one table, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.data.facts import FactEdit, check_facts
from sea_lens.errors import InputError
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.fact_prompts import KINDS, STAY_KL
from sea_lens.evaluation.knowledge import FitsFacts, evaluate_edits
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.results import Result, readable

METRICS = ("harmonic_mean", *KINDS, STAY_KL)
UNEDITED = "unedited"


@dataclass(frozen=True, eq=False, repr=False)
class EditComparison(Result):
    """Ways to edit facts, each with so many facts at a time.

    Attributes:
        table: One row per way and number of facts `at_once`, after the unedited model's (0 at once), of `n` facts. Of every
            metric of `evaluate_knowledge` the value under its name; its interval, such as `paraphrase_low` to
            `paraphrase_high`, is that of the paired change, added to the unedited model's value; `paraphrase_control` is the
            mean over random editors that move every token as far, missing where there are none. Then `kl`,
            `perplexity_ratio`, `repetition` and `is_broken` (damage, as `Damage` has them), and `fit_seconds` per fact.
        evaluations: The whole results: `evaluations[way][at_once]`, the number as text.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> def by_mean(facts):
        ...     return sl.join_facts([sl.SAKE(transport="mean").fit(people.collect(model, fact)) for fact in facts])
        >>> found = sl.compare_edits(model, people.edits(2), {"mean": by_mean}, at_once=[1], control=0, damage=False)
        >>> found.table["efficacy"].tolist()  # unedited and edited
        [0.0, 1.0]
    """

    table: pd.DataFrame
    evaluations: Mapping[str, Mapping[str, Evaluation]]

    def _readable(self) -> pd.DataFrame:
        """Without the controls of measures that no control is expected to change."""
        beside = [f"{name}_control" for name in METRICS if name not in ("efficacy", "neighborhood")]
        hidden = [*beside, "n", "is_broken", "fit_seconds"]
        return readable(self.table.drop(columns=[name for name in hidden if name in self.table]))

    def _below(self) -> str:
        broken = (
            self.table[self.table["is_broken"].fillna(False).astype(bool)]
            if "is_broken" in self.table
            else self.table[:0]
        )
        named = ", ".join(f"{row.edit}, {row.at_once} at once" for row in broken.itertuples())
        return f"The model is broken by: {named}." if named else ""


def compare_edits(
    model: Model,
    facts: Sequence[FactEdit],
    fits: Mapping[str, FitsFacts],
    *,
    at_once: Sequence[int] = (1, 10, 100),
    control: int = 3,
    damage: bool = True,
    seed: int = 0,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> EditComparison:
    """Edits the same facts in several ways, one, ten and a hundred at a time, and puts all into one table.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        facts: What is edited.
        fits: By name, what makes an editor of some facts, as of `evaluate_edits`.
        at_once: How many facts one editor edits.
        control: How many norm-matched random editors to evaluate for each editor; 0 for none.
        damage: Whether to measure what the edits cost.
        seed: Of intervals, tests and controls.
        batch_size: Rows of tokens per forward pass. It changes no result, apart from rounding.
        folder: A folder for results. Those of a way and a number that are there are not made again, so take another folder
            for other facts or settings.
        progress: Whether to show progress bars.

    Returns:
        A result whose `table` has one row per way and number of facts at once, after the unedited model's, with every
        metric as a share with its interval, damage, and seconds of fitting per fact.

    Raises:
        InputError: If there are no facts or no ways to edit them, or one of these gives no editor.

    Warns:
        BrokenModelWarning: If edits break the model.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> def sake(facts):
        ...     return sl.join_facts([sl.SAKE().fit(people.collect(model, fact)) for fact in facts])
        >>> found = sl.compare_edits(model, people.edits(4), {"SAKE": sake}, at_once=[2], control=0, damage=False)
        >>> found.table[["at_once", "efficacy"]].to_numpy().tolist()
        [[0.0, 0.0], [2.0, 1.0]]
    """
    check_arguments(compare_edits, locals())
    check_is_model(model)
    given = check_facts(facts)
    if not fits or UNEDITED in fits or not at_once:
        raise InputError(
            f"Give at least one way to edit, by name (not {UNEDITED!r}), and one number of facts at once; {list(fits)} and "
            f"{list(at_once)} were given."
        )
    found: dict[str, dict[str, Evaluation]] = {}
    for name, fit in fits.items():
        for number in at_once:
            place = None if folder is None else Path(folder) / f"{name} {number}"
            if place is not None and (place / "evaluation.json").is_file():
                one = Evaluation.load(place)
            else:
                one = _timed(model, given, fit, number, control, damage, seed, batch_size, progress)
                if place is not None:
                    one.save(place)
            found.setdefault(name, {})[str(number)] = one
    return EditComparison(_table(found), found)


def _timed(
    model: Model,
    facts: Sequence[FactEdit],
    fit: FitsFacts,
    at_once: int,
    control: int,
    damage: bool,
    seed: int,
    batch_size: int,
    progress: bool,
) -> Evaluation:
    seconds = 0.0

    def timed(own: Sequence[FactEdit]) -> Any:
        nonlocal seconds
        started = time.perf_counter()
        editor = fit(own)
        seconds += time.perf_counter() - started
        return editor

    options: dict[str, Any] = {"control": control, "damage": damage, "seed": seed, "batch_size": batch_size}
    found = evaluate_edits(model, facts, timed, at_once=at_once, progress=progress, **options)
    found.provenance["options"]["fit_seconds"] = round(seconds / len(facts), 4)  # type: ignore[index, call-overload]
    return found


def _table(found: Mapping[str, Mapping[str, Evaluation]]) -> pd.DataFrame:
    first = next(iter(next(iter(found.values())).values()))
    names = [name for name in METRICS if name in first.table.index]
    before = {name: first.table.loc[name, "unedited"] for name in names}
    costs = {"kl": 0.0, "perplexity_ratio": 1.0, "repetition": 0.0, "is_broken": False}
    rows: list[dict[str, Any]] = [{"edit": UNEDITED, "at_once": 0, "n": len(first.per_row), **before, **costs}]
    for edit, by_number in found.items():
        for number, one in by_number.items():
            row: dict[str, Any] = {"edit": edit, "at_once": int(number), "n": len(one.per_row)}
            for name in names:
                own = one.table.loc[name]
                row[name] = own["edited"]
                most = math.inf if name == STAY_KL else 1.0
                row |= {f"{name}_{end}": min(max(own["unedited"] + own[end], 0.0), most) for end in ("low", "high")}
                if "control" in one.table:
                    row[f"{name}_control"] = own["unedited"] + own["control"]
            if one.damage is not None:
                row |= {"kl": one.damage.kl, "perplexity_ratio": one.damage.perplexity_ratio}
                row["repetition"] = one.damage.repetition
                row["is_broken"] = one.is_broken
            options: Any = one.provenance["options"]
            rows.append(row | {"fit_seconds": options.get("fit_seconds")})
    return pd.DataFrame(rows)
