"""Which layers of an edit carry its effect: one by one, up to a layer, in pairs, and chosen greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import ClassVar, Literal, get_args

import pandas as pd
import torch

from sea_lens.analysis.effects import change_columns, control_columns, named_effect, noted
from sea_lens.analysis.measurements import EffectFunction, check_asked, measure
from sea_lens.arguments import check_arguments
from sea_lens.data.questions import Questions
from sea_lens.editing.controls import control_editors
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.damage import Damage, DamageMeter
from sea_lens.models.sites import Site, labels_of
from sea_lens.results import Result
from sea_lens.statistics import holm, mean_intervals

Mode = Literal["only", "without", "first", "last"]
MODES: tuple[Mode, ...] = get_args(Mode)
MANY_SITES = 12
"""Sites of an editor above which one mode is measured by default."""


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """An effect with the edit at some of its layers.

    Attributes:
        table: One row per set of layers: `mode`; `layer`, the layer of `only` and `without`, the number of layers of
            `first` and `last`; `layers` (hook names, where an editor edits sites of several names); the mean `value` over
            questions; its `change` from the unedited model with an interval as that of `Effects`, `low` to `high`;
            `p_value`, of a paired sign-flip test; and `p_holm`, that p-value corrected by Holm's method for the number of
            rows of its mode. A distance from the unedited model (`answer_kl`) has no p-values. With controls also their mean
            change `control` at the same layers, `control_low` and `control_high` (the least and the greatest of them), and
            `control_p_value`, which is not corrected. `kl` is what the edit costs there, as `Damage.kl`; `note` says where an
            interval and its p-value disagree. The first two rows are the unedited model (mode `none`) and the whole editor
            (`all`).
        per_question: One row per question, one column per row of the table: the effect.
        effect: Its name.
        n: Number of questions.
        n_controls: Number of control editors.
        confidence: Of the intervals.
        seed: Of resamples, signs and controls.
        damage: What the whole edit costs on the prompts and on neutral text; None if it was not measured.

    Example:
        >>> ablation = sl.ablate_layers(model, questions, editor, modes=["only"], effect="top_token", control=0)
        >>> ablation.table.set_index("mode")["value"].round(2).loc[["none", "all"]].tolist()
        [0.45, 0.95]
    """

    table: pd.DataFrame
    per_question: pd.DataFrame
    effect: str
    n: int
    n_controls: int
    confidence: float
    seed: int
    damage: Damage | None = None
    shown: ClassVar = (
        *("mode", "layers", "change", "low", "high", "p_holm", "control", "control_low", "control_high"),
        *("kl", "note"),
    )

    def _below(self) -> str:
        return "" if self.damage is None else f"Damage: {self.damage.summary}"


def ablate_layers(
    model: Model,
    questions: Questions,
    editor: Editor,
    *,
    modes: Sequence[Mode] | None = None,
    effect: str | EffectFunction = "mean_log_probability_difference",
    layer_sets: Sequence[Sequence[int | str | Site]] = (),
    control: int | Sequence[Editor] = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Ablation:
    """Measures an effect with the edit at one layer only, at all but one, at the first n and at the last n of its layers.

    Every site that an editor edits counts as a layer of its own, in the order in which a pass comes to them: a residual
    stream, attention heads, an MLP's neurons.

    Runs that are alike up to a layer share the blocks below it. The results are those of separate full runs, to the bit.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: What to measure on.
        editor: The editor.
        modes: Which of the four; for None all, and of editors of more than 12 sites only `"only"`, because time grows with
            their square.
        effect: A name or a function, as for `measure_effects`.
        layer_sets: Further sets of the editor's layers, hook names or sites, in rows of mode `set`.
        control: How many norm-matched random editors to ablate alike, or editors of your own with the same layers; 0 is none.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the prompts and on neutral text, at every set of layers.
        seed: Of resamples, signs and random editors.
        confidence: Of the intervals.
        batch_size: Rows of tokens per forward pass. Bounds memory, and changes results by rounding only.
        folder: Where to keep finished batches; a killed run continues from there.
        progress: Whether to show a progress bar.

    Returns:
        A result whose `table` has one row per set of layers, with the mean effect and its change from the unedited
        model, in the effect's own unit, with interval, p-value, controls and what the edit costs there, in nats per
        token.

    Raises:
        InputError: If a mode or the effect is unknown, or a set of layers is empty.
        ModelMismatchError: If the editor does not fit the model, or lacks a layer of a set.

    Warns:
        BrokenModelWarning: If the whole edit breaks the model.
        SeaLensWarning: If the edit changes no logit at some layers, or sums over the tokens of answers of unlike lengths are
            compared.

    Example:
        >>> ablation = sl.ablate_layers(model, questions, editor, modes=["last"], effect="top_token", control=0)
        >>> ablation.table["layers"].tolist()
        [(), (0, 1, 2), (2,), (1, 2), (0, 1, 2)]
    """
    check_arguments(ablate_layers, locals())
    check_asked(model, questions, editor)
    if modes is None:
        modes = MODES if len(editor.sites) <= MANY_SITES else ("only",)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or isinstance(modes, str) or not (modes or layer_sets):
        raise InputError(f"modes must be a list out of {', '.join(MODES)}; got {modes!r}.")
    sites, known = editor.sites, named_effect(effect)
    rows: list[tuple[str, int | None, list[Site]]] = [("none", None, []), ("all", None, sites)]
    for mode in modes:
        for number, site in enumerate(sites, start=1):
            chosen = {
                "only": [site],
                "without": [other for other in sites if other != site],
                "first": sites[:number],
                "last": sites[-number:],
            }[mode]
            rows.append((mode, site.layer if mode in ("only", "without") else number, chosen))
    if not all(layer_sets):
        raise InputError("A set of layers is empty. The table has the unedited model already: drop that set.")
    rows += [("set", None, editor.at_layers(chosen).sites) for chosen in layer_sets]
    controls = control_editors(editor, control, seed)
    sets = [chosen for _, _, chosen in rows]
    views = [view_at(one, chosen) for one in (editor, *controls) for chosen in sets]
    measured = measure(model, questions, views, [known], batch_size=batch_size, folder=folder, progress=progress)
    values = measured.values[0].reshape(1 + len(controls), len(sets), len(questions))
    changes = values - values[:, :1]
    kinds = [known.is_share_of(values[0])] * len(sets), [known.is_distance] * len(sets)
    found = {"value": values[0].mean(1), **change_columns(changes[0], *kinds, seed, confidence)}
    families = [len(list(family)) for _, family in groupby(mode for mode, _, _ in rows)]
    found["p_holm"] = torch.cat([holm(family) for family in torch.split(found["p_value"], families)])
    if controls:
        found |= control_columns(found["change"], changes[1:].mean(2).T)
    named = labelled(editor, sets)
    table = pd.DataFrame(
        {
            "mode": [mode for mode, _, _ in rows],
            "layer": pd.array([layer for _, layer, _ in rows], dtype="Int64"),
            "layers": named,
            **{name: values.tolist() for name, values in found.items()},
        }
    )
    table, cost = noted(table, len(questions), confidence), None
    if damage:
        prompts = [question.prompt for question in questions]
        meter = DamageMeter.of(model, prompts, neutral_texts, batch_size=batch_size)
        chosen_sets = list(dict.fromkeys(tuple(chosen) for chosen in sets if chosen))
        costs = dict(zip(chosen_sets, meter.measure_all([editor.at_layers(each) for each in chosen_sets]), strict=True))
        table["kl"] = [costs[tuple(chosen)].kl if chosen else 0.0 for chosen in sets]
        cost = costs[tuple(sites)]
        cost.warn()
    names = [
        " ".join([mode, ",".join(map(str, chosen))]).strip() for (mode, _, _), chosen in zip(rows, named, strict=True)
    ]
    per_question = pd.DataFrame(values[0].T.numpy(), columns=names).rename_axis("question")
    return Ablation(table, per_question, known.name, len(questions), len(controls), confidence, seed, cost)


@dataclass(frozen=True, eq=False, repr=False)
class Interactions(Result):
    """How the edits of two layers work together.

    Attributes:
        table: One row per pair of layers, `first` and `second`: the change of the effect with the edit at `both`, the `sum`
            of the changes with each alone, and their difference `interaction` with its interval `low` to `high` (percentile
            bootstrap over questions; of fewer than 30, Student's t), not corrected for the number of pairs. Below zero the
            two do the same work twice (or the effect has a ceiling); above zero they need one another.
        alone: The `change` with the edit at one layer alone, per layer.
        effect: Its name.
        n: Number of questions.
        confidence: Of the intervals.
        seed: Of the resamples.
    """

    table: pd.DataFrame
    alone: pd.DataFrame
    effect: str
    n: int
    confidence: float
    seed: int


def measure_interactions(
    model: Model,
    questions: Questions,
    editor: Editor,
    *,
    effect: str | EffectFunction = "mean_log_probability_difference",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Interactions:
    """Compares the edit at each pair of layers with the sum of its parts: do two layers do more together than apart?

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: What to ask.
        editor: An editor of two layers or more.
        effect: Name of an effect, or a function as `register_effect` takes it.
        seed: Of the bootstrap.
        confidence: Of the intervals.
        batch_size: Rows in one forward pass.
        folder: Where to keep what is done, so that a killed run goes on; None for nowhere.
        progress: Whether to show a progress bar.

    Returns:
        A row per pair, with the change of the effect under `both` layers, what that is beyond the sum of each `alone`, and
        its paired interval over questions.

    Raises:
        InputError: If the editor has fewer than two layers, or the effect is unknown.
        ModelMismatchError: If the editor does not fit the model.

    Example:
        >>> pairs = sl.measure_interactions(model, questions, editor.first_layers(2))
        >>> pairs.table[["first", "second"]].to_numpy().tolist()
        [[0, 1]]
    """
    check_arguments(measure_interactions, locals())
    check_asked(model, questions, editor)
    sites, layers, known = editor.sites, labels_of(editor.sites), named_effect(effect)
    if len(sites) < 2:
        raise InputError(f"Interactions need two layers, and this editor edits {sites[0]} only.")
    pairs = list(combinations(range(len(sites)), 2))
    sets = [[], *([site] for site in sites), *([sites[one], sites[other]] for one, other in pairs)]
    views = [view_at(editor, chosen) for chosen in sets]
    measured = measure(model, questions, views, [known], batch_size=batch_size, folder=folder, progress=progress)
    changes = measured.values[0] - measured.values[0, :1]
    alone, both = changes[1 : 1 + len(layers)], changes[1 + len(layers) :]
    total = torch.stack([alone[one] + alone[other] for one, other in pairs])
    low, high = mean_intervals((both - total).T, seed, confidence)
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
    by_layer = pd.DataFrame({"change": alone.mean(1).tolist()}, index=pd.Index(layers, name="layer"))
    return Interactions(table, by_layer, known.name, len(questions), confidence, seed)


def view_at(editor: Editor, sites: Sequence[Site]) -> Editor | None:
    """A view at these sites; the unedited model for none."""
    return editor.at_layers(sites) if sites else None


def labelled(editor: Editor, sets: Sequence[Sequence[Site]]) -> list[tuple[int | str, ...]]:
    """What the table calls sets of an editor's sites."""
    labels = dict(zip(editor.sites, labels_of(editor.sites), strict=True))
    return [tuple(labels[site] for site in sites) for sites in sets]
