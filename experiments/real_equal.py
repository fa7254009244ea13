"""Methods at equal damage: each one's edit scaled to one KL, beside random editors scaled to the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sea_lens as sl
from experiments.real_methods import kept, stronger
from experiments.real_setup import Cells, Setup, changes, quietly
from sea_lens.editing.strength import strength_for
from sea_lens.errors import InputError

MOST = 16.0
"""Times the strength it has: what does no damage there does nothing, and is not made to."""


def scaled_to(setup: Setup, editor: sl.Editor, kl: float) -> tuple[sl.Editor, float] | None:
    """An editor at a KL on a part of the texts, and how much stronger it is; None where a strength within `MOST` has none."""
    try:
        factor = strength_for(lambda factor: setup.first_look.measure(editor.scaled(factor)).kl, kl)
    except InputError:
        return None
    return (editor.scaled(factor), factor) if factor <= MOST else None


def best_by_place(trials: Sequence[Mapping[str, Any]], limit: float) -> list[int]:
    """By place, the trial of the greatest gap on the tuning questions; the one of the least damage where all break."""
    found = []
    for place in dict.fromkeys(trial["place"] for trial in trials):
        own = [index for index, trial in enumerate(trials) if trial["place"] == place]
        within = [index for index in own if trials[index]["kl"] <= limit and trials[index].get("gap") is not None]
        found.append(
            max(within, key=lambda index: trials[index]["gap"])
            if within
            else min(own, key=lambda index: trials[index]["kl"])
        )
    return found


def score_equal(
    setup: Setup, entries: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The best place of a method at a KL by the tuning questions, and one look at the held-out ones."""
    made = kept(setup, entries)
    candidates = []
    for index in best_by_place(trials, asked["limit"]):
        scaled = scaled_to(setup, made[index][1], asked["kl"])
        if scaled is not None:
            candidates.append((index, *scaled))
    if not candidates:
        return {"chosen": None, "why": f"no strength within {MOST:g} times those tried has a KL of {asked['kl']}"}
    tuned = setup.gaps(setup.tuning, [editor for _, editor, _ in candidates])
    best = max(range(len(candidates)), key=lambda place: float(tuned[place].mean()))
    index, editor, factor = candidates[best]
    likes = [sl.random_editor_like(editor, seed) for seed in range(asked["random"])]
    randoms = [scaled[0] for scaled in (scaled_to(setup, each, asked["kl"]) for each in likes) if scaled is not None]
    gaps = setup.gaps(setup.held_out, [editor, *randoms])
    return {
        "chosen": {**trials[index], "strength": trials[index]["strength"] * factor},
        "n": len(setup.plain),
        **changes(gaps[0], setup.plain),
        "by_question": [round(float(value), 4) for value in gaps[0] - setup.plain],
        "random": [float((gap - setup.plain).mean()) for gap in gaps[1:]],
        "kl": setup.meter.measure(editor).kl,
    }


def run_equal(
    cells: Cells,
    setup: Setup,
    where: str,
    name: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
) -> Any:
    """A method's cell at equal damage.

    Args:
        cells: Where it is kept.
        setup: The model and the behavior.
        where: Beginning of the cell's name.
        name: Of the method.
        config: The configuration.
        facts: What else decides the result.
        trials: The method's own, from `run_method`.
    """
    entries = stronger(config["methods"][name], facts.get("times", 1))
    asked = {**config["equal"], "limit": config["limits"]["kl"]}
    facts = {**facts, "method": name, "entries": entries, "equal": asked}
    with quietly():
        return cells.get(f"{where}/equal/{name}", facts, lambda: score_equal(setup, entries, trials, asked))
