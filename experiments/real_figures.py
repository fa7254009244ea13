"""Figures of `docs/real_models.md`, from the tables of `results/real_models/`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sea_lens.plotting.methods import draw_methods
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED, canvas, legend_below, page, tidy

WORLDS = ("organism", "bias-organism")
LEAST_METHODS = 3
"""Of a panel."""
BROKEN = 0.5
"""Past this KL a point of the landscape is drawn hollow."""
STYLES = {
    ("smollm2", "french"): (INK, "o", "-"),
    ("smollm2", "glad"): (PROMOTED, "s", "--"),
    ("gemma3", "french"): (SUPPRESSED, "^", "-."),
    ("gemma3", "glad"): (GREY, "D", ":"),
    ("smollm2", "formal"): (PROMOTED, "v", "-"),
    ("gemma3", "formal"): (SUPPRESSED, "P", "-"),
    ("organism", "organism"): (INK, "o", "-"),
    ("bias-organism", "bias-organism"): (PROMOTED, "s", "--"),
}


def methods_figure(table: pd.DataFrame) -> Any:
    """Effect against damage, a panel per model and data, of the first split there is."""
    first = _of_first(table[table["change"].notna()])
    most = max(len(rows) for _, rows in first.groupby(["model", "data"]))
    groups = [
        (names, rows)
        for names, rows in first.groupby(["model", "data"], sort=False)
        if len(rows) >= min(LEAST_METHODS, most) and (names[0] not in WORLDS or set(first["model"]) <= set(WORLDS))
    ]
    drawn = canvas(None, 11.0, 3.3 * -(-len(groups) // 2))
    panels = list(drawn.subplots(-(-len(groups) // 2), 2, squeeze=False).flat)
    for axes, ((model, data), rows) in zip(panels, groups, strict=False):
        rows = rows.set_index("method")
        draw_methods(
            axes,
            rows,
            [str(one) for one in rows.index[rows["more_than_chance"]]],
            label=f"{model}, {data}" if model != data else model,
        )
        axes.set_ylabel("change of the gap, nats per token", fontsize=8)
    for axes in panels[len(groups) :]:
        axes.remove()
    return page(drawn)


def landscape_figure(table: pd.DataFrame, method: str, worlds: bool) -> Any:
    """A panel per factor, of the first split there is. Hollow: costs over half a nat; thin gray lines: random editors."""
    rows = _of_first(table[(table["method"] == method) & (table["model"].isin(WORLDS) == worlds)])
    factors = list(dict.fromkeys(rows["factor"]))
    drawn = canvas(None, 10.5, 3.0 * -(-len(factors) // 3))
    panels = list(drawn.subplots(-(-len(factors) // 3), 3, squeeze=False).flat)
    for axes, factor in zip(panels, factors, strict=False):
        own = rows[rows["factor"] == factor]
        values: list[str] = []
        for (model, data), group in own.groupby(["model", "data"], sort=False):
            color, marker, line = STYLES[model, data]
            if factor in ("one layer", "demonstrations") or len(group) != len(values):
                labels = list(group["value"])
                values = labels if len(labels) > len(values) else values
            places = range(len(group))
            axes.plot(places, group["random"], color=GREY, linewidth=0.8, linestyle=line)
            axes.plot(
                places,
                group["change"],
                color=color,
                linewidth=1.1,
                linestyle=line,
                label=f"{model}, {data}" if model != data else model,
            )
            axes.errorbar(
                places,
                group["change"],
                yerr=[group["change"] - group["low"], group["high"] - group["change"]],
                fmt="none",
                ecolor=color,
                elinewidth=0.8,
            )
            fills = [color if kl <= BROKEN else "white" for kl in group["kl"]]
            axes.scatter(places, group["change"], s=26, marker=marker, c=fills, edgecolors=color, zorder=4)
        many = factor == "one layer" and own["model"].nunique() > 1
        shown = [f"{k + 1}/{len(values)}" for k in range(len(values))] if many else values
        axes.set_xticks(range(len(values)), [_short(value) for value in shown], rotation=35, ha="right")
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_title(factor + (", from first to last" if many else ""), fontsize=9)
        axes.set_ylim(max(axes.get_ylim()[0], -6), min(axes.get_ylim()[1], 9))
        tidy(axes)
        axes.tick_params(axis="x", labelsize=7)
    for axes in panels[len(factors) :]:
        axes.remove()
    panels[0].set_ylabel("change of the gap, nats per token", fontsize=8)
    legend_below(drawn, panels[: len(factors)], 4)
    return page(drawn)


def _of_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["seed"] == table["seed"].min()]


def _short(value: str) -> str:
    return (
        value.replace(" of the base", "x")
        .replace("strength over its number", "divided")
        .replace("strength over their number", "divided")
        .replace("chosen on held-out demonstrations", "chosen")
        .replace("positives lack the full stop", "no stop")
        .replace("negatives are longer", "longer")
        .replace(" over their number", "")
    )


def figures_of(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """By file name, every figure that there are rows for."""
    methods, landscape = tables.get("methods", pd.DataFrame()), tables.get("landscape", pd.DataFrame())
    found = len(methods) and methods.get("change", pd.Series()).notna().any()
    drawn = {"real_models_methods.png": methods_figure(methods)} if found else {}
    if len(landscape):
        of_worlds = landscape["model"].isin(WORLDS)
        for method in ("mean-difference", "sea"):
            for worlds in (False, True):
                if (of_worlds == worlds).any():
                    name = f"real_models_{'worlds_' if worlds else ''}{method}.png"
                    drawn[name] = landscape_figure(landscape, method, worlds)
    return drawn
