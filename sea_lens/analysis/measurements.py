"""Effects of many editors on a model's predictions about questions, measured in one run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.cache import Store, name_of
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.answers import warn_of_lengths
from sea_lens.models.branching import BranchingRuns, Unembedding
from sea_lens.models.bridge import EditsModels, Model, check_is_model, weights_digest
from sea_lens.models.distributed import shows
from sea_lens.models.predictions import Predictions, QuestionBatch, mean_lengths, question_batches
from sea_lens.models.sites import labels_of

EffectFunction = Callable[[Predictions, Predictions], Float[Tensor, " questions"]]
"""One number per question from a model's predictions and those of the unedited model."""


@dataclass(frozen=True)
class Effect:
    """Something to measure of a model's predictions.

    Attributes:
        name: Its name.
        function: Computes it, in any unit.
        less_is_better: Whether smaller values are better.
        needs_wrong: Whether it compares with wrong answers, so that every question needs one.
        is_distance: Whether it is a distance from the unedited model: 0 without an edit and never below. A test whether its
            change is zero on average says nothing, so it has no p-value.
        is_share: Whether it is 0 or 1 on every question; None where its values must tell.
        is_sum: Whether it compares sums over the tokens of answers, so that their lengths should be alike.
    """

    name: str
    function: EffectFunction
    less_is_better: bool = False
    needs_wrong: bool = False
    is_distance: bool = False
    is_share: bool | None = False
    is_sum: bool = False

    def is_share_of(self, values: Float[Tensor, "*_"]) -> bool:
        """Whether these values of it are shares."""
        return bool(((values == 0) | (values == 1)).all()) if self.is_share is None else self.is_share


@dataclass(frozen=True, eq=False)
class Measured:
    """Every effect of every editor on every question.

    Attributes:
        values: `[effects, editors, questions]`, in float64.
        changed: Per editor, whether any logit differs from the unedited model's.
    """

    values: Float[Tensor, "effects editors questions"]
    changed: tuple[bool, ...]


def check_asked(model: object, questions: object, editor: object) -> None:
    """Refuses arguments that are not a model, questions and an editor, in this order.

    Raises:
        ModelMismatchError: If the model is no TransformerBridge.
        InputError: If one of the others is something else.
    """
    check_is_model(model)
    if not isinstance(questions, Questions) or not isinstance(editor, Editor):
        raise InputError(
            f"The order is (model, questions, editor), and a {type(questions).__name__} and a {type(editor).__name__} "
            "were given as questions and editor."
        )


def measure(
    model: Model,
    questions: Questions,
    editors: Sequence[Editor | None],
    effects: Sequence[Effect],
    *,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Measured:
    """Measures effects under many editors. Runs that are alike up to a layer share the blocks below it.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: What to measure on.
        editors: One per run. The unedited model runs once more, as what effects compare with.
        effects: What to measure.
        batch_size: Rows of tokens per forward pass. Bounds memory, and changes results by rounding only.
        folder: Where to keep finished batches, each measurement in a folder of its own; a killed run continues from there.
            Effects are told apart by their functions' importable names.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If effects share a name, one needs wrong answers where a question has none, the model predicts NaN, or a
            function does not return one finite number per question.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes no logit, or an effect compares sums over the tokens of
            answers of unlike lengths.
    """
    _check_effects(effects, questions)
    runs = BranchingRuns(model, [None, *editors])
    values = torch.full((len(effects), len(editors), len(questions)), torch.nan, dtype=torch.float64)
    changed = torch.zeros(len(editors), dtype=torch.bool)
    batches = question_batches(model, questions, batch_size, runs.editors)
    sums = [effect.name for effect in effects if effect.is_sum]
    if sums:
        told = f"A sum over tokens, as in {' and '.join(sums)},"
        warn_of_lengths(*mean_lengths(batches), told, "mean_log_probability_difference", stacklevel=3)
    store = None
    if folder is not None:
        facts = {
            "weights": weights_digest(model),
            "questions": questions.fingerprint,
            "editors": [None if editor is None else editor.fingerprint for editor in editors],
            "effects": [name_of(effect.function) for effect in effects],
            "batch_size": batch_size,
            "batches": [[batch.indices, len(batch.tokens.ids)] for batch in batches],
        }
        store = Store.within(folder, "measurement", facts)
    total = len(questions) * (len(editors) + 1)
    named = f"effects of {len(editors)} settings, {batch_size} rows at once"
    with tqdm(total=total, desc=named, unit="question", disable=not shows(progress)) as bar:
        for number, batch in enumerate(batches):
            kept = None if store is None else store.read(number)
            if kept is None:
                kept = {"effects": _measure_batch(runs, batch, effects, bar)}
                if store is not None:
                    store.write(number, kept)
            else:
                bar.update(len(batch.indices) * (len(editors) + 1))
            found = kept["effects"]
            values[:, :, batch.indices], changed = found[:-1], changed | found[-1].any(1)
    for editor, did in zip(editors, changed.tolist(), strict=True):
        if editor is not None and not did and not editor.is_identity:
            warnings.warn(
                f"The edit at {_places(editor)} changes no logit on these {len(questions)} questions. Check whether its "
                "positions lie beyond the prompts, or whether it moves activations by less than the model's precision.",
                SeaLensWarning,
                stacklevel=3,
            )
    return Measured(values, tuple(changed.tolist()))


def _check_effects(effects: Sequence[Effect], questions: Questions) -> None:
    names = [effect.name for effect in effects]
    if not names or len(set(names)) < len(names):
        raise InputError(f"Give at least one effect, each with its own name; the names are {names}.")
    bare = [index for index, question in enumerate(questions) if not question.wrong]
    needing = [effect.name for effect in effects if effect.needs_wrong]
    if bare and needing:
        raise InputError(
            f"{needing[0]} compares with wrong answers, and questions {bare[:10]} have none. Give each one, or drop them."
        )


@torch.no_grad()
def _measure_batch(
    runs: BranchingRuns, batch: QuestionBatch, effects: Sequence[Effect], bar: tqdm[Any]
) -> Float[Tensor, "effects_and_changed editors questions"]:
    """The effects of every editor but the first, which is the unedited model; and, last, whether it changed any logit."""
    found = torch.zeros(len(effects) + 1, len(runs.editors) - 1, len(batch.indices), dtype=torch.float64)
    plain: Tensor | None = None
    for number, states in runs.states(batch.tokens, batch.where):
        unembedding = runs.unembedding(number)
        predictions = batch.predictions(states, unembedding)
        _check_predictions(predictions, batch.indices, runs.editors[number])
        bar.update(len(batch.indices))
        if plain is None:
            plain, unedited = states, predictions
            continue
        found[-1, number - 1] = not (
            torch.equal(predictions.log_probabilities, unedited.log_probabilities)
            and _same_logits((unembedding, states), (runs.unembedding(0), plain))
        )
        for row, effect in enumerate(effects):
            found[row, number - 1] = _checked(effect.name, effect.function(predictions, unedited), batch.indices)
    return found


def _same_logits(one: tuple[Unembedding, Tensor], other: tuple[Unembedding, Tensor]) -> bool:
    """Whether all logits are equal, which they are where nothing acts on them and what they are made of is equal."""
    if not (one[0].hooks or other[0].hooks) and torch.equal(one[1], other[1]):
        return True
    pairs = zip(one[0].parts(one[1]), other[0].parts(other[1]), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def _check_predictions(predictions: Predictions, indices: Sequence[int], editor: EditsModels | None) -> None:
    """Refuses NaN, which compares as if it were a number: nothing would be likelier than a right answer of rank 1."""
    # A NaN among a position's logits makes all of its log-probabilities NaN, and every position that is read scores a token.
    nan = predictions.log_probabilities.isnan().any(1)
    bad = sorted(index for index, is_bad in zip(indices, nan.tolist(), strict=True) if is_bad)
    if bad:
        under = "unedited" if editor is None else f"edited at {_places(editor)}"
        raise InputError(
            f"The model, {under}, predicts NaN on questions {bad[:10]}. Activations overflow: scale the editor down, or run "
            "the model in float32."
        )


def _checked(name: str, found: object, indices: Sequence[int]) -> Tensor:
    if not isinstance(found, Tensor) or tuple(found.shape) != (len(indices),):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"The effect {name} must return one number per question, [{len(indices)}]; it returns {shape}."
        )
    bad = [index for index, good in zip(indices, found.double().isfinite().tolist(), strict=True) if not good]
    if bad:
        raise InputError(
            f"The effect {name} is NaN or infinite on questions {sorted(bad)[:10]}. Look at those questions."
        )
    return found.detach().double().cpu()


def _places(editor: EditsModels) -> str:
    return ", ".join(
        str(label) if isinstance(label, str) else f"layer {label}" for label in labels_of(list(editor.edits))
    )
