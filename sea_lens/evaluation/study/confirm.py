"""The best of a study on questions that nothing was chosen on: beside random editors and shuffled refits, with its damage."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import SeaLensWarning
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.right import evaluate_right
from sea_lens.evaluation.study.clock import Clock
from sea_lens.evaluation.study.controls import (
    SAME_COST,
    SAME_LENGTH,
    SHUFFLED,
    Control,
    controls_table,
    random_pair,
)
from sea_lens.evaluation.study.plans import Plan
from sea_lens.evaluation.study.search import TOLD
from sea_lens.evaluation.study.sizes import evenly
from sea_lens.evaluation.study.trials import Trial, Trials
from sea_lens.models.bridge import Model
from sea_lens.models.damage import NEUTRAL, PROMPTS, Damage, DamageMeter
from sea_lens.models.distributed import shows
from sea_lens.statistics import Proportion, sign_flip_p_values

EVERY = 4
"""Of controls, and of trials, damage is measured on every so-many-th text."""
ENDS = {"low": "min", "high": "max"}


def shuffled_pair(trials: Trials, plan: Plan, seed: int, number: int) -> Iterator[Editor]:
    """A fit of a plan on demonstrations whose sides are shuffled, and its mirror image, at the same cost.

    A shuffled fit is shorter, as its sides hardly differ: at the same strength it would do little, wherever it points. And
    where a model has one direction that everything points along, a shuffled fit finds it, with either sign. Mirror images
    take turns at that, so what all of them do on average is what the demonstrations have no part in.

    Args:
        trials: That the editor comes from.
        plan: The editor's.
        seed: Of the first pair.
        number: Of this one.
    """
    for shuffle in (2 * (seed + number), 2 * (seed + number) + 1):
        shuffled = replace(plan, shuffled=shuffle)
        trial = trials.run(shuffled)
        if isinstance(trial, Trial) and trial.strength:
            yield trials.editor(shuffled, trial)


@dataclass(frozen=True, eq=False)
class Beside:
    """An editor on held-out questions, beside its controls.

    Attributes:
        evaluation: Of the editor, with its damage on all texts, and with random editors of its length.
        controls: As `Study.controls`.
        kl: What the editor costs on the texts that the controls' cost is of.
        p_value: Of the editor's difference from the mean of the shuffled refits.
        random: Random directions that were scored.
        shuffles: Shuffles that were scored.
    """

    evaluation: Evaluation
    controls: pd.DataFrame
    kl: float
    p_value: float
    random: int
    shuffles: int


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Measures on questions that nothing was chosen on.

    Attributes:
        model: The model, unedited.
        questions: The questions.
        neutral_texts: As for `study`.
        known: Meters of the fitting half, of all texts and of some: what the unedited model says of neutral text is the same.
        cost: What the best editor costs by the first of them, if it was measured.
        folder: Where scores are kept as they come.
        answers: How many answers either model writes, and how long they are at most, in tokens.
        options: Keywords of `evaluate_right`.
        progress: Whether to show a progress bar.
    """

    model: Model
    questions: Questions
    neutral_texts: Sequence[str] | None
    known: tuple[DamageMeter, DamageMeter]
    cost: Damage | None
    folder: Path
    answers: tuple[int, int]
    options: Mapping[str, Any]
    progress: bool = True

    def edited(self, editor: Editor) -> Evaluation:
        """An editor with its damage on all texts."""
        found = self._evaluated(editor, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)  # the verdict says it
            meter, neutral = self._meter, None
            if self.cost is not None and {PROMPTS, NEUTRAL} <= set(meter.predictions):
                neutral = self.cost.table.loc[[NEUTRAL]]
                meter = replace(meter, predictions={PROMPTS: meter.predictions[PROMPTS]})
            damage = meter.measure(editor, examples=self.answers[0], max_new_tokens=self.answers[1])
        if neutral is not None:
            damage = replace(damage, table=pd.concat([damage.table, neutral]))
        return replace(found, damage=damage)

    def beside(
        self,
        edited: Evaluation,
        editor: Editor,
        asked: tuple[int, int],
        clock: Clock,
        seed: int,
        shuffled: Callable[[int], Iterable[Editor]],
    ) -> Beside:
        """The editor beside its controls, as many as there is time for: one of each kind at least that is asked for.

        Args:
            edited: As `edited` gives it.
            editor: The editor.
            asked: How many random editors, and how many shuffles.
            clock: Tells how much time is left.
            seed: Of the first random direction.
            shuffled: Makes the refits of a shuffle, by its number.
        """
        meter = self._sharing(self._meter.on_fewer(EVERY), self.known[1])
        (own,) = meter.measure_all([editor]) if any(asked) else (edited.damage,)
        assert own is not None
        controls: list[Control] = []
        changes: list[Evaluation] = []
        took, made = [0.0, 0.0], [0, 0]
        turns = [(kind, number) for number in range(max(asked)) for kind in (0, 1) if number < asked[kind]]
        shape = None if clock.seconds is None else TOLD
        for kind, number in tqdm(turns, desc="controls", bar_format=shape, disable=not shows(self.progress)):
            if number and clock.left < took[kind]:
                continue
            began = time.perf_counter()
            for control in (
                (Control(SHUFFLED, number, other, meter.measure_all([other])[0]) for other in shuffled(number))
                if kind
                else random_pair(editor, own, seed, number, meter)
            ):
                controls.append(control)
                changes.append(self._evaluated(control.editor, 0))
            made[kind] += 1
            took[kind] = time.perf_counter() - began
        random = [control for control in controls if control.kind == SAME_LENGTH]
        found = self._evaluated(editor, [control.editor for control in random])  # which are scored already, and kept
        before = dict[str, Any](found.table.loc["right"])
        plain = Proportion(round(float(before["unedited"]) * int(before["n"])), int(before["n"]))
        table = controls_table(controls, [dict[str, Any](one.table["change"]) for one in changes], plain)
        costs = {"damage_kl": "kl", "damage_perplexity_ratio": "perplexity_ratio", "is_broken": "is_broken"}
        if random:
            rows = table[table["control"] == SAME_LENGTH].reset_index(drop=True)
            spent = pd.DataFrame({name: rows[own_name] for name, own_name in costs.items()})
            found = replace(found, controls=found.controls.reset_index(drop=True).join(spent).rename_axis("control"))
        refits = [one for one, control in zip(changes, controls, strict=True) if control.kind == SHUFFLED]
        apart = [_right(found) - _right(one) for one in refits]
        p_value = float(sign_flip_p_values(torch.stack(apart).mean(0)[:, None])) if apart else 1.0
        return Beside(replace(found, damage=edited.damage), table, own.kl, p_value, made[0], made[1])

    def _evaluated(self, editor: Editor, control: int | Sequence[Editor]) -> Evaluation:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)
            return evaluate_right(
                self.model,
                self.questions,
                editor,
                control=control,
                damage=False,
                folder=self.folder,
                progress=False,
                **self.options,
            )

    @cached_property
    def _meter(self) -> DamageMeter:
        prompts = [str(question.prompt) for question in self.questions]
        # A file may have its easy questions first, and the first answers are written.
        written = [prompts[place] for place in evenly(len(prompts), self.answers[0])]
        batch_size = min(self.options["batch_size"], 16)
        own = DamageMeter.of(self.model, prompts, self.neutral_texts, asked=written, batch_size=batch_size)
        return self._sharing(own, self.known[0])

    @staticmethod
    def _sharing(own: DamageMeter, known: DamageMeter) -> DamageMeter:
        """A meter that asks the unedited model no second time about neutral text."""
        neutral = {kind: known.predictions[kind] for kind in own.predictions if kind == NEUTRAL}
        return replace(own, predictions={**own.predictions, **neutral})


def _right(found: Evaluation) -> torch.Tensor:
    return torch.tensor(found.per_row["right edited"].to_numpy(dtype=float))


def table_of(beside: Beside) -> pd.DataFrame:
    """The table of a `Study`."""
    found = beside.evaluation
    row = dict[str, Any](found.table.loc["right"])
    margins = dict[str, Any](found.table.loc["margin"]) if "margin" in found.table.index else {}
    n = int(row["n"])
    rows: dict[str, dict[str, int | float]] = {}
    for side in ("unedited", "edited"):
        right = round(float(row[side]) * n)
        low, high = Proportion(right, n).interval()
        rows[side] = {"right": right, "n": n, "share": right / n, "share_low": low, "share_high": high}
        if margins:
            rows[side]["margin"] = float(margins[side])
    rows["unedited"] |= {"kl": 0.0, "perplexity_ratio": 1.0}
    assert found.damage is not None
    rows["edited"] |= {
        "change": float(row["change"]),
        "change_low": float(row["low"]),
        "change_high": float(row["high"]),
    }
    rows["edited"] |= {"p_value": float(row["p_value"]), "kl": found.damage.kl}
    rows["edited"] |= {"perplexity_ratio": found.damage.perplexity_ratio}
    for name in dict.fromkeys(beside.controls["control"]) if len(beside.controls) else ():
        part = beside.controls[beside.controls["control"] == name]
        rows[name] = {"right": float(part["right"].mean()), "n": n, "share": float(part["right"].mean()) / n}
        rows[name] |= {f"share_{end}": float(part["right"].agg(how)) / n for end, how in ENDS.items()}
        for measured in ("change", "kl"):
            rows[name] |= {measured: float(part[measured].mean())}
            rows[name] |= {f"{measured}_{end}": float(part[measured].agg(how)) for end, how in ENDS.items()}
        if margins:
            rows[name]["margin"] = float(margins["unedited"]) + float(part["margin"].mean())
        rows[name] |= {"perplexity_ratio": float(part["perplexity_ratio"].mean())}
        rows[name] |= {"broken": int(part["is_broken"].sum())}
    order = [name for name in ("unedited", "edited", SAME_LENGTH, SAME_COST, SHUFFLED) if name in rows]
    return _framed({name: rows[name] for name in order})


def unedited_only(right: Proportion) -> pd.DataFrame:
    """The table of a study in which nothing was confirmed."""
    low, high = right.interval()
    row = {"right": right.successes, "n": right.n, "share": right.share, "share_low": low, "share_high": high}
    return _framed({"unedited": row})


def _framed(rows: dict[str, dict[str, int | float]]) -> pd.DataFrame:
    names = ["right", "n", "share", "share_low", "share_high", "change", "change_low", "change_high", "p_value"]
    further = ("margin", "kl", "kl_low", "kl_high", "perplexity_ratio", "broken")
    names += [name for name in further if any(name in row for row in rows.values())]
    cells = [{name: float(row.get(name, math.nan)) for name in names} for row in rows.values()]
    return pd.DataFrame(cells, index=pd.Index(list(rows), name="model"))
