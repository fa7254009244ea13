"""What a study has to say of itself: what it left out for want of time, what it took over, and what it replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OVER = 1.1
"""Times the minutes asked for, from which a study says that it took longer."""
CUT = (
    ("n_demonstrations", "n_demonstrations_given", "demonstrations"),
    ("n_fitting", "n_fitting_given", "fitting questions"),
    ("n_held_out", "n_held_out_given", "held-out questions"),
    ("control", "control_asked", "random directions"),
    ("shuffles", "shuffles_asked", "shuffles"),
)
"""What is cut where time is short: how many were used, of how many, and of what."""


def told_of(facts: Mapping[str, Any]) -> Sequence[str]:
    """Sentences, from the facts of a study; an older one's that lack some give fewer."""
    told: list[str] = []
    made, planned = facts.get("trials", 0), facts.get("planned", 0)
    minutes, took = float(facts.get("minutes", 0.0)), float(facts.get("seconds", 0.0)) / 60
    by_time = facts.get("trials_asked") is None
    if made and made < planned:
        why = f"as many as there was time for in {minutes:g} minutes" if by_time else "as many as were asked for"
        told.append(
            f"It tried {made} of {planned} planned settings, {why}; what comes later in the order was not tried."
        )
    cut = [
        f"{facts[used]} of {facts[given]} {what}"
        for used, given, what in CUT
        if used in facts and facts.get(given) is not None and facts[used] < facts[given]
    ]
    if facts.get("no_neutral"):
        cut.append(f"no method that needs neutral answers ({facts['no_neutral']})")
    if cut:
        told.append(f"To keep to its time it used {', '.join(cut)}.")
    if facts.get("resumed"):
        of = f"{facts['resumed']} of its settings were" if facts["resumed"] != 1 else "one of its settings was"
        told.append(f"It goes on from a run that was stopped: {of} tried there, and the minutes are those of this run.")
    if by_time and minutes and took > OVER * minutes:
        told.append(
            f"It took {took:.1f} minutes, where {minutes:g} {'was' if minutes == 1 else 'were'} asked for: "
            + ("one setting and one control of each kind are always measured, and " if made else "")
            + "a machine may slow down on the way."
        )
    if not facts.get("sides_tested", True):
        told.append(f"{facts['apart']}.")
    if facts.get("replaced"):
        told.append(str(facts["replaced"]))
    return told
