"""The README's figure, from the tables of two studies: `python -m experiments.readme_figure`.

`experiments/results/real_models/methods.csv` comes from `experiments.real_models`, and `which_method.csv` beside it from
`experiments.which_method`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sea_lens.plotting.methods import draw_methods
from sea_lens.plotting.style import canvas, page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
FIGURE = ROOT / "docs" / "figures" / "effect_against_damage.png"


def real_rows(table: pd.DataFrame, model: str, behavior: str) -> pd.DataFrame:
    """What the model's own greedy answers change by, a row per method, of the first split.

    Args:
        table: Of `experiments.real_models`.
        model: One of its models.
        behavior: One of its behaviors.
    """
    rows = table[(table["model"] == model) & (table["data"] == behavior) & (table["seed"] == 0)]
    rows = rows.dropna(subset=["said_change"]).set_index("method")
    above = rows["said_random"] - rows["said_plain"]
    said = rows[["kl", "n", "said_change", "said_low", "said_high"]].rename(
        columns={"said_change": "change", "said_low": "low", "said_high": "high"}
    )
    better = (rows["said_p_holm"] <= 0.05) & (rows["said_low"] > above.clip(lower=0))
    return said.assign(control_low=above.clip(upper=0), control_high=above.clip(lower=0), more_than_chance=better)


def world_rows(table: pd.DataFrame, world: str) -> pd.DataFrame:
    """A row per method of the comparison on an embedded world.

    Args:
        table: Of `experiments.which_method`.
        world: One of its data sets.
    """
    return table[(table["data"] == world) & (table["method"] != "unedited")].set_index("method")


def draw(real: pd.DataFrame, world: pd.DataFrame) -> Figure:
    """Effect against damage, side by side.

    Args:
        real: Of the real model.
        world: Of the embedded one.
    """
    figure = canvas(None, 11.0, 3.7)
    left, right = figure.subplots(1, 2)
    said = "change of the share of French words in its answers"
    for axes, rows, label, effect in (
        (left, real, f"SmolLM2-135M-Instruct answers in French (n = {int(real['n'].iloc[0])})", said),
        (right, world, "the embedded model answers truthfully (n = 240)", "change of the share of truthful answers"),
    ):
        filled = [str(name) for name in rows.index[rows["more_than_chance"].astype(bool)]]
        draw_methods(axes, rows, filled, label=label)
        axes.set_ylabel(effect, fontsize=8)
    return page(figure)


def main() -> None:
    """Draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=RESULTS / "real_models" / "methods.csv")
    parser.add_argument("--out", type=Path, default=FIGURE)
    asked = parser.parse_args()
    real = real_rows(pd.read_csv(asked.real), "smollm2", "french")
    world = world_rows(pd.read_csv(RESULTS / "which_method.csv"), "truthfulness")
    draw(real, world).savefig(asked.out, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
