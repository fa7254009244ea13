"""Whether an edit makes a model repeat itself: a number, of the answers that are written anyway."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.models.bridge import Model
from sea_lens.models.repetition import repetition_of
from sea_lens.statistics import mean_intervals

SIDES = ("unedited", "edited")
LEAST_RISE, LOOPS = 0.05, 0.2
"""Shares of token pairs: below the first a rise is not worth a word; from the second on it is told, certain or not."""


def repeats_of(model: Model, evaluation: Evaluation, examples: pd.DataFrame, seed: int) -> dict[str, int | float]:
    """See `Study.repetition`: of all answers where the measure is of answers, of those that are shown otherwise.

    Args:
        model: The model, whose tokens are counted.
        evaluation: Of the editor.
        examples: As `Damage.examples`.
        seed: Of the interval.
    """
    rows = evaluation.per_row
    if {f"answer {side}" for side in SIDES} <= set(rows):
        shares = [[repetition_of(model, str(text)) for text in rows[f"answer {side}"]] for side in SIDES]
    elif len(examples):
        shares = [examples[f"repetition {side}"].tolist() for side in SIDES]
    else:
        return {}
    before, after = (torch.tensor(side, dtype=torch.float64) for side in shares)
    low, high = mean_intervals((after - before)[:, None], seed)
    means = {"unedited": float(before.mean()), "edited": float(after.mean()), "change": float((after - before).mean())}
    return {"n": len(before), **means, "low": float(low), "high": float(high)}


def rises(repeats: Mapping[str, int | float]) -> bool:
    """Whether the edited model repeats itself more by five points at least, beyond what the answers differ by."""
    return bool(repeats) and repeats["low"] > 0 and repeats["change"] >= LEAST_RISE


def may_rise(repeats: Mapping[str, int | float]) -> bool:
    """Whether it repeats itself much more in so few answers that it may be chance."""
    return bool(repeats) and not rises(repeats) and repeats["change"] >= LOOPS


def but_of(verdict: str, repeats: Mapping[str, int | float]) -> str:
    """What the heading of a verdict adds to *works*: an edited model that goes round in circles has not the effect alone."""
    if verdict != "works":
        return ""
    return "but repeats itself" if rises(repeats) else "but may repeat itself" if may_rise(repeats) else ""


def told_of_repeats(repeats: Mapping[str, int | float]) -> str:
    """In a sentence."""
    low, high, n = (repeats[name] for name in ("low", "high", "n"))
    if not repeats["edited"] and not repeats["unedited"]:
        return f"Repetition: in {n:.0f} greedy answer{'s' if n > 1 else ''} of either model no token pair comes twice."
    ends = f" [{low:+.1%}, {high:+.1%}]" if low == low else ""  # of one answer there is no interval
    told = (
        f"{repeats['edited']:.1%} of the token pairs of an edited answer stood in it before, {repeats['unedited']:.1%} of an "
        f"unedited one ({repeats['change']:+.1%}{ends}, {n:.0f} greedy answer{'s, paired' if n > 1 else ''})."
    )
    return f"Repetition rises: {told}" if rises(repeats) else f"Repetition: {told}"
