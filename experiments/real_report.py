"""Cells to tables and figures: `results/real_models/`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch

from experiments.real_figures import figures_of
from experiments.real_setup import HERE, Cells, changes
from sea_lens.statistics import holm

RESULTS = HERE / "results" / "real_models"
BASE = "mean-difference"
"""What other methods are compared with."""
KEYS = {
    "methods": ["model", "data", "seed", "method"],
    "equal": ["model", "data", "seed"],  # whole draws: the comparison with mean difference needs both by question
    "landscape": ["model", "data", "seed", "method", "factor"],
    "chance": ["model", "task", "seed"],
    "tasks": ["model", "task", "seed", "method"],
    "lm_eval": ["model", "data", "method"],
}
"""What a measurement is told by, in each table."""
Published = Mapping[str, pd.DataFrame]
"""Tables that another run made."""


def published(folder: Path) -> dict[str, Any]:
    """The tables and the answers of a folder of results; nothing where there are none."""
    path = folder / "results.json"
    if not path.exists() and any(folder.glob("*.csv")):
        raise SystemExit(
            f"{folder} has tables and no results.json, so there is nothing to keep. Leave --keep out to replace them."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise SystemExit(f"{path} is damaged ({error}). Restore it, or leave --keep out to replace it.") from error
    return {name: rows if name == "answers" else pd.DataFrame(rows) for name, rows in found.items()}


def joined(name: str, table: pd.DataFrame, before: Published) -> pd.DataFrame:
    """The rows measured now, and those published before of what was not measured now."""
    old, keys = before.get(name, pd.DataFrame()), KEYS[name]
    if old.empty or table.empty:
        return old if table.empty else table
    now = set(table[keys].itertuples(index=False, name=None))
    kept = old[[key not in now for key in old[keys].itertuples(index=False, name=None)]]
    return pd.concat([kept, table], ignore_index=True) if len(kept) else table


def method_rows(cells: Cells, before: Published = MappingProxyType({})) -> pd.DataFrame:
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
    table = joined("methods", pd.DataFrame(rows), before)
    if table.empty:
        return table
    for _, group in table.groupby(["model", "data", "seed"]):
        for p in [name for name in ("p", "said_p") if name in group]:
            table.loc[group.index, f"{p}_holm"] = holm([float(value) for value in group[p]]).numpy()
    best_control = table[["control_high", "shuffled_high"]].max(axis=1)
    table["more_than_chance"] = (table["p_holm"] <= 0.05) & (table["low"] > best_control)
    return table.sort_values(["model", "data", "seed", "change"], ascending=[True, True, True, False])


def equal_rows(cells: Cells, before: Published = MappingProxyType({})) -> pd.DataFrame:
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
        return joined("equal", table, before)
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
    table = joined("equal", table, before)
    return table.sort_values(["model", "data", "seed", "change"], ascending=[True, True, True, False])


def lm_eval_rows(cells: Cells, before: Published = MappingProxyType({})) -> pd.DataFrame:
    """One row per model, edit and metric of lm-eval."""
    rows = [
        {"model": facts["model"], "data": facts["behavior"], "method": facts["method"], **row}
        for name, facts, found in cells.all()
        if "/lm-eval/" in name
        for row in found
    ]
    return _in_order("lm_eval", joined("lm_eval", pd.DataFrame(rows), before))


def landscape_rows(cells: Cells, before: Published = MappingProxyType({})) -> pd.DataFrame:
    """One row per model, data, split, method, factor and value."""
    rows = [
        {
            "model": facts["model"],
            "data": facts["behavior"],
            "seed": facts.get("seed", 0),
            "method": facts["method"],
            "factor": facts["factor"],
            **row,
        }
        for name, facts, found in cells.all()
        if "/landscape/" in name
        for row in found
    ]
    return _in_order("landscape", joined("landscape", pd.DataFrame(rows), before))


def _in_order(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """By what a measurement is told by; its own rows as they were."""
    return table.sort_values(KEYS[name], kind="stable", ignore_index=True) if len(table) else table


def task_rows(cells: Cells, before: Published = MappingProxyType({})) -> tuple[pd.DataFrame, pd.DataFrame]:
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
                }
                for measure, told in found["measures"].items()
            ]
    table = _in_order("tasks", joined("tasks", pd.DataFrame(rows), before))
    if len(table):
        for _, group in table.groupby(["model", "task", "seed", "measure"]):
            table.loc[group.index, "p_holm"] = holm([float(value) for value in group["p"]]).numpy()
    return _in_order("chance", joined("chance", pd.DataFrame(chances), before)), table


def answers_of(cells: Cells) -> Iterator[dict[str, Any]]:
    """What was said: eight answers per method."""
    for name, facts, found in cells.all():
        if found and isinstance(found, dict) and "answers" in found:
            yield {"cell": name, "method": facts["method"], "answers": found["answers"][:8]}


def report(cells: Cells, out: Path, figures: Path, keep: bool = False) -> None:
    """Writes every table and figure that there are cells for.

    Args:
        cells: What was measured.
        out: Where tables go.
        figures: Where figures go.
        keep: Keep what `out` holds of measurements that there are no cells of here: those of another machine. Corrections
            for the number of methods are made anew over all of them.
    """
    before = published(out) if keep else {}
    tables = {"methods": method_rows(cells, before), "landscape": landscape_rows(cells, before)}
    tables["chance"], tables["tasks"] = task_rows(cells, before)
    tables |= {"equal": equal_rows(cells, before), "lm_eval": lm_eval_rows(cells, before)}
    if not any(len(table) for table in tables.values()):
        raise SystemExit(f"Nothing is measured in {cells.folder}, so nothing is written. Give the --out of a run.")
    for folder in (figures, out):
        folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if len(table):
            table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
    everything = {
        name: json.loads(table.to_json(orient="records", double_precision=15)) for name, table in tables.items()
    }
    answers = {each["cell"]: each for each in (*before.get("answers", ()), *answers_of(cells))}
    everything["answers"] = [answers[name] for name in sorted(answers)]
    (out / "results.json").write_text(json.dumps(everything, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name, figure in figures_of(tables).items():
        figure.savefig(figures / name, dpi=130)
