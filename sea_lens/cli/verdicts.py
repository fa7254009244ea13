"""The first line of a result: is a change more than chance, and more than every control, and is the model whole?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from sea_lens.analysis.effects import EFFECTS, Effects
from sea_lens.analysis.layers import Ablation
from sea_lens.analysis.probes import Probes
from sea_lens.cells import number_text, p_text
from sea_lens.evaluation.compare import Comparison
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.metrics import Scale
from sea_lens.evaluation.transfer import Transfer
from sea_lens.methods.tuning import Tuning, describe_setting
from sea_lens.models.damage import Damage

LEVEL = 0.05
"""The p-value up to which a change counts as more than chance."""


def verdict(
    name: str,
    before: float,
    after: float,
    row: pd.Series[Any],
    scale: Scale | None = None,
    damage: Damage | None = None,
) -> str:
    """A sentence about one change.

    Args:
        name: What changes.
        before: Unedited.
        after: Edited.
        row: `change`, `low`, `high` and `p_value`; with controls `control_low` and `control_high`.
        scale: Which values are better; None where more is.
        damage: What the edit costs, where it was measured.
    """
    found: dict[str, Any] = {str(key): value for key, value in row.items()}
    ends = f"[{number_text(found['low'], sign='+')}, {number_text(found['high'], sign='+')}]"
    told = (
        f"{name} {number_text(before)} -> {number_text(after)}, change {number_text(after - before, sign='+')} {ends}"
    )
    p_value = found.get("p_value", math.nan)
    told += "" if pd.isna(p_value) else f", p {'< 0.001' if p_value < 0.001 else f'= {p_text(p_value)}'}"
    if damage is not None and damage.is_broken:
        past = damage.finding.removeprefix("This edit breaks the model: ").rstrip(".")
        return f"breaks the model: {past}. So this says little: {told}."
    is_zero = before == after or (pd.isna(p_value) and found["low"] <= 0 <= found["high"])
    if is_zero or p_value > LEVEL:
        return f"no change beyond chance: {told}."
    gain = after - before if scale is None else scale.gain(before, after)
    if pd.isna(gain):
        return f"a change beyond chance, for better or worse: {told}."
    if gain < 0:
        return f"worse than unedited, beyond chance: {told}."
    if pd.isna(found.get("control_high", math.nan)):
        return f"better than chance; no control was run: {told}."
    rivals = [found[end] if scale is None else scale.gain(before, before + found[end]) for end in CONTROL]
    controls = " to ".join(number_text(found[end], sign="+") for end in CONTROL)
    if gain > max(rivals):
        return f"better than chance and than every control: {told}; controls {controls}."
    return f"better than chance, but controls do as much: {told}; controls {controls}."


CONTROL = ("control_low", "control_high")


def of_effects(result: Effects) -> str:
    """About whether the answer is right; where that was not measured, about the first effect."""
    names = [str(name) for name in result.table.index]
    name = next((one for one in ("top_token", "accuracy", *names) if one in names), names[0])
    row: Any = result.table.loc[name]
    scale = Scale(best=-math.inf if EFFECTS[name].less_is_better else math.inf)
    return verdict(name.replace("_", " "), row["unedited"], row["edited"], row, scale, result.damage)


def of_ablation(result: Ablation) -> str:
    """About the whole edit, and the layer that does most by itself."""
    rows = result.table.set_index("mode")
    scale = Scale(best=-math.inf if EFFECTS[result.effect].less_is_better else math.inf)
    whole: Any = rows.loc["all"]
    before: Any = rows.at["none", "value"]
    told = verdict(
        f"{result.effect.replace('_', ' ')} of all layers", before, whole["value"], whole, scale, result.damage
    )
    alone = result.table[result.table["mode"] == "only"]
    if alone.empty:
        return told
    best: Any = alone.iloc[int(alone["change"].abs().to_numpy().argmax())]
    return f"{told} By itself layer {best['layer']} changes most: {number_text(best['change'], sign='+')}."


def of_probes(result: Probes) -> str:
    """About the site that is read best."""
    table = result.table
    row: Any = table.iloc[int(table["accuracy"].to_numpy().argmax())]
    where = f"{table.index.name or 'layer'} {row.name}"
    ends = f"{row['accuracy']:.0%} [{100 * row['accuracy_low']:.0f}, {100 * row['accuracy_high']:.0f}]"
    chance = max(0.5, float(row.get("shuffled_high", 0.5)))
    if not row["accuracy_low"] > chance:
        return f"no better than chance: {ends} at {where}, the best; labels by chance reach {chance:.0%}."
    told = f"better than chance: {ends} at {where}, the best; labels by chance reach {chance:.0%}."
    if "edited_accuracy" not in row or pd.isna(row["edited_accuracy"]):
        return told
    again = f"a new probe {row['refitted_accuracy']:.0%}"
    told += f" After the edit the same probe reads {row['edited_accuracy']:.0%}, {again}: "
    if not row["edited_accuracy"] < row["accuracy_low"]:
        return told + "still read as before."
    return told + ("removed." if row["refitted_accuracy_low"] <= chance else "moved, not removed.")


def of_evaluation(result: Evaluation) -> str:
    """About the headline."""
    name = result.headline.replace("_", " ")
    row: Any = result.table.loc[result.headline]
    if not result.is_edited:
        ends = f"[{number_text(row['low'])}, {number_text(row['high'])}]"
        return f"unedited: {name} {number_text(row['value'])} {ends} of {result.benchmark}."
    return verdict(name, row["unedited"], row["edited"], row, result.scale(), result.damage)


def of_each(result: Comparison | Transfer) -> Iterable[str]:
    """About each editor on each benchmark."""
    for editor, by_benchmark in result.evaluations.items():
        for benchmark, found in by_benchmark.items():
            if found.is_edited:
                yield f"{editor} on {benchmark}: {of_evaluation(found)}"


def of_tuning(result: Tuning) -> str:
    """About the setting that is chosen."""
    if not result.n_allowed:
        return f"breaks the model: {result.why_none}"
    row: Any = result.table.iloc[0]
    unedited = result.unedited
    told = f"score {row['score']:.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}] against {unedited} unedited"
    told += f", KL {number_text(row['kl'])}: {describe_setting(row)}"
    if not row["low"] > unedited.share:
        return f"no change beyond chance: the best of {len(result.table)} settings has {told}."
    if result.controls.empty:
        return f"better than unedited; no control was run: {told}."
    if row["score"] > result.controls["score"].max():
        return f"better than unedited and than every control, on the questions it was chosen by: {told}."
    return f"better than unedited, but controls do as much: {told}."
