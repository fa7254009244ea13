"""Tables and figures of `docs/real_models*.md`, from `results/real_models/`: what is between two comments is written anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from experiments.real_figures import figures_of
from experiments.real_report import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = DOCS / "real_models.md", DOCS / "real_models_tables.md"
ALPHA = 0.05
TABLE = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def _row(cells: list[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"


def _table(head: list[str], rows: list[list[object]]) -> str:
    if not rows:
        return "Not run.\n"
    return _row(list(head)) + "|" + "---|" * len(head) + "\n" + "".join(map(_row, rows))


def _change(row: pd.Series) -> str:
    return f"{row['change']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _range(low: float, high: float) -> str:
    return f"{low:+.2f} to {high:+.2f}"


def methods_table(found: dict[str, pd.DataFrame], model: str, data: str, seed: int) -> str:
    """Every method on one behavior and split, the largest change first."""
    table = found["methods"]
    own = table[(table["model"] == model) & (table["data"] == data) & (table["seed"] == seed)]
    head = [
        "method",
        "layers",
        "strength",
        "change of the gap",
        "p (Holm)",
        "random",
        "shuffled",
        "KL",
        "it says",
        "random says",
        "it repeats",
    ]
    rows: list[list[object]] = []
    for _, row in own.sort_values("change", ascending=False, na_position="last").iterrows():
        if pd.isna(row["change"]):
            rows.append([row["method"], *["-"] * 2, "nothing within the limit", *["-"] * 7])
            continue
        name = f"**{row['method']}**" if row["more_than_chance"] else row["method"]
        said = ["", "", ""]
        if "said" in row and not pd.isna(row["said"]):
            interval = f"[{row['said_low']:+.2f}, {row['said_high']:+.2f}]"
            mark = "*" if row["said_p_holm"] <= ALPHA else ""
            said = [f"{row['said_plain']:.2f} -> {row['said']:.2f} {interval}{mark}", f"{row['said_random']:.2f}"]
            said.append(f"{row['repetition_plain']:.2f} -> {row['repetition']:.2f}")
        controls = [_range(row[f"{kind}_low"], row[f"{kind}_high"]) for kind in ("control", "shuffled")]
        rows.append(
            [
                name,
                row["place"],
                f"{row['strength']:g}",
                _change(row),
                f"{row['p_holm']:.2g}",
                *controls,
                f"{row['kl']:.2f}",
                *said,
            ]
        )
    return _table(head, rows)


def _by_draw(
    table: pd.DataFrame, model: str, cell: Callable[[pd.Series], str], behaviors: tuple[str, ...]
) -> tuple[list[str], list[list[object]]]:
    """A row per method and a column per behavior and draw, the methods in the order of their mean change."""
    own = table[(table["model"] == model) & table["data"].isin(behaviors)]
    draws = list(own.groupby(["data", "seed"], sort=False).groups)
    draws.sort(key=lambda draw: (behaviors.index(draw[0]), draw[1]))
    means = own.groupby("method")["change"].mean().sort_values(ascending=False)
    rows: list[list[object]] = []
    for method in means.index:
        cells: list[object] = [method]
        for data, seed in draws:
            here = own[(own["method"] == method) & (own["data"] == data) & (own["seed"] == seed)]
            none_here = here.empty or pd.isna(here.iloc[0]["change"])
            cells.append(("-" if here.empty else "none") if none_here else cell(here.iloc[0]))
        rows.append(cells)
    return ["method", *[f"{data} {seed}" for data, seed in draws]], rows


def overview_table(found: dict[str, pd.DataFrame], model: str, *behaviors: str) -> str:
    """Every method as it was chosen: change and KL by behavior and draw."""

    def cell(row: pd.Series) -> str:
        change = f"{row['change']:+.2f}"
        return f"{f'**{change}**' if row['more_than_chance'] else change}, {row['kl']:.2f}"

    return _table(*_by_draw(found["methods"], model, cell, behaviors))


def equal_table(found: dict[str, pd.DataFrame], model: str, *behaviors: str) -> str:
    """Every method at one KL: change, the best random editor at that KL, and whether it differs from mean difference."""

    def cell(row: pd.Series) -> str:
        change = f"{row['change']:+.2f}"
        mark = ""
        if row.get("apart_p_holm", 1.0) <= ALPHA:
            mark = " ▲" if row["apart_change"] > 0 else " ▼"
        shown = f"**{change}**" if row["more_than_chance"] else change
        return f"{shown} ({row['control_high']:+.2f}), {row['kl']:.2f}{mark}"

    return _table(*_by_draw(found["equal"], model, cell, behaviors))


def landscape_table(found: dict[str, pd.DataFrame], method: str, *columns: str) -> str:
    """One row per factor and value: the change, a random editor's in brackets, and the KL.

    Columns are models, or models and behaviors, and draws other than the first: `smollm2/french/1`.
    """
    own = found["landscape"][found["landscape"]["method"] == method]
    keys = list(own[["model", "data", "seed"]].itertuples(index=False, name=None))
    asked = [column.split("/") for column in columns]
    names = [(name[0], name[1] if len(name) > 1 else name[0], int(name[2]) if len(name) > 2 else 0) for name in asked]
    names = [name for name in names if name in keys]
    own = own[[key in names for key in keys]]
    rows: list[list[object]] = []
    for factor in dict.fromkeys(own["factor"]):
        of_factor = own[own["factor"] == factor]
        if factor == "one layer":
            values: list[object] = list(range(7))
        else:
            values = list(dict.fromkeys(of_factor["value"]))
        for place, value in enumerate(values):
            cells: list[object] = []
            for model, data, seed in names:
                here = of_factor[
                    (of_factor["model"] == model) & (of_factor["data"] == data) & (of_factor["seed"] == seed)
                ]
                if factor == "one layer":
                    here, shown = here.iloc[place : place + 1], True
                else:
                    here, shown = here[here["value"] == value], False
                if here.empty:
                    cells.append("")
                    continue
                row = here.iloc[0]
                layer = f"layer {row['value']}: " if shown else ""
                cells.append(f"{layer}{row['change']:+.2f} ({row['random']:+.2f}), {row['kl']:.2f}")
            if any(cells):
                named = "" if factor == "one layer" else value
                rows.append([factor if not place else "", named, *cells])
    heads = [f"{model} {data}" if model != data else model for model, data, _ in names]
    heads = [f"{head}, draw {name[2]}" if name[2] else head for head, name in zip(heads, names, strict=True)]
    return _table(["factor", "value", *heads], rows)


def chance_table(found: dict[str, pd.DataFrame]) -> str:
    """How often the unedited model is right."""
    rows: list[list[object]] = [
        [
            row["model"],
            f"{row['task'].removesuffix(' again')}, draw {row['seed']}",
            f"{row['right']} of {row['n']}",
            f"[{row['low']:.2f}, {row['high']:.2f}]",
            f"{row['chance']:.2f}",
            "may be guessing" if row["at_chance"] else "above chance" if row["low"] > row["chance"] else "below chance",
        ]
        for _, row in found["chance"].iterrows()
    ]
    return _table(["model", "task", "right", "interval", "chance", "so it"], rows)


def tasks_table(found: dict[str, pd.DataFrame], model: str, task: str, seed: int) -> str:
    """Every method and measure of a task."""
    table, chance = found["tasks"], found["chance"]
    own = table[(table["model"] == model) & (table["task"] == task) & (table["seed"] == seed)]
    rows: list[list[object]] = [
        [
            row["method"],
            row["measure"],
            f"{row['place']} x {row['strength']:g}",
            f"{row['plain']:.3f} -> {row['edited']:.3f}",
            f"{row['change']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"{row['p_holm']:.2g}",
            f"{row['control_low']:+.3f} to {row['control_high']:+.3f}",
            f"{row['shuffled']:+.3f}",
            f"{row['kl']:.2f}",
        ]
        for _, row in own.iterrows()
    ]
    guessing = chance[(chance["model"] == model) & (chance["task"] == task) & (chance["seed"] == seed)]["at_chance"]
    if not rows and guessing.any():
        return "Not steered: at the questions that settings are chosen by, the unedited model may be guessing.\n"
    head = [
        "method",
        "measure",
        "layers x strength",
        "unedited -> edited",
        "change",
        "p (Holm)",
        "random",
        "shuffled",
        "KL",
    ]
    return _table(head, rows)


def lm_eval_table(found: dict[str, pd.DataFrame]) -> str:
    """lm-eval's tasks under the chosen edits."""
    rows: list[list[object]] = [
        [row["model"], f"{row['method']}, {row['data']}", row["metric"], *_lm_eval_cells(row)]
        for _, row in found["lm_eval"].iterrows()
    ]
    return _table(["model", "edit", "metric", "n", "unedited -> edited", "change", "random"], rows)


def _lm_eval_cells(row: pd.Series) -> list[object]:
    def told(value: float, sign: str = "+") -> str:
        return f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.3g}"

    interval = "" if pd.isna(row["low"]) else f" [{told(row['low'])}, {told(row['high'])}]"
    values = f"{told(row['unedited'], '')} -> {told(row['edited'], '')}"
    return [int(row["n"]), values, f"{told(row['change'])}{interval}", told(row["control"])]


def tables(results: Path = RESULTS) -> dict[str, pd.DataFrame]:
    """What was found, by name."""
    return {path.stem: pd.read_csv(path) for path in sorted(results.glob("*.csv"))}


def filled(page: str, found: dict[str, pd.DataFrame]) -> str:
    """The page with its tables.

    Args:
        page: Its text.
        found: What the tables are made of.
    """

    def written(match: re.Match[str]) -> str:
        kind, *rest = (part.strip() for part in match["name"].split(";"))
        make: dict[str, Callable[[], str]] = {
            "methods": lambda: methods_table(found, rest[0], rest[1], int(rest[2])),
            "overview": lambda: overview_table(found, *rest),
            "equal": lambda: equal_table(found, *rest),
            "lm-eval": lambda: lm_eval_table(found),
            "landscape": lambda: landscape_table(found, rest[0], *rest[1:]),
            "chance": lambda: chance_table(found),
            "tasks": lambda: tasks_table(found, rest[0], rest[1], int(rest[2])),
        }
        return f"{match[1]}{make[kind]()}{match[3]}"

    return TABLE.sub(written, page)


def named(page: str) -> Iterator[str]:
    """The tables that a page asks for."""
    for match in TABLE.finditer(page):
        yield match["name"]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    for name, figure in figures_of(tables()).items():
        if "worlds" not in name:
            figure.savefig(DOCS / name, dpi=110)
