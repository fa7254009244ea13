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
from experiments.real_classes import run_classes
from experiments.real_equal import run_equal
from experiments.real_landscape import of_all_but_held_out, of_world, run_landscape
from experiments.real_lm_eval import run_lm_eval
from experiments.real_methods import run_method
from experiments.real_report import report
from experiments.real_setup import HERE, Cells, behavior
from experiments.real_tasks import run_tasks
from sea_lens.models.bridge import Model

PARTS = ("methods", "landscape", "tasks", "lm-eval", "seeds", "equal", "report")
SHORT = {
    "models": ["smollm2"],
    "data": ["french"],
    "methods": ["mean-difference", "sea, as published", "sea, centered", "ace"],
}


def load(name: str, entry: Mapping[str, Any], where: Mapping[str, str], device: str) -> Model:
    """A model by the name that the library knows it by, or from a folder of one's own."""
    model = sl.load_model(where.get(name, entry["load"]), device=device)
    model.cfg.default_prepend_bos = entry["begins"]  # as the model's own tokenizer says, wherever it was loaded from
    return model


def run_methods(
    cells: Cells,
    model: Model | None,
    name: str,
    data: str,
    seed: int,
    config: Mapping[str, Any],
    only: Any,
    equal: bool,
) -> None:
    """Every method on one behavior and split, as chosen, or at equal damage too."""
    entry, where = config["models"][name], f"{name}/{data}/seed {seed}"
    if model is None:
        setup, _ = of_world(name)
    else:
        setup = behavior(model, entry, config, data, seed, cells.folder.parent / "activations")
    facts = {"model": name, "behavior": data, "seed": seed, "split": config["split"], "places": dict(setup.places)}
    if "times" in entry:
        facts["times"] = entry["times"]
    for method in only or config["methods"]:
        began = time.perf_counter()
        trials, found = run_method(cells, setup, where, method, config, facts)
        told = (
            "nothing within the limit"
            if found["chosen"] is None
            else (
                f"{found['chosen']['place']} x {found['chosen']['strength']}: {found['change']:+.2f} "
                f"[{found['low']:.2f}, {found['high']:.2f}], random {max(found['random']):+.2f}, "
                f"said {found.get('said_plain', 0):.2f} -> {found.get('said', 0):.2f}, KL {found['kl']:.2f}"
            )
        )
        print(f"{time.strftime('%H:%M:%S')} {where} {method}: {told} ({time.perf_counter() - began:.0f} s)", flush=True)
        if equal:
            found = run_equal(cells, setup, where, method, config, facts, trials)
            told = (
                "none"
                if found["chosen"] is None
                else f"{found['change']:+.2f} (random {max(found['random'], default=float('nan')):+.2f})"
            )
            print(f"{where} {method}, at a KL of {config['equal']['kl']}: {told}", flush=True)


def run_other_tasks(cells: Cells, model: Model, name: str, config: Mapping[str, Any], files: Path) -> None:
    """lm-eval's tasks under the edits that the configuration names, as `run_methods` chose them."""
    entry, asked = config["models"][name], config["lm_eval"]
    for data, methods in asked["edits"].items():
        where = f"{name}/{data}/seed 0"
        setup = behavior(model, entry, config, data, 0, cells.folder.parent / "activations")
        facts = {"model": name, "behavior": data, "seed": 0, "split": config["split"], "places": dict(setup.places)}
        for method in methods:
            _, found = run_method(cells, setup, where, method, config, facts)
            if found["chosen"] is not None:
                run_lm_eval(cells, setup, where, method, config, facts, files, found["chosen"])


def run_landscapes(
    cells: Cells, name: str, model: Model | None, chosen: list[str], config: Mapping[str, Any], seeds: Any = None
) -> None:
    """One factor at a time, on a world or on the behaviors of a real model."""
    entry, asked = config["models"][name], config["landscape"]
    if model is None:
        setup, sizes = of_world(name)
        facts = {"model": name, "behavior": name, "times": entry["times"]}
        run_landscape(cells, setup, name, facts, sizes, " .", entry["times"])
        run_classes(cells, setup, name, facts, entry["times"])
        return
    for data in chosen:
        for seed in [each for each in asked["seeds"].get(data, ()) if seeds is None or each in seeds]:
            setup = behavior(model, entry, config, data, seed, cells.folder.parent / "activations")
            facts = {"model": name, "behavior": data, "seed": seed, "split": config["split"]}
            setup = of_all_but_held_out(setup, model)
            where = f"{name}/{data}/seed {seed}"
            run_landscape(cells, setup, where, facts, asked["sizes"])
            run_classes(cells, setup, where, facts)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "real_models.json")
    parser.add_argument("--out", type=Path, default=Path("runs/real_models"))
    parser.add_argument("--results", type=Path, default=None, help="Where tables and figures go; OUT/results for None.")
    parser.add_argument("--keep", action="store_true", help="Keep what --results holds of measurements not made here.")
    parser.add_argument("--models", action="append", help="A model of the configuration; repeat for more.")
    parser.add_argument("--data", action="append", help="A behavior, a world or a task; repeat for more.")
    parser.add_argument("--only", action="append", choices=PARTS, help="A part; repeat for more.")
    parser.add_argument("--seeds", action="append", type=int, help="A seed of the configuration; repeat for more.")
    parser.add_argument("--methods", action="append", help="A method of the configuration; repeat for more.")
    parser.add_argument(
        "--where", action="append", default=[], metavar="NAME=FOLDER", help="A model that lies in a folder."
    )
    parser.add_argument("--files", type=Path, help="A folder of the tasks' published files; no tasks without it.")
    parser.add_argument("--device", default="cpu", help="Such as cuda.")
    parser.add_argument("--short", action="store_true", help="One model, one behavior, a few methods.")
    given = parser.parse_args()
    config = json.loads(given.config.read_text(encoding="utf-8"))
    drawn_seeds = set(config["seeds"]).union(*(task.get("seeds", ()) for task in config["tasks"].values()))
    for option, asked, known in (
        ("--models", given.models, config["models"]),
        ("--data", given.data, {**config["behaviors"], **config["tasks"], **config["models"]}),
        ("--methods", given.methods, config["methods"]),
        ("--seeds", given.seeds, drawn_seeds),
    ):
        if unknown := [str(each) for each in asked or () if each not in known]:
            parser.error(f"{option} {', '.join(unknown)}: the configuration has {', '.join(map(str, sorted(known)))}.")
    where = dict(pair.split("=", 1) for pair in given.where)
    short = SHORT if given.short else {}
    models = given.models or short.get("models") or list(config["models"])
    chosen = given.data or short.get("data") or list(config["behaviors"])
    methods = given.methods or short.get("methods")
    parts = given.only or (["methods"] if given.short else list(PARTS))
    cells = Cells(given.out / "cells")
    for name in [each for each in models if parts != ["report"]]:
        world = "world" in config["models"][name]
        model = None if world else load(name, config["models"][name], where, given.device)
        for part in parts:
            if part == "landscape":
                run_landscapes(cells, name, model, chosen, config, given.seeds)
            if model is not None and part == "tasks" and given.files is not None:
                run_tasks(cells, name, model, config, given.files, given.data, given.seeds)
            if model is not None and part == "lm-eval" and given.files is not None:
                run_other_tasks(cells, model, name, config, given.files)
            if world and part in ("methods", "equal"):
                run_methods(cells, None, name, name, 0, config, methods, part == "equal")
            if model is not None and part in ("methods", "seeds", "equal"):
                drawn = {"methods": config["seeds"][:1], "seeds": config["seeds"][1:], "equal": config["seeds"]}[part]
                for seed in [each for each in drawn if given.seeds is None or each in given.seeds]:
                    for data in chosen:
                        if data in config["behaviors"]:
                            run_methods(cells, model, name, data, seed, config, methods, part == "equal")
    report(cells, given.results or given.out / "results", given.out / "results", given.keep)


if __name__ == "__main__":
    main()
