"""How much evidence a verdict rests on: where it is little, the first sentence says so, and `told` what would be more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sea_lens.wording import setting

ENOUGH_RANDOM = 3
"""Random directions below which a verdict of `works` is preliminary: one is beaten by chance in half of all cases."""
ENOUGH_SETTINGS = 9
"""Settings below which a verdict that nothing was found is preliminary: in the order in which they are tried, so many hold
three methods, three sets of layers and both tokens."""
NUMBERS = ("no", "one", "two", "three")


def thin_of(verdict: str, facts: Mapping[str, Any]) -> str:
    """On how little a verdict rests, as what follows it in a sentence; empty where it rests on enough.

    That an edit works is said of one editor, and rests on its controls. That there is no effect, or none that leaves the
    model whole, is said of all that was tried.

    Args:
        verdict: As that of a `Study`.
        facts: As those of a `Study`.

    Example:
        >>> thin_of("works", {"control": 1, "shuffles": 1})
        'as far as one random direction tells'
        >>> thin_of("no effect", {"trials": 4, "planned": 192})
        'as far as 4 of 192 settings tell'
    """
    if verdict == "works":
        return _of_controls(int(facts["control"]), int(facts["shuffles"]))
    made, planned = int(facts["trials"]), int(facts["planned"])
    if made >= min(planned, ENOUGH_SETTINGS):
        return ""
    return f"as far as {_number(made)} of {planned} settings tell{'s' if made == 1 else ''}"


def _of_controls(random: int, shuffles: int) -> str:
    missing = [what for what, n in {"random direction": random, "shuffled refit": shuffles}.items() if not n]
    without = f"with no {' and no '.join(missing)} beside it" if missing else ""
    if not 0 < random < ENOUGH_RANDOM:
        return without
    told = f"as far as {_number(random)} random direction{' tells' if random == 1 else 's tell'}"
    return f"{told} and {without}" if without else told


def headed(verdict: str, thin: str, said: str, but: str = "") -> str:
    """A verdict in a sentence.

    Args:
        verdict: In a word or three.
        thin: As `thin_of` gives it.
        said: What it rests on.
        but: What it costs that numbers do not show, as `but_of` gives it.
    """
    return f"{', '.join(filter(None, (verdict, but, thin)))}: {said}"


def more_for(verdict: str, facts: Mapping[str, Any]) -> list[str]:
    """What a verdict on little evidence does not know, and what to ask for, a sentence each; none where there is enough.

    Args:
        verdict: As that of a `Study`.
        facts: As those of a `Study`.
    """
    if not thin_of(verdict, facts):
        return []
    more_time = f"give it more {setting('minutes')}"
    if verdict != "works":
        more = more_time if facts.get("trials_asked") is None else f"ask for more {setting('trials')}"
        most = f"{ENOUGH_SETTINGS} settings or more say something of methods, layers and tokens"
        return [f"The verdict is preliminary: {most}; {more}."]
    found: list[str] = []
    random = int(facts["control"])
    if random < ENOUGH_RANDOM:
        is_asked = int(facts.get("control_asked", random)) >= ENOUGH_RANDOM
        more = more_time if is_asked else f"ask for {setting('control')} of {ENOUGH_RANDOM} or more"
        beaten = f"{_number(random)} random direction{' is' if random == 1 else 's are'} beaten by chance"
        why = f"{beaten} in one of {_number(random + 1)} cases" if random else "no random direction was scored"
        found.append(f"The verdict is preliminary: {why}, and {_number(ENOUGH_RANDOM)} say more; {more}.")
    if not facts["shuffles"]:
        found.append(
            "Without shuffled refits nothing says that it matters which answers were called right; ask for "
            f"{setting('shuffles')} of 1 or more."
        )
    return found


def _number(n: int) -> str:
    return NUMBERS[n] if n < len(NUMBERS) else str(n)
