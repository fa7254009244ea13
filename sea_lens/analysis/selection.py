"""Layers of an edit chosen one after the other, and confirmed on questions of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sea_lens.analysis.effects import named_effect
from sea_lens.analysis.layers import labelled, view_at
from sea_lens.analysis.measurements import EffectFunction, check_asked, measure
from sea_lens.arguments import check_arguments
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.damage import DamageMeter
from sea_lens.models.sites import Site
from sea_lens.results import Result
from sea_lens.statistics import mean_intervals
from sea_lens.wording import either, setting


@dataclass(frozen=True, eq=False, repr=False)
class LayerSelection(Result):
    """Layers chosen one after the other, each the one that adds most.

    Attributes:
        table: One row per step: the layer `added`, the `layers` so far, the `change` of the effect on the choosing
            questions (which flatters), and its change `held_out` on the held-out ones with its interval `held_out_low` to
            `held_out_high` (percentile bootstrap over questions; of fewer than 30, Student's t). `kl` is what the edit costs
            there, as `Damage.kl`, and `chosen` marks the step taken.
        editor: At the layers of the chosen step: the first at which no further layer improves the choosing questions.
        effect: Its name.
        n: Number of choosing questions.
        n_held_out: Number of held-out questions.
        confidence: Of the intervals.
        seed: Of the resamples.
    """

    table: pd.DataFrame
    editor: Editor
    effect: str
    n: int
    n_held_out: int
    confidence: float
    seed: int


def select_layers(
    model: Model,
    questions: Questions,
    editor: Editor,
    *,
    held_out: Questions,
    effect: str | EffectFunction = "mean_log_probability_difference",
    less_is_better: bool | None = None,
    max_layers: int | None = None,
    neutral_texts: Sequence[str] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> LayerSelection:
    """Greedy forward selection of an editor's layers on some questions, confirmed on others.

    Every step adds the layer that improves the effect most, up to `max_layers`, also where none improves it, so that the
    table shows the whole path. The best change on the choosing questions flatters: report `held_out`.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: What to choose by.
        editor: The editor.
        held_out: What to confirm on; none of `questions`.
        effect: A name or a function, as for `measure_effects`.
        less_is_better: Whether to look for the lowest effect; None for what the effect was registered with.
        max_layers: How many to add at most; all for None.
        neutral_texts: Text that the edit should leave alone, for its KL; None for `sl.neutral_texts(model)`.
        seed: Of the resamples.
        confidence: Of the intervals.
        batch_size: Rows of tokens per forward pass. Bounds memory, and changes results by rounding only.
        folder: Where to keep finished batches; a killed run continues from there.
        progress: Whether to show progress bars.

    Returns:
        A result whose `table` has one row per step, with the change of the effect on the choosing and on the held-out
        questions; `editor` has the chosen layers.

    Raises:
        InputError: If a held-out question is also one to choose by, `max_layers` is impossible, or the effect is unknown.
        ModelMismatchError: If the editor does not fit the model.

    Example:
        >>> choosing, confirming = questions.split(0.5, seed=0)
        >>> found = sl.select_layers(model, choosing, editor, held_out=confirming, max_layers=2)
        >>> found.table["layers"].map(len).tolist()
        [1, 2]
    """
    check_arguments(select_layers, locals())
    check_asked(model, questions, editor)
    shared = {question.prompt for question in questions} & {question.prompt for question in held_out}
    if shared:
        raise InputError(
            f"{len(shared)} held-out questions are also ones to choose by, such as {min(shared)!r}, and cannot confirm "
            f"anything. {either('Split them first: questions.split(0.5, seed=0).', 'Give questions that differ.')}"
        )
    sites, known = editor.sites, named_effect(effect)
    steps = len(sites) if max_layers is None else max_layers
    if not 1 <= steps <= len(sites):
        raise InputError(f"{setting('max_layers')} must be 1 to {len(sites)}, the editor's layers; got {max_layers}.")
    sign = -1 if (known.less_is_better if less_is_better is None else less_is_better) else 1

    def changes(asked: Questions, sets: Sequence[Sequence[Site]]) -> Float[Tensor, "sets questions"]:
        views = [view_at(editor, chosen) for chosen in [[], *sets]]
        measured = measure(model, asked, views, [known], batch_size=batch_size, folder=folder, progress=progress)
        return measured.values[0, 1:] - measured.values[0, :1]

    path: list[list[Site]] = []
    gains: list[float] = []
    for _ in range(steps):
        so_far = path[-1] if path else []
        candidates = [sorted([*so_far, site]) for site in sites if site not in so_far]
        means = (sign * changes(questions, candidates).mean(1)).tolist()
        best = max(range(len(candidates)), key=means.__getitem__)
        path.append(candidates[best])
        gains.append(means[best])
    stop = next((step for step in range(1, steps) if gains[step] <= gains[step - 1]), steps) - 1
    confirmed = changes(held_out, path)
    low, high = mean_intervals(confirmed.T, seed, confidence)
    named = labelled(editor, path)
    added = [next(iter(set(now) - set(before))) for before, now in zip([(), *named], named, strict=False)]
    meter = DamageMeter.of(model, [question.prompt for question in questions], neutral_texts, batch_size=batch_size)
    table = pd.DataFrame(
        {
            "added": added,
            "layers": named,
            "change": [sign * gain for gain in gains],
            "held_out": confirmed.mean(1).tolist(),
            "held_out_low": low.tolist(),
            "held_out_high": high.tolist(),
            "kl": [cost.kl for cost in meter.measure_all([editor.at_layers(sites) for sites in path])],
            "chosen": [step == stop for step in range(steps)],
        }
    )
    chosen = editor.at_layers(path[stop])
    return LayerSelection(table, chosen, known.name, len(questions), len(held_out), confidence, seed)
