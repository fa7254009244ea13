"""Does it work on a real model? Every method on behaviors that small models have, on the paper's tasks, and the landscape.

    python -m experiments.real_models --out runs/real_models                       # all of it; a run that was killed goes on
    python -m experiments.real_models --out runs/real_models --short               # a first answer in ten minutes
    python -m experiments.real_models --out runs/real_models --models smollm2 --data french --only methods

What is done stands in `real_models.json`; what was found, in `results/real_models/`; what it means, in `docs/real_models.md`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sea_lens as sl
from experiments.real_methods import run_method
from experiments.real_setup import HERE, Cells, behavior
from sea_lens.models.bridge import Model

PARTS = ("methods", "landscape", "tasks", "seeds", "report")
SHORT = {"models": ["smollm2"], "data": ["french"], "methods": ["mean-difference", "sea, as published", "sea, centered", "ace"]}


def load(name: str, entry: Mapping[str, Any], where: Mapping[str, str]) -> Model:
    """A model by the name that the library knows it by, or from a folder of one's own."""
    return sl.load_model(where.get(name, entry["load"]))


def run_methods(cells: Cells, model: Model, name: str, data: str, seed: int, config: Mapping[str, Any], only: Any) -> None:
    """Every method on one behavior and split."""
    entry, where = config["models"][name], f"{name}/{data}/seed {seed}"
    setup = behavior(model, entry, config, data, seed, cells.folder.parent / "activations")
    facts = {"model": name, "behavior": data, "seed": seed, "split": config["split"], "places": entry["places"]}
    for method in only or config["methods"]:
        began = time.perf_counter()
        found = run_method(cells, setup, where, method, config, facts)
        told = "nothing within the limit" if found["chosen"] is None else (
            f"{found['chosen']['place']} x {found['chosen']['strength']}: {found['change']:+.2f} "
            f"[{found['low']:.2f}, {found['high']:.2f}], random {max(found['random']):+.2f}, "
            f"said {found['said_plain']:.2f} -> {found['said']:.2f}, KL {found['kl']:.2f}"
        )
        print(f"{time.strftime('%H:%M:%S')} {where} {method}: {told} ({time.perf_counter() - began:.0f} s)", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "real_models.json")
    parser.add_argument("--out", type=Path, default=Path("runs/real_models"))
    parser.add_argument("--models", action="append", help="A model of the configuration; repeat for more.")
    parser.add_argument("--data", action="append", help="A behavior, a world or a task; repeat for more.")
    parser.add_argument("--only", action="append", choices=PARTS, help="A part; repeat for more.")
    parser.add_argument("--methods", action="append", help="A method of the configuration; repeat for more.")
    parser.add_argument("--where", action="append", default=[], metavar="NAME=FOLDER", help="A model that lies in a folder.")
    parser.add_argument("--short", action="store_true", help="One model, one behavior, a few methods.")
    given = parser.parse_args()
    config = json.loads(given.config.read_text(encoding="utf-8"))
    where = dict(pair.split("=", 1) for pair in given.where)
    short = SHORT if given.short else {}
    models = given.models or short.get("models") or list(config["models"])
    chosen = given.data or short.get("data") or list(config["behaviors"])
    methods = given.methods or short.get("methods")
    parts = given.only or (["methods"] if given.short else list(PARTS))
    cells = Cells(given.out / "cells")
    for name in models:
        model = load(name, config["models"][name], where)
        for part in parts:
            if part in ("methods", "seeds"):
                seeds = config["seeds"][:1] if part == "methods" else config["seeds"][1:]
                for seed in seeds:
                    for data in chosen:
                        if data in config["behaviors"]:
                            run_methods(cells, model, name, data, seed, config, methods)


if __name__ == "__main__":
    main()
