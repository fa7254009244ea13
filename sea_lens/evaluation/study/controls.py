"""What the best edit of a study must beat: random editors as long as it, random editors as costly as it, shuffled refits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from sea_lens.editing.controls import random_editor_like
from sea_lens.editing.editor import Editor
from sea_lens.editing.strength import strength_for
from sea_lens.errors import InputError
from sea_lens.models.damage import Damage, DamageMeter
from sea_lens.statistics import Proportion

SAME_LENGTH, SAME_COST, SHUFFLED = "random, same length", "random, same cost", "shuffled refits"
"""Kinds of controls, as rows of a table."""
TOLERANCE = 0.15
"""How near a control's KL comes to the edit's, relative to it."""
LOOKS = 6
"""Strengths that are measured at most, on the way to the edit's KL."""
FAR = 1.5
"""A factor of KL from which a control does clearly more, or clearly less, than the edit."""


@dataclass(frozen=True, eq=False)
class Control:
    """An editor that the edit is compared with.

    Attributes:
        kind: `SAME_LENGTH`, `SAME_COST` or `SHUFFLED`.
        number: Of its kind; those of one number of both random kinds have one direction.
        editor: It.
        damage: On every fourth text.
        factor: For how many times the edit's length it stands; of a refit 1, as it has a length of its own.
    """

    kind: str
    number: int
    editor: Editor
    damage: Damage
    factor: float = 1.0


def random_pair(editor: Editor, own: Damage, seed: int, number: int, meter: DamageMeter) -> Iterator[Control]:
    """A random direction twice: each token is moved as far as by the edit, and so far that it costs as much.

    They support two claims. Beaten by an edit, the first says that it matters where tokens are moved, and not only how far;
    but one that costs far more than the edit breaks the model, and beating that says little, and one that costs far less is
    beaten easily. The second says that the effect is not what any damage of this size does.

    Args:
        editor: The edit.
        own: What it costs on the meter's texts.
        seed: Of the first direction.
        number: Of this one.
        meter: Of damage, on some texts.
    """
    random = random_editor_like(editor, seed + number)
    (damage,) = meter.measure_all([random])
    yield Control(SAME_LENGTH, number, random, damage)
    if 0 < own.kl < math.inf:
        factor, damage = at_cost(random, damage, own.kl, meter)
        yield Control(SAME_COST, number, random if factor == 1 else random.scaled(factor), damage, factor)


def at_cost(editor: Editor, own: Damage, kl: float, meter: DamageMeter) -> tuple[float, Damage]:
    """A factor of an editor's strength at which it costs so much, or comes nearest to that, and its damage there.

    Args:
        editor: It.
        own: Its damage at its own strength.
        kl: In nats per token.
        meter: Of damage.

    Example:
        >>> meter = sl.DamageMeter.of(model)
        >>> factor, damage = at_cost(editor, meter.measure(editor), 0.1, meter)
        >>> 0.085 <= damage.kl <= 0.115
        True
    """
    seen = {1.0: own}

    def kl_at(factor: float) -> float:
        if factor not in seen:
            (seen[factor],) = meter.measure_all([editor.scaled(factor)])
        return seen[factor].kl

    with suppress(InputError):  # there is no such strength: the nearest is taken
        strength_for(kl_at, kl, TOLERANCE, LOOKS)
    nearest = min(seen, key=lambda factor: _apart(seen[factor].kl, kl))
    return nearest, seen[nearest]


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other)) if 0 < one < math.inf else math.inf


def controls_table(
    controls: Sequence[Control], changes: Sequence[Mapping[str, float]], plain: Proportion
) -> pd.DataFrame:
    """See `Study.controls`.

    Args:
        controls: The controls.
        changes: What each changes, by metric.
        plain: What the unedited model has right.
    """
    rows = [
        {
            "control": control.kind,
            "number": control.number,
            "factor": control.factor,
            "right": plain.successes + round(plain.n * change["right"]),
            "change": float(change["right"]),
            **({"margin": float(change["margin"])} if "margin" in change else {}),
            "kl": control.damage.kl,
            "perplexity_ratio": control.damage.perplexity_ratio,
            "is_broken": control.damage.is_broken,
        }
        for control, change in zip(controls, changes, strict=True)
    ]
    return pd.DataFrame(rows)


def of_costs(controls: pd.DataFrame, kl: float) -> list[str]:
    """What random editors cost beside the edit, and what beating each kind says: a sentence a kind.

    Args:
        controls: As `Study.controls`.
        kl: What the edit costs on the same texts.
    """
    told: list[str] = []
    length, cost = (controls[controls["control"] == kind] for kind in (SAME_LENGTH, SAME_COST))
    if len(length):
        broken = int(length["is_broken"].sum())
        dear, cheap = length["kl"] > FAR * kl, length["kl"] < kl / FAR
        says = "about as much as the edit, or on either side of it"
        if 2 * int(dear.sum()) > len(length):
            most = "far more" if dear.all() else "mostly far more"
            says = f"{most} than the edit, so beating them says less than beating those of the same cost"
        elif 2 * int(cheap.sum()) > len(length):
            most, them = ("far less", "they") if cheap.all() else ("mostly far less", "most of them")
            says = f"{most} than the edit, so {them} are beaten more easily than those of the same cost"
        breaks = f" {broken} of {len(length)} {'breaks' if broken == 1 else 'break'} the model." if broken else ""
        told.append(
            f"Random editors of the same length move every token as far as the edit, elsewhere. They cost "
            f"{span(length['kl'])} nats per token ({kl:.2g} the edit, on the same texts): {says}.{breaks}"
        )
    if len(cost):
        off = int((cost["kl"].map(lambda one: _apart(one, kl)) > math.log(FAR)).sum())
        missed = f" {off} of {len(cost)} could not be brought near to it." if off else ""
        told.append(
            f"Random editors of the same cost lie in the same directions, {span(cost['factor'])} times as long as the edit, "
            f"and cost {span(cost['kl'])} nats per token.{missed}"
        )
    return told


def span(values: pd.Series) -> str:
    """The least and the most of some numbers, in two digits."""
    ends = [f"{float(end):.2g}" for end in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
