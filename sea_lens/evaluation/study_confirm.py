"""The best of a study on questions that nothing was chosen on: beside random editors and shuffled refits, with its damage."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
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
from sea_lens.evaluation.study_trials import Plan, Trial, Trials
from sea_lens.models.bridge import Model
from sea_lens.models.damage import DamageMeter
from sea_lens.models.distributed import shows
from sea_lens.statistics import Proportion, sign_flip_p_values

EVERY = 4
"""Of controls, and of trials, damage is measured on every so-many-th text."""
EXAMPLES = 6


def of_shuffled(trials: Trials, plan: Plan, shuffles: int, seed: int) -> list[Editor]:
    """Fits of a plan on demonstrations whose sides are shuffled, each with its mirror image, at the same cost.

    A shuffled fit is shorter, as its sides hardly differ: at the same strength it would do little, wherever it points. And
    where a model has one direction that everything points along, a shuffled fit finds it, with either sign. Mirror images
    take turns at that, so what all of them do on average is what the demonstrations have no part in.

    Args:
        trials: That the editor comes from.
        plan: The editor's.
        shuffles: How many.
        seed: Of the first.
    """
    found: list[Editor] = []
    for number in range(2 * seed, 2 * (seed + shuffles)):
        shuffled = replace(plan, shuffled=number)
        trial = trials.run(shuffled)
        if isinstance(trial, Trial) and trial.strength:
            found.append(trials.editor(shuffled, trial))
    return found


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Measures on questions that nothing was chosen on.

    Attributes:
        model: The model, unedited.
        questions: The questions.
        neutral_texts: As for `study`.
        folder: Where scores are kept as they come.
        shown_tokens: Length of the answers that are shown.
        options: Keywords of `evaluate_right`.
        progress: Whether to show a progress bar.
    """

    model: Model
    questions: Questions
    neutral_texts: Sequence[str] | None
    folder: Path
    shown_tokens: int
    options: Mapping[str, Any]
    progress: bool = True

    def edited(self, editor: Editor) -> tuple[Evaluation, float]:
        """An editor with its damage on all texts; and the seconds that one model's questions take."""
        started = time.perf_counter()
        found = self._evaluated(editor, 0)
        seconds = (time.perf_counter() - started) / 2  # the unedited model's, too
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)  # the verdict says it
            damage = self._meter.measure(editor, examples=EXAMPLES, max_new_tokens=self.shown_tokens)
        return replace(found, damage=damage), seconds

    def beside(
        self, edited: Evaluation, editor: Editor, random: Sequence[Editor], shuffled: Sequence[Editor]
    ) -> tuple[Evaluation, pd.DataFrame]:
        """The evaluation with random editors; and shuffled refits, a row each. Their damage is of every fourth text.

        The `p_value` of refits is of the editor's difference from their mean.
        """
        others = [*random, *shuffled]
        bare = [
            self._evaluated(other, 0)
            for other in tqdm(others, desc="controls", unit="editor", disable=not shows(self.progress))
        ]
        found = self._evaluated(editor, random)  # which are scored already, and kept
        bare = bare[len(random) :]
        costs = self._meter.on_fewer(EVERY).measure_all(others) if others else []
        spent = pd.DataFrame(
            {
                "damage_kl": [cost.kl for cost in costs],
                "damage_perplexity_ratio": [cost.perplexity_ratio for cost in costs],
                "is_broken": [cost.is_broken for cost in costs],
            }
        )
        controls = found.controls.reset_index(drop=True).join(spent.iloc[: len(random)]).rename_axis("control")
        refits = pd.DataFrame([one.table["change"] for one in bare]).reset_index(drop=True)
        refits = refits.join(spent.iloc[len(random) :].reset_index(drop=True))
        apart = [_right(found) - _right(one) for one in bare]
        p_value = float(sign_flip_p_values(torch.stack(apart).mean(0)[:, None])) if apart else 1.0
        return replace(found, damage=edited.damage, controls=controls), refits.assign(p_value=p_value)

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
        return DamageMeter.of(self.model, prompts, self.neutral_texts, batch_size=min(self.options["batch_size"], 16))


def _right(found: Evaluation) -> torch.Tensor:
    return torch.tensor(found.per_row["right edited"].to_numpy(dtype=float))


def table_of(found: Evaluation, refits: pd.DataFrame) -> pd.DataFrame:
    """The table of a `Study`.

    Args:
        found: As `HeldOut.beside` gives it.
        refits: As well.
    """
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
    parts = {"random editors": found.controls, "shuffled refits": refits}
    for name, part in parts.items():
        if part.empty:
            continue
        changes, before = part["right"], float(row["unedited"])
        ends = {"low": float(changes.min()), "high": float(changes.max())}
        rows[name] = {"right": n * (before + float(changes.mean())), "n": n, "share": before + float(changes.mean())}
        rows[name] |= {f"share_{end}": before + value for end, value in ends.items()}
        rows[name] |= {"change": float(changes.mean()), **{f"change_{end}": value for end, value in ends.items()}}
        if margins:
            rows[name]["margin"] = float(margins["unedited"]) + float(part["margin"].mean())
        rows[name] |= {"kl": float(part["damage_kl"].mean())}
        rows[name] |= {"perplexity_ratio": float(part["damage_perplexity_ratio"].mean())}
    return _framed(rows)


def unedited_only(right: Proportion) -> pd.DataFrame:
    """The table of a study in which nothing was confirmed."""
    low, high = right.interval()
    row = {"right": right.successes, "n": right.n, "share": right.share, "share_low": low, "share_high": high}
    return _framed({"unedited": row})


def _framed(rows: dict[str, dict[str, int | float]]) -> pd.DataFrame:
    names = ["right", "n", "share", "share_low", "share_high", "change", "change_low", "change_high", "p_value"]
    names += [name for name in ("margin", "kl", "perplexity_ratio") if any(name in row for row in rows.values())]
    cells = [{name: float(row.get(name, math.nan)) for name in names} for row in rows.values()]
    return pd.DataFrame(cells, index=pd.Index(list(rows), name="model"))
