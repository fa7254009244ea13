"""The table of seeds in sea_lens/worlds/README.md: `python -m experiments.worlds.seeds runs/seed0 runs/seed1 ...`.

Every seed is treated alike: its setting is chosen on the fitting facts and scored on the held-out ones. Without folders it
is the shipped model's row.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from statistics import fmean

from sea_lens.editing.controls import random_editor_like
from sea_lens.errors import SeaLensWarning
from sea_lens.methods.method import refit
from sea_lens.methods.tuning import describe_setting
from sea_lens.worlds.demo import answers, collect, tune
from sea_lens.worlds.load import WEIGHTS, load_organism

MEASURED = ("plain", "tagged truthful", "tagged mythical", "in context")
HELD_OUT = (
    "plain, held out",
    "SEA, held out",
    "swapped: truths, myths",
    "random (6)",
    "setting chosen on the fitting facts",
)


def report(folder: Path) -> list[str]:
    """One seed's row: what training measured over all facts, then plain, SEA and its controls on held-out facts."""
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    model, world = load_organism(folder=folder)
    activations = collect(model, world)
    tuning = tune(
        model, world, activations, max_kl=None, halving=False
    )  # by score alone, all of them, as the table was made
    editor, held_out = tuning.best, world.held_out
    swapped = refit(editor, activations.swapped())
    random = [answers(model, world, held_out, random_editor_like(editor, seed)).right.share for seed in range(6)]
    mirrored = answers(model, world, held_out, swapped)
    myths = fmean(answer == fact.myth for answer, fact in zip(mirrored.table["answer"], held_out, strict=True))
    return [
        str(measured["seed"]),
        *(f"{measured[name]:.3f}" for name in MEASURED),
        f"{answers(model, world, held_out).right.share:.3f}",
        f"**{answers(model, world, held_out, editor).right.share:.3f}**",
        f"{mirrored.right.share:.3f}, {myths:.3f}",
        f"{min(random):.3f} to {max(random):.3f}",
        describe_setting(tuning.table.iloc[0]),
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore", SeaLensWarning)
    columns = ("seed", *MEASURED, *HELD_OUT)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for argument in sys.argv[1:] or [WEIGHTS]:
        print("| " + " | ".join(report(Path(argument))) + " |", flush=True)
