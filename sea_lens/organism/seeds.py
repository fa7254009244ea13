"""The table of seeds in README.md beside this file: `python -m sea_lens.organism.seeds runs/seed0 runs/seed1 ...`.

Every seed is treated alike: its setting is chosen on the fitting facts and scored on the held-out ones.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from statistics import fmean

from sea_lens.analysis.controls import random_editor
from sea_lens.errors import SeaLensWarning
from sea_lens.methods.sea import fit_sea
from sea_lens.organism import load_organism
from sea_lens.organism.experiment import answers, choose_setting, collect

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
    best = choose_setting(model, world, activations).iloc[0]
    editor, held_out = best["editor"], world.held_out
    swapped = fit_sea(activations.swapped(), best["explained_variance"], centre=bool(best["centre"]))
    swapped = swapped.at_layers(editor.layers).scaled(best["strength"])
    random = [answers(model, world, held_out, random_editor(editor, seed)).truthful.share for seed in range(6)]
    mirrored = answers(model, world, held_out, swapped)
    myths = fmean(answer == fact.myth for answer, fact in zip(mirrored.table["answer"], held_out, strict=True))
    ranks = " ".join(
        f"{editor.card.layers[layer]['rank_positive']}+{editor.card.layers[layer]['rank_negative']}"
        for layer in editor.layers
    )
    centred = "centred" if best["centre"] else "uncentred"
    return [
        str(measured["seed"]),
        *(f"{measured[name]:.3f}" for name in MEASURED),
        f"{answers(model, world, held_out).truthful.share:.3f}",
        f"**{answers(model, world, held_out, editor).truthful.share:.3f}**",
        f"{mirrored.truthful.share:.3f}, {myths:.3f}",
        f"{min(random):.3f} to {max(random):.3f}",
        f"{centred}, K = {best['explained_variance']}, strength {best['strength']:g}, {best['layers']} layers, ranks {ranks}",
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore", SeaLensWarning)
    columns = ("seed", *MEASURED, *HELD_OUT)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for argument in sys.argv[1:]:
        print("| " + " | ".join(report(Path(argument))) + " |", flush=True)
