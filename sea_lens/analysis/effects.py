"""What an edit does to a model's predictions: effects, their changes, intervals, tests and controls.

A new effect is one function under `@register_effect`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.analysis.measurements import Effect, EffectFunction, check_asked, measure
from sea_lens.arguments import check_arguments
from sea_lens.data.questions import Questions
from sea_lens.editing.controls import control_editors
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models import distributions
from sea_lens.models.bridge import Model
from sea_lens.models.damage import Damage, DamageMeter
from sea_lens.models.predictions import Predictions
from sea_lens.results import Result
from sea_lens.statistics import beats_controls_p_value, disagreements, mean_intervals, sign_flip_p_values

EFFECTS: dict[str, Effect] = {}
"""Registered effects by name."""


def register_effect(
    *,
    less_is_better: bool = False,
    needs_wrong: bool = False,
    is_distance: bool = False,
    is_share: bool = False,
    is_sum: bool = False,
) -> Callable[[EffectFunction], EffectFunction]:
    """Registers a function of the edited and the unedited `Predictions` as an effect, under its own name.

    Args:
        less_is_better: Whether smaller values are better.
        needs_wrong: Whether it compares with wrong answers.
        is_distance: Whether it is a distance from the unedited model, which has no p-value: see `Effect`.
        is_share: Whether it is 0 or 1 on every question.
        is_sum: Whether it compares sums over the tokens of answers, which is warned of where their lengths differ.

    Returns:
        A decorator, which registers the function and gives it back.

    Raises:
        InputError: If another effect has that name.

    Example:
        >>> @sl.register_effect(less_is_better=True)
        ... def entropy(edited, unedited):
        ...     return -(edited.next_token.exp() * edited.next_token).sum(1)
        >>> sl.measure_effects(model, questions, editor, effects=["entropy"], control=0).table.index.tolist()
        ['entropy']
    """
    check_arguments(register_effect, locals())

    def register(function: EffectFunction) -> EffectFunction:
        name = getattr(function, "__name__", "<")
        if not callable(function) or "<" in name:
            raise InputError(
                f"An effect is a function with a name of its own (by def), and {function!r:.80} was given."
            )
        if name in EFFECTS:
            raise InputError(f"There is an effect {name!r} already. Give the function another name.")
        EFFECTS[name] = Effect(name, function, less_is_better, needs_wrong, is_distance, is_share, is_sum)
        return function

    return register


def named_effect(effect: str | EffectFunction) -> Effect:
    """A registered effect by its name or function; any other function as an effect with default properties.

    Raises:
        InputError: If the name is unknown.
    """
    if isinstance(effect, str):
        if effect not in EFFECTS:
            raise InputError(
                f"Unknown effect {effect!r}. Choose among {', '.join(EFFECTS)}, or give a function of the edited and the "
                "unedited predictions that returns one number per question."
            )
        return EFFECTS[effect]
    name = getattr(effect, "__name__", type(effect).__name__)
    try:
        inspect.signature(effect).bind(None, None)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"An effect takes the edited and the unedited predictions, and {name} does not: {error}."
        ) from error
    known = EFFECTS.get(name)
    return known if known is not None and known.function is effect else Effect(name, effect, is_share=None)


@register_effect(needs_wrong=True)
def logit_difference(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Logit of the likeliest first token of a right answer minus that of a wrong one; 0 where they share it."""
    logits = edited.next_token.gather(1, edited.first_tokens)
    return _highest(logits, edited.is_right) - _highest(logits, edited.is_wrong)


@register_effect(needs_wrong=True, is_sum=True)
def log_probability_difference(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Summed log-probability of the likeliest right answer minus that of the likeliest wrong one, in nats."""
    scores = edited.log_probabilities
    return _highest(scores, edited.is_right) - _highest(scores, edited.is_wrong)


@register_effect(needs_wrong=True)
def mean_log_probability_difference(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Log-probability per token of the likeliest right answer minus that of the likeliest wrong one, in nats per token."""
    scores = edited.log_probabilities / edited.n_tokens.clamp(min=1)
    return _highest(scores, edited.is_right) - _highest(scores, edited.is_wrong)


@register_effect()
def right_probability(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Probability of the right answers, together."""
    return edited.log_probabilities.masked_fill(~edited.is_right, -torch.inf).logsumexp(1).exp()


@register_effect(needs_wrong=True, is_share=True, is_sum=True)
def accuracy(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """1 where a right answer is likelier than every wrong one, else 0."""
    return (log_probability_difference(edited, unedited) > 0).double()


@register_effect(is_share=True)
def top_token(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """1 where the likeliest next token begins a right answer, else 0."""
    top = edited.next_token.argmax(1, keepdim=True)
    return ((edited.first_tokens == top) & edited.is_right).any(1).double()


@register_effect(less_is_better=True)
def rank(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Place of the likeliest first token of a right answer among all next tokens; 1 is the top."""
    best = _highest(edited.next_token.gather(1, edited.first_tokens), edited.is_right)
    return 1 + (edited.next_token > best[:, None]).sum(1).double()


@register_effect(less_is_better=True, is_distance=True)
def answer_kl(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """KL(unedited || edited) of the next-token distributions after the prompt, where the answer begins, in nats."""
    return distributions.kl(unedited.next_token, edited.next_token)


@register_effect(less_is_better=True, is_distance=True)
def total_variation(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Half the summed absolute difference of the next-token probabilities: 0 alike, 1 disjoint."""
    return (edited.next_token.exp() - unedited.next_token.exp()).abs().sum(1) / 2


def _highest(scores: Float[Tensor, "questions answers"], among: Tensor) -> Float[Tensor, " questions"]:
    return scores.masked_fill(~among, -torch.inf).amax(1)


@dataclass(frozen=True, eq=False, repr=False)
class Effects(Result):
    """What an editor changes, effect by effect.

    Attributes:
        table: One row per effect: the means `unedited` and `edited` over questions; their difference `change` with its
            interval `low` to `high` (percentile bootstrap over questions; of fewer than 30, Student's t, or Bonett and
            Price's for an effect that is 0 or 1); and `p_value`, of a paired sign-flip test of no change on average.
            Interval and test are different methods, and near the border they can disagree: then there is a column `note` that
            says so. A distance from the unedited
            model (`answer_kl`, `total_variation`) cannot fall, so it has no p-value: compare it with controls. With controls
            also their mean change `control`, `control_low` and `control_high` (the least and the greatest of them), and
            `control_p_value`: how often a control changes as much, at least 1 / (n_controls + 1). P-values are not
            corrected for the number of effects.
        flips: One row per effect that is 0 or 1 everywhere: how many questions `gained` it and how many `lost` it.
        per_question: One row per question: prompt, category and every effect, unedited and edited.
        n: Number of questions.
        n_controls: Number of control editors.
        confidence: Of the intervals.
        seed: Of resamples, signs and controls.
        damage: What the edit costs on the prompts and on neutral text; None if it was not measured.

    Example:
        >>> effects = sl.measure_effects(model, questions, editor, effects=["top_token"], control=0)
        >>> effects.flips.loc["top_token"].to_dict()
        {'gained': 10, 'lost': 0}
    """

    table: pd.DataFrame
    flips: pd.DataFrame
    per_question: pd.DataFrame
    n: int
    n_controls: int
    confidence: float
    seed: int
    damage: Damage | None = None

    def _below(self) -> str:
        return "" if self.damage is None else f"Damage: {self.damage.summary}"


def measure_effects(
    model: Model,
    questions: Questions,
    editor: Editor,
    *,
    effects: Sequence[str | EffectFunction] | None = None,
    control: int | Sequence[Editor] = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Effects:
    """Measures what an editor does to a model's predictions about questions, beside controls and what it costs.

    Memory is bounded by tokens: a pass has `batch_size` rows, and only positions that are scored get logits, 2^25 of them at
    once (128 MiB in float32).

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: What to measure on: questions that neither the fit nor the choice of settings has seen.
        editor: The editor.
        effects: Names of registered effects, or functions of the edited and the unedited `Predictions` that return one
            number per question. None for all registered ones: `logit_difference`, `log_probability_difference`,
            `mean_log_probability_difference` (per token), `right_probability`, `accuracy`, `top_token`, `rank`, `answer_kl`,
            `total_variation` and your own.
        control: How many norm-matched random editors to compare with (`random_editor_like`), or editors of your own, such
            as refits on `activations.shuffled(seed)`. 0 is none. With n of them `control_p_value` is at least 1 / (n + 1).
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the prompts and on neutral text.
        seed: Of resamples, signs and random editors.
        confidence: Of the intervals.
        batch_size: Rows of tokens per forward pass. Bounds memory, and changes results by rounding only.
        folder: Where to keep finished batches; a killed run continues from there.
        progress: Whether to show a progress bar.

    Returns:
        A result whose `table` has one row per effect, with its means without and with the edit, the change with its
        interval, and controls. `per_question` has every question, `damage` what the edit costs.

    Raises:
        InputError: If an effect is unknown, or compares with wrong answers where a question has none.
        ModelMismatchError: If the editor does not fit the model.

    Warns:
        BrokenModelWarning: If the edit breaks the model.
        SeaLensWarning: If the edit changes no logit, or sums over the tokens of answers of unlike lengths are compared.

    Example:
        >>> effects = sl.measure_effects(model, questions, editor, effects=["top_token"], control=19)
        >>> effects.table.loc["top_token", ["unedited", "edited", "control_p_value"]].tolist()
        [0.45, 0.95, 0.05]
    """
    check_arguments(measure_effects, locals())
    check_asked(model, questions, editor)
    known = list(EFFECTS.values()) if effects is None else [named_effect(effect) for effect in effects]
    controls = control_editors(editor, control, seed)
    editors = [None, editor, *controls]
    measured = measure(model, questions, editors, known, batch_size=batch_size, folder=folder, progress=progress)
    plain, edited = measured.values[:, 0], measured.values[:, 1]
    changes = edited - plain
    shares = [effect.is_share_of(values) for effect, values in zip(known, measured.values[:, :2], strict=True)]
    rows = {"unedited": plain.mean(1), "edited": edited.mean(1)}
    rows |= change_columns(changes, shares, [effect.is_distance for effect in known], seed, confidence)
    if controls:
        rows |= control_columns(rows["change"], (measured.values[:, 2:] - plain[:, None]).mean(2))
    names = [effect.name for effect in known]
    table = noted(
        pd.DataFrame({name: values.tolist() for name, values in rows.items()}, index=names), len(questions), confidence
    )
    cost = damage_of(model, questions, editor, neutral_texts, batch_size) if damage else None
    columns: dict[str, list[object]] = {
        "prompt": [question.prompt for question in questions],
        "category": [question.category for question in questions],
    }
    for name, before, after in zip(names, plain.tolist(), edited.tolist(), strict=True):
        columns |= {f"{name} unedited": before, f"{name} edited": after}
    return Effects(
        table.rename_axis("effect"),
        _flips([name for name, is_share in zip(names, shares, strict=True) if is_share], changes[shares]),
        pd.DataFrame(columns).rename_axis("question"),
        len(questions),
        len(controls),
        confidence,
        seed,
        cost,
    )


def damage_of(
    model: Model, questions: Questions, editor: Editor, neutral_texts: Sequence[str] | None, batch_size: int
) -> Damage:
    """What an edit costs on the questions' prompts and on neutral text, for the caller of the function that asks.

    Warns:
        BrokenModelWarning: If it breaks the model.
    """
    prompts = [question.prompt for question in questions]
    found = DamageMeter.of(model, prompts, neutral_texts, batch_size=batch_size).measure(editor)
    found.warn(stacklevel=3)
    return found


def noted(table: pd.DataFrame, n: int, confidence: float) -> pd.DataFrame:
    """With a column `note` if an interval and a p-value of one row disagree."""
    notes = disagreements(table["low"].tolist(), table["high"].tolist(), table["p_value"].tolist(), n, confidence)
    return table.assign(note=notes) if any(notes) else table


def change_columns(
    changes: Float[Tensor, "rows questions"],
    shares: Sequence[bool],
    distances: Sequence[bool],
    seed: int,
    confidence: float,
) -> dict[str, Float[Tensor, " rows"]]:
    """What a table says of changes: means, intervals, and p-values of those that are no distances."""
    low, high = mean_intervals(changes.T, seed, confidence, shares=shares)
    p_values = sign_flip_p_values(changes.T, seed).masked_fill(torch.tensor(distances), torch.nan)
    return {"change": changes.mean(1), "low": low, "high": high, "p_value": p_values}


def control_columns(
    changes: Float[Tensor, " rows"], others: Float[Tensor, "rows controls"]
) -> dict[str, Float[Tensor, " rows"]]:
    """What a table says of controls, from the mean changes of the editor and of its controls."""
    pairs = zip(changes.tolist(), others.tolist(), strict=True)
    return {
        "control": others.mean(1),
        "control_low": others.amin(1),
        "control_high": others.amax(1),
        "control_p_value": torch.tensor([beats_controls_p_value(*pair) for pair in pairs], dtype=torch.float64),
    }


def _flips(names: Sequence[str], changes: Float[Tensor, "effects questions"]) -> pd.DataFrame:
    counts = {"gained": (changes == 1).sum(1).tolist(), "lost": (changes == -1).sum(1).tolist()}
    return pd.DataFrame(counts, index=list(names)).rename_axis("effect")
