"""Cells to tables and figures: `results/real_models/`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.real_setup import HERE, Cells, changes
from sea_lens.plotting.methods import draw_methods
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED, canvas, legend_below, page, tidy
from sea_lens.statistics import holm

RESULTS = HERE / "results" / "real_models"
WORLDS = ("organism", "bias-organism")
BASE = "mean-difference"
"""What other methods are compared with."""
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


def method_rows(cells: Cells) -> pd.DataFrame:
    """One row per model, data, split and method, with p-values corrected for the number of methods."""
    rows = []
    for name, facts, found in cells.all():
        if "/scores/" not in name:
            continue
        row = {"model": facts["model"], "data": facts["behavior"], "seed": facts["seed"], "method": facts["method"]}
        if found["chosen"] is not None:
            randoms, shuffles = found["random"], found["shuffled"]
            row |= {
                "place": found["chosen"]["place"],
                "strength": found["chosen"]["strength"],
                "entry": found["chosen"]["entry"],
                **{key: found[key] for key in ("n_fit", "n_tuning", "n", "plain_gap", "change", "low", "high", "p")},
                "control_low": min(randoms),
                "control_high": max(randoms),
                "shuffled_low": min(shuffles),
                "shuffled_high": max(shuffles),
                **{key: found[key] for key in ("kl", "perplexity_ratio", "kl_english", "plain_preferred", "preferred")},
                "random_kl": max(found["random_kl"]),
            }
            if "said" in found:
                said = ("plain", "change", "low", "high", "p")
                row |= {"said": found["said"], **{f"said_{key}": found[f"said_{key}"] for key in said}}
                row |= {"said_random": max(found["said_random"])}
                row |= {key: found[key] for key in ("repetition_plain", "repetition")}
        rows.append(row)
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    for _, group in table.groupby(["model", "data", "seed"]):
        for p in [name for name in ("p", "said_p") if name in group]:
            table.loc[group.index, f"{p}_holm"] = holm([float(value) for value in group[p]]).numpy()
    best_control = table[["control_high", "shuffled_high"]].max(axis=1)
    table["more_than_chance"] = (table["p_holm"] <= 0.05) & (table["low"] > best_control)
    return table.sort_values(["model", "data", "seed", "change"], ascending=[True, True, True, False])


def equal_rows(cells: Cells) -> pd.DataFrame:
    """One row per model, data, split and method at one KL, and the paired difference from mean difference there."""
    rows = []
    for name, facts, found in cells.all():
        if "/equal/" not in name:
            continue
        row = {"model": facts["model"], "data": facts["behavior"], "seed": facts["seed"], "method": facts["method"]}
        if found["chosen"] is not None:
            row |= {
                "place": found["chosen"]["place"],
                "strength": found["chosen"]["strength"],
                **{key: found[key] for key in ("n", "change", "low", "high", "p", "kl")},
                "control_low": min(found["random"], default=float("nan")),
                "control_high": max(found["random"], default=float("nan")),
                "by_question": found["by_question"],
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    if table.empty or "by_question" not in table:
        return table
    parts = []
    for _, group in table.groupby(["model", "data", "seed"]):
        own = group.set_index("method")
        own["p_holm"] = holm([float(value) for value in own["p"]]).numpy()
        base = own["by_question"].get(BASE)
        others = [method for method in own.index if method != BASE and isinstance(own.at[method, "by_question"], list)]
        if isinstance(base, list) and others:
            apart = {method: changes(*map(torch.tensor, (own.at[method, "by_question"], base))) for method in others}
            corrected = holm([apart[method]["p"] for method in others])
            for method, p in zip(others, corrected, strict=True):
                for key in ("change", "low", "high"):
                    own.loc[method, f"apart_{key}"] = apart[method][key]
                own.loc[method, "apart_p_holm"] = float(p)
        parts.append(own.reset_index())
    table = pd.concat(parts).drop(columns="by_question")
    table["more_than_chance"] = (table["p_holm"] <= 0.05) & (table["low"] > table["control_high"])
    return table.sort_values(["model", "data", "seed", "change"], ascending=[True, True, True, False])


def lm_eval_rows(cells: Cells) -> pd.DataFrame:
    """One row per model, edit and metric of lm-eval."""
    return pd.DataFrame(
        [
            {"model": facts["model"], "data": facts["behavior"], "method": facts["method"], **row}
            for name, facts, found in cells.all()
            if "/lm-eval/" in name
            for row in found
        ]
    )


def landscape_rows(cells: Cells) -> pd.DataFrame:
    """One row per model, data, method, factor and value."""
    rows = [
        {
            "model": facts["model"],
            "data": facts["behavior"],
            "method": facts["method"],
            "factor": facts["factor"],
            **row,
        }
        for name, facts, found in cells.all()
        if "/landscape/" in name
        for row in found
    ]
    return pd.DataFrame(rows)


def task_rows(cells: Cells) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Chance, and one row per model, task, method and measure."""
    chances, rows = [], []
    for name, facts, found in cells.all():
        if "/tasks/" not in name:
            continue
        if name.endswith("/chance"):
            chances.append({"model": facts["model"], "task": facts["task"], "seed": facts.get("seed", 0), **found})
        elif found["chosen"] is not None:
            rows += [
                {
                    "model": facts["model"],
                    "task": facts["task"],
                    "seed": facts["seed"],
                    "method": facts["method"],
                    "measure": measure,
                    "place": found["chosen"]["place"],
                    "strength": found["chosen"]["strength"],
                    **{key: found[key] for key in ("n_fit", "n_tuning", "n")},
                    **{key: told[key] for key in ("plain", "edited", "change", "low", "high", "p")},
                    "control_low": min(told["random"]),
                    "control_high": max(told["random"]),
                    "shuffled": told["shuffled"][0],
                    "kl": found["kl"],
                    "nearer_plain": found["nearer"][0],
                    "nearer_edited": found["nearer"][1],
                }
                for measure, told in found["measures"].items()
            ]
    table = pd.DataFrame(rows)
    if len(table):
        for _, group in table.groupby(["model", "task", "seed", "measure"]):
            table.loc[group.index, "p_holm"] = holm([float(value) for value in group["p"]]).numpy()
    return pd.DataFrame(chances), table


def answers_of(cells: Cells) -> Iterator[dict[str, Any]]:
    """What was said: eight answers per method."""
    for name, facts, found in cells.all():
        if found and isinstance(found, dict) and "answers" in found:
            yield {"cell": name, "method": facts["method"], "answers": found["answers"][:8]}


def methods_figure(table: pd.DataFrame) -> Any:
    """Effect against damage, a panel per model and data, of the first split."""
    first = table[(table["seed"] == 0) & table["change"].notna()]
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
    """A panel per factor; hollow points cost more than half a nat; thin gray lines are random editors."""
    rows = table[(table["method"] == method) & (table["model"].isin(WORLDS) == worlds)]
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


def report(cells: Cells, out: Path, figures: Path) -> None:
    """Writes every table and figure that there are cells for.

    Args:
        cells: What was measured.
        out: Where tables go.
        figures: Where figures go.
    """
    figures.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    tables = {"methods": method_rows(cells), "landscape": landscape_rows(cells)}
    tables["chance"], tables["tasks"] = task_rows(cells)
    tables |= {"equal": equal_rows(cells), "lm_eval": lm_eval_rows(cells)}
    for name, table in tables.items():
        if len(table):
            table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
    everything = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
    everything["answers"] = list(answers_of(cells))
    (out / "results.json").write_text(json.dumps(everything, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name, figure in figures_of(tables).items():
        figure.savefig(figures / name, dpi=130)


def figures_of(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """By file name, every figure that there are rows for."""
    methods, landscape = tables.get("methods", pd.DataFrame()), tables.get("landscape", pd.DataFrame())
    drawn = {"real_models_methods.png": methods_figure(methods)} if len(methods) else {}
    if len(landscape):
        of_worlds = landscape["model"].isin(WORLDS)
        for method in ("mean-difference", "sea"):
            for worlds in (False, True):
                if (of_worlds == worlds).any():
                    name = f"real_models_{'worlds_' if worlds else ''}{method}.png"
                    drawn[name] = landscape_figure(landscape, method, worlds)
    return drawn
