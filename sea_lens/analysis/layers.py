"""Which layers of an edit carry its effect: layer by layer, up to a layer, in pairs, and chosen greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from sea_lens.analysis.measurements import Effect, measure
from sea_lens.data.questions import Questions
from sea_lens.editing.controls import control_editors
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.statistics import beats_controls_p_value, bootstrap_intervals, sign_flip_p_values

Mode = Literal["only", "without", "first", "last"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, eq=False)
class Ablation:
    """An effect with the edit at some of its layers.

    Attributes:
        table: One row a set of layers: `mode`, `layer` (the layer of `only` and `without`, the number of layers of `first`
            and `last`), `layers`, the mean `value` over questions, its `change` from the unedited model with a bootstrap
            interval `low` to `high`, and the `p_value` of a paired sign-flip test. With controls also their mean change
            `control` at the same layers, the lowest and highest of them, and `control_p_value`. The first two rows are the
            unedited model (mode `none`) and the whole editor (`all`).
        per_question: One row a question, one column for each row of the table: the effect.
        effect: Its name.
        n: Number of questions.
        n_controls: Number of control editors.
        confidence: Of the intervals.
        seed: Of resamples, signs and controls.
    """

    table: pd.DataFrame
    per_question: pd.DataFrame
    effect: str
    n: int
    n_controls: int
    confidence: float
    seed: int


def ablate_layers(
    model: Model,
    editor: Editor,
    questions: Questions,
    modes: Sequence[Mode] = MODES,
    effect: str | Effect = "log_probability_difference",
    *,
    layer_sets: Sequence[Sequence[int]] = (),
    control: int | Sequence[Editor] = 0,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Ablation:
    """Measures an effect with the edit at one layer only, at all but one, at the first n and at the last n of its layers.

    Runs that are alike up to a layer share the blocks below it; the results are those of separate full runs, to the bit.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editor: The editor.
        questions: To measure on.
        modes: Which of the four.
        effect: As for `measure_effects`: a name or a function.
        layer_sets: Further sets of the editor's layers, in rows of mode `set`.
        control: How many norm-matched random editors to ablate alike, or editors of your own with the same layers.
        seed: Of resamples, signs and random editors.
        confidence: Of the intervals.
        batch_size: Questions in one forward pass. It does not change the result, but for rounding.
        folder: Where to keep finished batches; a run that was killed goes on from there.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a mode or the effect is unknown, or a set of layers is empty.
        ModelMismatchError: If the editor does not fit the model, or lacks a layer of a set.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or isinstance(modes, str):
        raise InputError(f"modes is a list out of {', '.join(MODES)}, and {modes!r} was given.")
    layers = editor.layers
    rows: list[tuple[str, int | None, list[int]]] = [("none", None, []), ("all", None, layers)]
    for mode in modes:
        for number, layer in enumerate(layers, start=1):
            chosen = {
                "only": [layer],
                "without": [other for other in layers if other != layer],
                "first": layers[:number],
                "last": layers[-number:],
            }[mode]
            rows.append((mode, layer if mode in ("only", "without") else number, chosen))
    rows += [("set", None, sorted(set(chosen))) for chosen in layer_sets]
    if not all(chosen for mode, _, chosen in rows if mode == "set"):
        raise InputError("A set of layers is empty. The unedited model is in the table already.")
    controls = control_editors(editor, control, seed)
    sets = [chosen for _, _, chosen in rows]
    views = [_at(one, chosen) for one in (editor, *controls) for chosen in sets]
    measured = measure(model, questions, views, [effect], batch_size=batch_size, folder=folder, progress=progress)
    values = measured.values[0].reshape(1 + len(controls), len(sets), len(questions))
    changes = values - values[:, :1]
    ours = changes[0]
    low, high = bootstrap_intervals(ours.T, seed, confidence)
    table = pd.DataFrame(
        {
            "mode": [mode for mode, _, _ in rows],
            "layer": pd.array([layer for _, layer, _ in rows], dtype="Int64"),
            "layers": [tuple(chosen) for chosen in sets],
            "value": values[0].mean(1).tolist(),
            "change": ours.mean(1).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "p_value": sign_flip_p_values(ours.T, seed).tolist(),
        }
    )
    if controls:
        others = changes[1:].mean(2)
        table["control"] = others.mean(0).tolist()
        table["control_low"], table["control_high"] = others.amin(0).tolist(), others.amax(0).tolist()
        table["control_p_value"] = [
            beats_controls_p_value(change, found)
            for change, found in zip(table["change"], others.T.tolist(), strict=True)
        ]
    names = [" ".join([mode, ",".join(map(str, chosen))]).strip() for mode, _, chosen in rows]
    per_question = pd.DataFrame(values[0].T.numpy(), columns=names).rename_axis("question")
    return Ablation(table, per_question, measured.names[0], len(questions), len(controls), confidence, seed)


@dataclass(frozen=True, eq=False)
class Interactions:
    """How the edits of two layers work together.

    Attributes:
        table: One row a pair of layers `first` and `second`: the change of the effect with the edit at `both`, the `sum` of
            the changes with each alone, and their difference `interaction` with its bootstrap interval `low` to `high`. Below
            zero they do the same work twice (or the effect has a ceiling), above zero they need one another.
        alone: The change with the edit at one layer alone, by layer.
        effect: Its name.
        n: Number of questions.
        confidence: Of the intervals.
        seed: Of the resamples.
    """

    table: pd.DataFrame
    alone: pd.Series[float]
    effect: str
    n: int
    confidence: float
    seed: int


def measure_interactions(
    model: Model,
    editor: Editor,
    questions: Questions,
    effect: str | Effect = "log_probability_difference",
    *,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Interactions:
    """Compares the edit at each pair of layers with the sum of its parts. Arguments as for `ablate_layers`.

    Raises:
        InputError: If the editor has fewer than two layers, or the effect is unknown.
        ModelMismatchError: If the editor does not fit the model.
    """
    layers = editor.layers
    if len(layers) < 2:
        raise InputError(f"Interactions are of two layers, and this editor edits layers {layers} only.")
    pairs = list(combinations(range(len(layers)), 2))
    sets = [[], *([layer] for layer in layers), *([layers[one], layers[other]] for one, other in pairs)]
    views = [_at(editor, chosen) for chosen in sets]
    measured = measure(model, questions, views, [effect], batch_size=batch_size, folder=folder, progress=progress)
    changes = measured.values[0, 1:] - measured.values[0, :1]
    alone, both = changes[: len(layers)], changes[len(layers) :]
    total = torch.stack([alone[one] + alone[other] for one, other in pairs])
    low, high = bootstrap_intervals((both - total).T, seed, confidence)
    table = pd.DataFrame(
        {
            "first": [layers[one] for one, _ in pairs],
            "second": [layers[other] for _, other in pairs],
            "both": both.mean(1).tolist(),
            "sum": total.mean(1).tolist(),
            "interaction": (both - total).mean(1).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
        }
    )
    by_layer = pd.Series(alone.mean(1).tolist(), index=pd.Index(layers, name="layer"), name="change")
    return Interactions(table, by_layer, measured.names[0], len(questions), confidence, seed)


@dataclass(frozen=True, eq=False)
class LayerSelection:
    """Layers chosen one after the other, each the one that adds most.

    Attributes:
        table: One row a step: the layer `added`, the `layers` so far, the `change` of the effect on the choosing questions,
            and on the held-out ones `held_out` with its bootstrap interval `low` to `high`. `chosen` marks the step taken.
        editor: At the layers of the chosen step: the first at which no further layer improves the choosing questions.
        effect: Its name.
        n: Number of choosing questions.
        n_held_out: Number of held-out questions.
    """

    table: pd.DataFrame
    editor: Editor
    effect: str
    n: int
    n_held_out: int


def select_layers(
    model: Model,
    editor: Editor,
    questions: Questions,
    held_out: Questions,
    effect: str | Effect = "log_probability_difference",
    *,
    max_layers: int | None = None,
    lower_is_better: bool = False,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> LayerSelection:
    """Greedy forward selection of an editor's layers on some questions, confirmed on others.

    Every step adds the layer that improves the effect most, up to `max_layers`, also where none improves it, so that the
    table shows the whole path. The best on the choosing questions flatters: read `held_out`.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editor: The editor.
        questions: To choose by.
        held_out: To confirm on; none of `questions`.
        effect: As for `ablate_layers`.
        max_layers: How many to add at most; all for None.
        lower_is_better: Whether to look for the lowest effect, as for `rank` or `kl`.
        seed: Of resamples.
        confidence: Of the intervals.
        batch_size: Questions in one forward pass.
        folder: Where to keep finished batches; a run that was killed goes on from there.
        progress: Whether to show progress bars.

    Raises:
        InputError: If a held-out question is also one to choose by, `max_layers` is impossible, or the effect is unknown.
        ModelMismatchError: If the editor does not fit the model.
    """
    shared = {question.prompt for question in questions} & {question.prompt for question in held_out}
    if shared:
        raise InputError(
            f"{len(shared)} held-out questions are also ones to choose by, such as {min(shared)!r}, and cannot confirm "
            "anything. Split them first: questions.split(0.5, seed=0)."
        )
    steps = len(editor.layers) if max_layers is None else max_layers
    if not 1 <= steps <= len(editor.layers):
        raise InputError(f"max_layers is 1 to {len(editor.layers)}, the editor's layers, and {max_layers} was given.")
    sign = -1 if lower_is_better else 1

    def changes(asked: Questions, sets: Sequence[Sequence[int]]) -> tuple[str, Tensor]:
        views = [_at(editor, chosen) for chosen in [[], *sets]]
        measured = measure(model, asked, views, [effect], batch_size=batch_size, folder=folder, progress=progress)
        return measured.names[0], measured.values[0, 1:] - measured.values[0, :1]

    path: list[list[int]] = []
    gains: list[float] = []
    for _ in range(steps):
        so_far = path[-1] if path else []
        candidates = [sorted([*so_far, layer]) for layer in editor.layers if layer not in so_far]
        means = (sign * changes(questions, candidates)[1].mean(1)).tolist()
        best = max(range(len(candidates)), key=means.__getitem__)
        path.append(candidates[best])
        gains.append(means[best])
    stop = next((step for step in range(1, steps) if gains[step] <= gains[step - 1]), steps) - 1
    name, confirmed = changes(held_out, path)
    low, high = bootstrap_intervals(confirmed.T, seed, confidence)
    added = [next(iter(set(now) - set(before))) for before, now in zip([[], *path], path, strict=False)]
    table = pd.DataFrame(
        {
            "added": added,
            "layers": [tuple(chosen) for chosen in path],
            "change": [sign * gain for gain in gains],
            "held_out": confirmed.mean(1).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "chosen": [step == stop for step in range(steps)],
        }
    )
    return LayerSelection(table, editor.at_layers(path[stop]), name, len(questions), len(held_out))


def _at(editor: Editor, layers: Sequence[int]) -> Editor | None:
    """A view at these layers; the unedited model for none."""
    return editor.at_layers(layers) if layers else None
