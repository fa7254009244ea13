"""What can be measured of a model's predictions about questions, and the run that measures it under many editors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.cache import Store, name_of
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models import log_probs
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.bridge import EditsModels, Model, weights_digest
from sea_lens.models.predictions import Predictions, QuestionBatch, question_batches

Effect = Callable[[Predictions, Predictions], Float[Tensor, " questions"]]
"""A number for each question out of a model's predictions and those of the unedited model. Any function will do."""


def logit_difference(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Logit of the likeliest first token of a true completion less that of a false one; 0 where they share it."""
    logits = edited.next_token.gather(1, edited.first_tokens)
    return _highest(logits, edited.is_right) - _highest(logits, edited.is_wrong)


def log_probability_difference(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Summed log-probability of the likeliest true completion less that of the likeliest false one, in nats."""
    scores = edited.log_probabilities
    return _highest(scores, edited.is_right) - _highest(scores, edited.is_wrong)


def right_probability(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Probability that the model gives the true completions, together."""
    return edited.log_probabilities.masked_fill(~edited.is_right, -torch.inf).logsumexp(1).exp()


def accuracy(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """1 where a true completion is likelier than every false one, else 0."""
    return (log_probability_difference(edited, unedited) > 0).double()


def top_token(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """1 where the likeliest next token of all begins a true completion, else 0."""
    top = edited.next_token.argmax(1, keepdim=True)
    return ((edited.first_tokens == top) & edited.is_right).any(1).double()


def rank(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Place among all next tokens of the likeliest first token of a true completion; 1 is the top."""
    best = _highest(edited.next_token.gather(1, edited.first_tokens), edited.is_right)
    return 1 + (edited.next_token > best[:, None]).sum(1).double()


def kl(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """KL(unedited || edited) of the next-token distributions after the prompt, in nats."""
    return log_probs.kl(unedited.next_token, edited.next_token)


def total_variation(edited: Predictions, unedited: Predictions) -> Float[Tensor, " questions"]:
    """Half the summed absolute difference of the next-token probabilities: 0 alike, 1 disjoint."""
    return (edited.next_token.exp() - unedited.next_token.exp()).abs().sum(1) / 2


EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {
        effect.__name__: effect
        for effect in (
            logit_difference,
            log_probability_difference,
            right_probability,
            accuracy,
            top_token,
            rank,
            kl,
            total_variation,
        )
    }
)
"""Ours, by name."""
NEED_WRONG = {logit_difference, log_probability_difference, accuracy}


def named_effect(effect: str | Effect) -> tuple[str, Effect]:
    """An effect with its name, given either.

    Raises:
        InputError: If there is none of that name.
    """
    if not isinstance(effect, str):
        return getattr(effect, "__name__", type(effect).__name__), effect
    if effect not in EFFECTS:
        raise InputError(
            f"There is no effect {effect!r}. It is one of {', '.join(EFFECTS)}, or a function of the edited and the "
            "unedited predictions that returns a number a question."
        )
    return effect, EFFECTS[effect]


@dataclass(frozen=True, eq=False)
class Measured:
    """Every effect of every editor on every question.

    Attributes:
        names: Of the effects.
        values: `[effects, editors, questions]`, in float64.
        changed: By editor, whether any logit differed from the unedited model's.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "effects editors questions"]
    changed: tuple[bool, ...]


def measure(
    model: Model,
    questions: Questions,
    editors: Sequence[Editor | None],
    effects: Sequence[str | Effect],
    *,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Measured:
    """Measures effects under many editors; runs that are alike up to a layer share the blocks below it.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: To measure on.
        editors: One a run. The unedited model is run besides, once, as what effects compare with.
        effects: Names or functions.
        batch_size: Questions in one forward pass. It does not change the result, but for rounding.
        folder: Where to keep finished batches, each measurement in a folder of its own. A run that was killed goes on from
            there. An effect of your own is known by its name there, so it needs one: no lambda.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If an effect is unknown or compares with false completions where a question has none, the model predicts
            NaN, or a function does not return one finite number a question.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes no logit.
    """
    named = [named_effect(effect) for effect in effects]
    if not named or len(dict(named)) < len(named):
        raise InputError(
            f"Effects need names of their own, and at least one is needed; {[n for n, _ in named]} were given."
        )
    bare = [index for index, question in enumerate(questions) if not question.wrong]
    if bare and any(function in NEED_WRONG for _, function in named):
        raise InputError(
            f"Questions {bare[:10]} have no false completion to compare with. Give each one, or drop them."
        )
    runs = BranchingRuns(model, [None, *editors])
    values = torch.full((len(named), len(editors), len(questions)), torch.nan, dtype=torch.float64)
    changed = torch.zeros(len(editors), dtype=torch.bool)
    batches = question_batches(model, questions, batch_size)
    store = None
    if folder is not None:
        facts = {
            "weights": weights_digest(model),
            "questions": questions.fingerprint,
            "editors": [None if editor is None else editor.fingerprint for editor in editors],
            "effects": [name if EFFECTS.get(name) is function else name_of(function) for name, function in named],
            "batch_size": batch_size,
        }
        store = Store.within(folder, "measurement", facts)
    total = len(questions) * (len(editors) + 1)
    with tqdm(total=total, desc="effects", unit="question", disable=not progress) as bar:
        for number, batch in enumerate(batches):
            kept = store.read(number) if store is not None else None
            if kept is None:
                kept = {"effects": _measure_batch(runs, batch, named)}
                if store is not None:
                    store.write(number, kept)
            found = kept["effects"]
            values[:, :, batch.indices], changed = found[:-1], changed | found[-1].any(1)
            bar.update(len(batch.indices) * (len(editors) + 1))
    for editor, did in zip(editors, changed.tolist(), strict=True):
        if editor is not None and not did and not editor.is_identity:
            warnings.warn(
                f"The edit at layers {editor.layers} changed no logit on these {len(questions)} questions. Do its "
                "positions lie beyond the prompts, or does it move activations by less than the model's precision?",
                SeaLensWarning,
                stacklevel=3,
            )
    return Measured(tuple(name for name, _ in named), values, tuple(changed.tolist()))


@torch.no_grad()
def _measure_batch(
    runs: BranchingRuns, batch: QuestionBatch, named: Sequence[tuple[str, Effect]]
) -> Float[Tensor, "effects_and_changed editors questions"]:
    """The effects of every editor but the first, which is the unedited model; and, last, whether it changed any logit."""
    found = torch.zeros(len(named) + 1, len(runs.editors) - 1, len(batch.indices), dtype=torch.float64)
    plain: Tensor | None = None
    for number, logits in runs.logits(batch.tokens, batch.where):
        predictions = batch.predictions(logits)
        _check_predictions(predictions, batch.indices, runs.editors[number])
        if plain is None:
            plain, unedited = logits, predictions
            continue
        found[-1, number - 1] = not torch.equal(logits, plain)
        for row, (name, function) in enumerate(named):
            found[row, number - 1] = _checked(name, function(predictions, unedited), batch.indices)
    return found


def _check_predictions(predictions: Predictions, indices: Sequence[int], editor: EditsModels | None) -> None:
    """Refuses NaN, which comparisons take for a number: nothing would be likelier than a true answer of rank 1."""
    nan = predictions.next_token.isnan().any(1) | predictions.log_probabilities.isnan().any(1)
    bad = sorted(index for index, is_bad in zip(indices, nan.tolist(), strict=True) if is_bad)
    if bad:
        under = "unedited" if editor is None else f"edited at layers {editor.layers}"
        raise InputError(
            f"The model, {under}, predicts NaN on questions {bad[:10]}. Activations overflow: scale the editor down, or run "
            "the model in float32."
        )


def _checked(name: str, found: object, indices: Sequence[int]) -> Tensor:
    if not isinstance(found, Tensor) or tuple(found.shape) != (len(indices),):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"The effect {name} must return one number a question, [{len(indices)}], and it returned {shape}."
        )
    bad = [index for index, good in zip(indices, found.double().isfinite().tolist(), strict=True) if not good]
    if bad:
        raise InputError(f"The effect {name} is NaN or infinite on questions {sorted(bad)[:10]}. Look at those.")
    return found.detach().double().cpu()


def _highest(scores: Float[Tensor, "questions completions"], among: Tensor) -> Float[Tensor, " questions"]:
    return scores.masked_fill(~among, -torch.inf).amax(1)
