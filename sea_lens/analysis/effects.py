"""What an edit does to answers and to everything else the model says: changes, intervals, tests and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sea_lens.analysis.measurements import EFFECTS, Effect, measure
from sea_lens.data.questions import Questions
from sea_lens.editing.controls import control_editors
from sea_lens.editing.editor import Editor
from sea_lens.models.bridge import Model
from sea_lens.statistics import (
    beats_controls_p_value,
    bootstrap_intervals,
    sign_flip_p_values,
)


@dataclass(frozen=True, eq=False)
class Effects:
    """What an editor changes, effect by effect.

    Attributes:
        table: One row an effect: its mean `unedited` and `edited` over questions, their difference `change` with its
            bootstrap interval `low` to `high`, and `p_value`, of a paired sign-flip test. With controls also their mean
            change `control`, the lowest and highest of them, and `control_p_value`: how often a control does as much.
        flips: One row for each effect that is 0 or 1: how many questions `gained` and how many `lost` it.
        per_question: One row a question: prompt, category and every effect, unedited and edited.
        n: Number of questions.
        n_controls: Number of control editors.
        confidence: Of the intervals.
        seed: Of resamples, signs and controls.
    """

    table: pd.DataFrame
    flips: pd.DataFrame
    per_question: pd.DataFrame
    n: int
    n_controls: int
    confidence: float
    seed: int


def measure_effects(
    model: Model,
    editor: Editor,
    questions: Questions,
    effects: Sequence[str | Effect] = tuple(EFFECTS),
    *,
    control: int | Sequence[Editor] = 0,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Effects:
    """Measures what an editor does to the model's predictions about questions.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editor: The editor.
        questions: To measure on: ones that neither the fit nor the choice of settings has seen.
        effects: Names of ours (`logit_difference`, `log_probability_difference`, `right_probability`, `accuracy`,
            `top_token`, `rank`, `kl`, `total_variation`), or functions of the edited and the unedited `Predictions` that
            return a number a question.
        control: How many norm-matched random editors to compare with (`random_editor_like`), or editors of your own, such
            as refits on `activations.shuffled(seed)`.
        seed: Of resamples, signs and random editors.
        confidence: Of the intervals.
        batch_size: Questions in one forward pass. It does not change the result, but for rounding.
        folder: Where to keep finished batches; a run that was killed goes on from there.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If an effect is unknown, or compares with false completions where a question has none.
        ModelMismatchError: If the editor does not fit the model.
    """
    controls = control_editors(editor, control, seed)
    measured = measure(
        model, questions, [None, editor, *controls], effects, batch_size=batch_size, folder=folder, progress=progress
    )
    plain, edited = measured.values[:, 0], measured.values[:, 1]
    changes = edited - plain
    low, high = bootstrap_intervals(changes.T, seed, confidence)
    rows = {
        "unedited": plain.mean(1),
        "edited": edited.mean(1),
        "change": changes.mean(1),
        "low": low,
        "high": high,
        "p_value": sign_flip_p_values(changes.T, seed),
    }
    table = pd.DataFrame({name: values.tolist() for name, values in rows.items()}, index=list(measured.names))
    if controls:
        others = (measured.values[:, 2:] - plain[:, None]).mean(2)
        table["control"] = others.mean(1).tolist()
        table["control_low"], table["control_high"] = others.amin(1).tolist(), others.amax(1).tolist()
        table["control_p_value"] = [
            beats_controls_p_value(float(change), found.tolist())
            for change, found in zip(rows["change"], others, strict=True)
        ]
    binary = [bool(((pair == 0) | (pair == 1)).all()) for pair in measured.values[:, :2]]
    names = [name for name, is_binary in zip(measured.names, binary, strict=True) if is_binary]
    flips = pd.DataFrame(
        [[int((changes[row] == step).sum()) for step in (1, -1)] for row, is_binary in enumerate(binary) if is_binary],
        index=names,
        columns=["gained", "lost"],
    )
    columns: dict[str, list[object]] = {
        "prompt": [question.prompt for question in questions],
        "category": [question.category for question in questions],
    }
    for row, name in enumerate(measured.names):
        columns |= {f"{name} unedited": plain[row].tolist(), f"{name} edited": edited[row].tolist()}
    return Effects(
        table.rename_axis("effect"),
        flips.rename_axis("effect"),
        pd.DataFrame(columns).rename_axis("question"),
        len(questions),
        len(controls),
        confidence,
        seed,
    )
