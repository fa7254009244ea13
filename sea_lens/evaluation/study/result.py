"""The result of a study: a verdict in words, with the numbers that it follows from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.cache import write_text
from sea_lens.data.confounds import DemonstrationCheck
from sea_lens.editing.editor import Editor
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.study.confirm import Beside
from sea_lens.evaluation.study.controls import SAME_COST, SAME_LENGTH, SHUFFLED, of_costs, span
from sea_lens.evaluation.study.repeats import may_rise, rises, told_of_repeats
from sea_lens.evaluation.study.report import page_of, readable_rows
from sea_lens.evaluation.study.thin import more_for
from sea_lens.evaluation.study.told import told_of
from sea_lens.models.damage import NEUTRAL, PROMPTS, Damage
from sea_lens.results import Result
from sea_lens.statistics import Proportion

Verdict = Literal["works", "no effect", "breaks the model"]
LEVEL = 0.05
"""The p-value up to which a change counts as more than chance."""
TEXTS = {PROMPTS: "on the questions' prompts", NEUTRAL: "on neutral text"}
"""Kinds of text that damage is measured on."""


@dataclass(frozen=True, eq=False, repr=False)
class Study(Result):
    """Whether demonstrations steer a model, at what cost, and how sure that is.

    Example:
        >>> options = {"methods": [sl.SEA(0.5, center=True)], "layers": ["first:3"], "control": 1, "shuffles": 0}
        >>> found = sl.study(model, demonstrations, questions, trials=1, progress=False, **options)
        >>> found.table.index.tolist()
        ['unedited', 'edited', 'random, same length', 'random, same cost']

    Attributes:
        verdict: `"works"`: better on held-out questions than chance, than every random editor of its length and of its cost,
            and than shuffled refits on average, and the model is whole. `"breaks the model"`: the best editor is past a limit
            of damage, or all were. `"no effect"`: neither, or nothing could be told.
        summary: The verdict in a sentence, with its numbers, and with `thin` where it rests on little.
        reasons: What speaks for and against it, a sentence each.
        table: One row per model: `unedited`, `edited`, and, as their means, `random, same length`, `random, same cost` and
            `shuffled refits`. On the held-out questions: how many are `right` of `n`, the `share`, from `share_low` to
            `share_high` (a Wilson interval; of several editors their range); the `change` from the unedited model, from
            `change_low` to `change_high` (a paired interval; of several editors their range), with its `p_value`; of
            log-probabilities the mean `margin` of right over wrong in nats; `kl` and `perplexity_ratio` as of `Damage` (of
            several on every fourth text, with the range `kl_low` to `kl_high`), and how many of several are `broken`.
        trials: All that was tried, on the fitting questions: `token`, `method`, `layers`, `strength`, what is chosen by
            (`score`), `right` of `n`, `kl` and `perplexity_ratio` on every fourth text, whether it may be chosen (`allowed`),
            and which one was (`chosen`).
        examples: Held-out prompts with greedy answers, `unedited` and `edited`: 16, or fewer where there is little time; the
            page shows six of them.
        checked: What separates the demonstrations besides meaning.
        facts: What was studied and how, as plain values.
        evaluation: The editor on the held-out questions, question by question; None where nothing was steered.
        editor: The best editor; None where nothing was steered.
        controls: One row per control: which kind (`control`) and `number` of it, its length as a `factor` of the edit's (1
            for refits), how many questions are `right`, the `change`, the `margin` of log-probabilities, and on every fourth
            text its `kl` and `perplexity_ratio`, and whether it `is_broken`.
        thin: On how little the verdict rests, such as `"as far as one random direction tells"`: `"works"` on fewer than three
            random directions or no shuffled refit, the others on fewer than nine settings of more that were planned. Empty
            where it rests on enough.
        repetition: How much greedy answers repeat themselves, as the mean share of an answer's pairs of tokens that stood in
            it before (`sl.measure_damage` counts the same): `unedited`, `edited`, the `change`, from `low` to `high` (a
            paired interval of 95 %), and of how many answers (`n`): those of `examples`, or all, where the measure is of
            answers. Empty where nothing was steered.
    """

    verdict: str
    summary: str
    reasons: Sequence[str]
    table: pd.DataFrame
    trials: pd.DataFrame
    examples: pd.DataFrame
    checked: DemonstrationCheck
    facts: Mapping[str, Any]
    evaluation: Evaluation | None = None
    editor: Editor | None = field(default=None)
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)
    thin: str = ""
    repetition: Mapping[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", tuple(self.reasons))

    @property
    def told(self) -> Sequence[str]:
        """What was left out for want of time, taken over from an earlier run, or replaced, a sentence each."""
        return [*told_of(self.facts), *(more_for(self.verdict, self.facts) if self.thin else [])]

    def report(self, path: str | Path = "study.html") -> Path:
        """Writes one self-contained HTML page: the verdict, effect, controls and damage, texts side by side, and the trials.

        Args:
            path: The file.

        Returns:
            The file.

        Example:
            >>> options = {"methods": [sl.SEA(0.5, center=True)], "layers": ["first:3"], "control": 1, "shuffles": 0}
            >>> found = sl.study(model, demonstrations, questions, trials=1, progress=False, **options)
            >>> found.report("study.html").name
            'study.html'
        """
        check_arguments(Study.report, locals())
        write_text(Path(path), page_of(self))
        return Path(path)

    def _head(self) -> str:
        return self.summary

    def _readable(self) -> pd.DataFrame:
        return readable_rows(self.table)

    def _below(self) -> str:
        return "\n".join([*self.reasons, *self.checked.findings, *self.told])


def verdict_of(
    beside: Beside, table: pd.DataFrame, repetition: Mapping[str, int | float] | None = None
) -> tuple[Verdict, str, list[str]]:
    """The verdict on an editor in a word, what it rests on in a sentence, and with reasons.

    Args:
        beside: The editor on the held-out questions, with its damage, and its controls.
        table: As that of a `Study`.
        repetition: As that of a `Study`.
    """
    found, repeats = beside.evaluation, repetition or {}
    row, plain = (dict[str, Any](table.loc[name]) for name in ("edited", "unedited"))
    n, right, before = int(row["n"]), int(row["right"]), int(plain["right"])
    low, high = Proportion(right, n).interval()
    p_value, change = float(row["p_value"]), float(row["change"])
    against = f"{right} of {n} [{100 * low:.1f}, {100 * high:.1f}] against {before} of {n} unedited"
    at = {str(name): dict[str, Any](values) for name, values in table.iterrows()}
    told: list[str] = []
    beaten: list[str] = []
    of_random: list[str] = []
    for name, words in {SAME_LENGTH: "of the same length", SAME_COST: "of the same cost"}.items():
        if name not in at:
            continue
        ends = [round(at[name][end] * n) for end in ("share_low", "share_high")]
        of_random.append(f"{_span(*ends)} ({words.removeprefix('of the ')})")
        if ends[1] >= right:
            broken = int(at[name]["broken"])
            some = beside.controls[beside.controls["control"] == name]
            whole = int(some.loc[~some["is_broken"].astype(bool), "right"].max()) if broken < len(some) else -1
            though = ", though only such as break the model," if broken and whole < right else ""
            beaten.append(f"random editors {words}{though}")
    told += [f"random editors {', '.join(of_random)}"] if of_random else []
    if SHUFFLED in at:
        told.append(f"shuffled refits {at[SHUFFLED]['right']:.0f} on average")
        beaten += [SHUFFLED] if beside.p_value > LEVEL else []
    damage = found.damage
    costs = f"costs {row['kl']:.2g} nats per token{'' if damage is None else where_of(damage)}"
    if rises(repeats) or may_rise(repeats):
        of_few = "" if rises(repeats) else f" of {repeats['n']:.0f} answers, which may be chance"
        shares = f"{repeats['unedited']:.0%} -> {repeats['edited']:.0%} of token pairs"
        costs += f"; its answers repeat themselves more ({shares}{of_few})"
    p_text = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
    reasons = [
        f"On {n} held-out questions the editor changes the share that is right by {change:+.1%} "
        f"[{row['change_low']:+.1%}, {row['change_high']:+.1%}], {p_text} (paired sign-flip test)."
    ]
    if "margin" in found.table.index:
        margins = found.table.loc["margin"]
        reasons.append(
            f"Right answers gain {margins['change']:+.2g} nats over wrong ones "
            f"[{margins['low']:+.2g}, {margins['high']:+.2g}]."
        )
    reasons += of_costs(beside.controls, beside.kl) if len(beside.controls) else []
    if SHUFFLED in at:
        fits = [round(at[SHUFFLED][end] * n) for end in ("share_low", "share_high")]
        costs_of_refits = beside.controls.loc[beside.controls["control"] == SHUFFLED, "kl"]
        reasons.append(
            f"Fits on shuffled demonstrations, scaled towards the edit's share of the limit (up to four times a method's own "
            f"strength), cost {span(costs_of_refits)} nats per token and have {_span(*fits)} right. One may find the same "
            "axis with either sign, and its mirror image the other: so their mean is compared."
        )
    if damage is not None:
        reasons.append(f"Damage: {damage.summary}")
    if repeats:
        reasons.append(told_of_repeats(repeats))
    if damage is not None and damage.is_broken:
        past = damage.finding.removeprefix("This edit breaks the model: ").rstrip(".")
        return "breaks the model", f"{past}; {against}, which says little.", reasons
    if p_value <= LEVEL and change > 0 and not beaten:
        return "works", f"{'; '.join([against, *told, costs])}.", reasons
    if p_value <= LEVEL and change < 0:
        why = f"and worse ({p_text})"
    elif p_value > LEVEL:
        why = f"which chance gives too ({p_text})"
    else:
        why = f"and {' and '.join(beaten)} do as much ({p_text})"
    return "no effect", f"{against}, {why}; {'; '.join([*told, costs])}.", reasons


def where_of(damage: Damage) -> str:
    """The text on which an edit costs what it is said to cost, the one where it costs most; and its cost on the other."""
    costs = {str(kind): float(kl) for kind, kl in damage.table["kl"].items()}
    most = max(costs, key=lambda kind: costs[kind])
    others = [f"{kl:.2g} {TEXTS.get(kind, f'on {kind}')}" for kind, kl in costs.items() if kind != most]
    return f" {TEXTS.get(most, f'on {most}')}{f' ({others[0]})' if others else ''}"


def _span(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"
