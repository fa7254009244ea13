"""Tables that put the evaluations of several editors side by side, with what is to be said of broken ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from sea_lens.cells import cell_text, number_text, p_text
from sea_lens.evaluation.evaluation import Evaluation

UNEDITED = "unedited"
"""The row of the unedited model."""
NUMBERS = ("change", "low", "high", "p_value")
CONTROLS = ("control", "control_low", "control_high", "control_p_value")
DAMAGE = ("kl", "perplexity_ratio", "is_broken")
COSTS = ("fit_seconds", "slowdown", "bytes", "rank", "layers")


def long_table(editor: str, benchmark: str, evaluation: Evaluation) -> pd.DataFrame:
    """One row per metric of an evaluation, under the names of its editor and benchmark."""
    table = evaluation.table
    score = table["edited" if evaluation.is_edited else "value"]
    return pd.DataFrame(
        {
            "editor": editor,
            "benchmark": benchmark,
            "metric": table.index,
            "n": table["n"].to_numpy(),
            "score": score.to_numpy(),
            **{name: table[name].to_numpy() if name in table else float("nan") for name in (*NUMBERS, *CONTROLS)},
        }
    )


def comparison_table(
    evaluations: Mapping[str, Mapping[str, Evaluation]], costs: Sequence[Mapping[str, object]] = ()
) -> pd.DataFrame:
    """One row per editor with its headline scores, and its costs if they are given; see `Comparison`."""
    rows: list[dict[str, object]] = []
    beside = {name: any("control" in row[name].table for row in evaluations.values()) for name in evaluations[UNEDITED]}
    for editor, results in evaluations.items():
        row: dict[str, object] = {}
        for name, evaluation in results.items():
            own = long_table(editor, name, evaluation).set_index("metric").loc[evaluation.headline]
            row[f"{name} {evaluation.headline}"] = own["score"]
            row |= {f"{name} {what}": own[what] for what in (*NUMBERS, *(CONTROLS if beside[name] else ()))}
        known = [found.damage for found in results.values() if found.damage is not None]
        if known:
            row["kl"] = max(damage.kl for damage in known)
            row["perplexity_ratio"] = max(damage.perplexity_ratio for damage in known)
            row["is_broken"] = any(damage.is_broken for damage in known)
        elif editor == UNEDITED and any(
            one.damage is not None for found in evaluations.values() for one in found.values()
        ):
            row |= {"kl": 0.0, "perplexity_ratio": 1.0, "is_broken": False}
        rows.append(row | dict(costs[len(rows)] if costs else {}))
    table = pd.DataFrame(rows, index=pd.Index(list(evaluations), name="editor"))
    table = table[[name for name in table if name not in COSTS] + [name for name in COSTS if name in table]]
    return table.astype({"bytes": "Int64", "rank": "Int64"}) if costs else table


def broken_of(table: pd.DataFrame) -> list[str]:
    """The editors or sources of a table that break the model."""
    return [str(name) for name in table.index if table.at[name, "is_broken"] == True] if "is_broken" in table else []  # noqa: E712  # None is neither


def findings_of(table: pd.DataFrame) -> str:
    """One sentence about the editors of a table that break the model; empty if there are none."""
    costs = table["kl"].to_dict() if "kl" in table else {}
    told = [f"{name!r} (KL {costs[name]:.3g} nats per token)" for name in broken_of(table)]
    verb = "breaks" if len(told) == 1 else "break"
    return (
        f"{', '.join(told)} {verb} the model: {'its' if len(told) == 1 else 'their'} scores say little." if told else ""
    )


def score_cells(table: pd.DataFrame, benchmark: str, headline: str) -> dict[str, list[str]]:
    """`score`, `change`, `p` and controls of each editor on a benchmark as text, each interval beside its number."""
    names = [f"{benchmark} {what}" for what in (headline, *NUMBERS)]
    found: dict[str, list[str]] = {"score": [], "change": [], "p": []}
    for score, change, low, high, p_value in table[names].itertuples(index=False):
        is_plain = pd.isna(change)
        found["score"].append(with_interval(score, low, high) if is_plain else cell_text(score))
        found["change"].append("" if is_plain else with_interval(change, low, high, "+"))
        found["p"].append("" if is_plain else p_text(p_value))
    if f"{benchmark} control" in table:
        beside = table[[f"{benchmark} {what}" for what in CONTROLS]]
        cells = [
            ("", "") if pd.isna(middle) else (with_interval(middle, low, high, "+"), p_text(p_value))
            for middle, low, high, p_value in beside.itertuples(index=False)
        ]
        found["control"], found["control p"] = map(list, zip(*cells, strict=True))
    return found


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """A number as text, with its interval if it has one."""
    return number_text(value, sign=sign) + ("" if pd.isna(low) else f" [{cell_text(low)}, {cell_text(high)}]")
