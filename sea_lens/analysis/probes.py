"""Does a linear probe still read the behaviour after the edit, layer by layer: is it gone, or only moved?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.activations import Activations, TokenChoice
from sea_lens.statistics import wilson_interval

MAX_ITERATIONS = 2000
RESOLUTION = 1e-6
"""Coordinates that vary less than this, relative to the layer's typical entry, hold nothing but rounding."""
Fold = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]
Values = Float[np.ndarray, "n d_model"]


@dataclass(frozen=True)
class Probes:
    """What linear probes for positive against negative read off activations, before and after an edit.

    Every row is read by a probe that was trained on other demonstrations. One row a layer; the columns are

    - `accuracy`, `accuracy_low`, `accuracy_high`, `auc`: how well the probe tells positives from negatives. The interval is
      Wilson's at 95 %, with as many trials as groups of demonstrations: the two answers of a demonstration are not
      independent, and counting them once is on the safe side whatever binds them.
    - `margin`: half the distance between the classes' mean decision values, in units of their standard deviation within a
      class (d'/2 of signal detection); negative when the probe reads them the wrong way round.
    - `neutral_positive`: the share of neutral activations that the probe reads as positive.
    - `edited_...`: the same six for the *same* probe on edited activations; the margin keeps the unedited unit. An accuracy
      of 1/2 with a large margin means that the edit moved both classes to one side.
    - `refitted_accuracy`, `refitted_accuracy_low`, `refitted_accuracy_high`, `refitted_auc`: a probe trained and read on
      edited activations. Where it succeeds and the old one fails, what it reads has been moved, not removed.
    - `shuffled_accuracy`, `shuffled_low`, `shuffled_high`: mean, least and greatest accuracy of probes trained and read with
      the two labels of every demonstration exchanged at random: what a probe of this width reads off noise.

    Attributes:
        table: As above. Without edited activations it has no `edited_` and `refitted_` columns, and without shuffles no
            `shuffled_` ones.
        n: Number of demonstrations.
        n_groups: Number of groups that are kept together when split; n unless groups were given.
        n_folds: Number of folds.
        n_shuffles: Number of shuffles.
        regularization: Strength of the probes' L2 penalty.
        seed: Of folds and shuffles.
        editor: Fingerprint of the edited activations' editor, where known.
        site: Where the activations come from.
        token: Which token of a text they belong to.
    """

    table: pd.DataFrame
    n: int
    n_groups: int
    n_folds: int
    n_shuffles: int
    regularization: float
    seed: int
    editor: str | None
    site: str
    token: TokenChoice


def probe_activations(
    activations: Activations,
    edited: Activations | None = None,
    *,
    n_folds: int = 5,
    n_shuffles: int = 5,
    regularization: float = 1.0,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Probes:
    """Trains probes to tell positive from negative on unedited activations, and lets the same probes read edited ones.

    A probe is a logistic regression on standardised activations, one a layer and fold. Folds are split by demonstration, so
    both answers and the neutral one of a demonstration are read by a probe that has seen none of them.

    Args:
        activations: Of the unedited model.
        edited: Of the same demonstrations under an editor: `collect_activations(..., editor=editor)`. Its layers are probed;
            for None, those of `activations`.
        n_folds: Number of folds of the cross-validation.
        n_shuffles: How often the labels are shuffled for the control; 0 for no control.
        regularization: Strength of the L2 penalty on the weights for standardised activations; larger is smoother.
        groups: A label a demonstration; those that share one (a prompt, a topic) stay on one side of every split.
        seed: Of folds and shuffles.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If the two sets of activations do not belong together, there are fewer groups than folds, or an argument
            is out of range.

    Warns:
        SeaLensWarning: If a probe did not converge.
    """
    layers = check_pair(activations, edited)
    if n_shuffles < 0 or not (math.isfinite(regularization) and regularization > 0):
        raise InputError(
            f"n_shuffles must be at least 0 and regularization a finite number above zero; {n_shuffles} and "
            f"{regularization} were given."
        )
    codes = _group_codes(activations.n, groups)
    n_groups = int(codes.max()) + 1
    folds = split_folds(codes, n_folds, seed)
    exchanged = np.random.default_rng(seed).random((n_shuffles, activations.n)) < 0.5
    rows, unconverged = [], []
    for layer in tqdm(layers, desc="probes", unit="layer", disable=not progress):
        run = _LayerProbes(folds, n_groups, 1 / regularization)
        rows.append(
            run.read(_Layer.of(activations, layer), None if edited is None else _Layer.of(edited, layer), exchanged)
        )
        if run.unconverged:
            unconverged.append(layer)
    if unconverged:
        warnings.warn(
            f"Probes of layers {unconverged} did not converge in {MAX_ITERATIONS} iterations. Raise regularization, which is "
            f"{regularization:g}.",
            SeaLensWarning,
            stacklevel=2,
        )
    return Probes(
        pd.DataFrame(rows, index=pd.Index(layers, name="layer")),
        n=activations.n,
        n_groups=n_groups,
        n_folds=n_folds,
        n_shuffles=n_shuffles,
        regularization=regularization,
        seed=seed,
        editor=None if edited is None else edited.editor,
        site=activations.sites[0].name,
        token=activations.token,
    )


def check_pair(activations: Activations, edited: Activations | None) -> list[int]:
    """The layers to compare, after checking that both sets are of the same texts.

    Raises:
        InputError: If they are not, or the first set is an edited one.
    """
    if activations.editor is not None:
        raise InputError(
            f"The first activations must be the unedited model's, and these were collected under {activations.editor}. "
            "Give unedited activations first and edited ones second."
        )
    if edited is None:
        return activations.layers
    for name in ("n", "width", "token", "demonstrations"):
        one, other = getattr(activations, name), getattr(edited, name)
        if one != other and (name != "demonstrations" or None not in (one, other)):
            raise InputError(
                f"Both sets of activations must be of the same texts, and they differ in {name}: {one!r} unedited and "
                f"{other!r} edited. Collect both from the same demonstrations, with and without editor=."
            )
    absent = sorted(set(edited.layers) - set(activations.layers))
    if absent:
        raise InputError(
            f"The edited activations have layers {absent}, which the unedited ones lack; those have {activations.layers}. "
            "Collect the same layers both times."
        )
    return edited.layers


def _group_codes(n: int, groups: Sequence[Hashable] | None) -> Int[np.ndarray, " n"]:
    """Groups as integers from 0 on, in order of appearance."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise InputError(f"groups needs one label a demonstration: there are {n}, and {len(groups)} labels were given.")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups])


def split_folds(groups: Int[np.ndarray, " n"], n_folds: int, seed: int) -> list[Fold]:
    """Demonstrations to train on and to read, fold by fold; a group is never on both sides.

    Raises:
        InputError: If there are fewer than two folds, or fewer groups than folds.
    """
    from sklearn.model_selection import GroupKFold

    n_groups = len(np.unique(groups))
    if not 2 <= n_folds <= n_groups:
        raise InputError(
            f"n_folds must be at least 2 and at most the number of groups of demonstrations; {n_folds} folds were asked for "
            f"and there are {n_groups} groups. Lower n_folds, or give more demonstrations."
        )
    folds = GroupKFold(n_folds, shuffle=True, random_state=seed).split(groups, groups=groups)
    return [(np.asarray(train), np.asarray(test)) for train, test in folds]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's activations in float64."""

    positive: Values
    negative: Values
    neutral: Values

    @classmethod
    def of(cls, activations: Activations, layer: int) -> _Layer:
        return cls(*(activations[role][layer].double().cpu().numpy() for role in ("positive", "negative", "neutral")))

    def exchanged(self, rows: Bool[np.ndarray, " n"]) -> _Layer:
        """With positive and negative exchanged in these rows."""
        swap = rows[:, None]
        return _Layer(
            np.where(swap, self.negative, self.positive), np.where(swap, self.positive, self.negative), self.neutral
        )

    def rows(self, rows: Int[np.ndarray, " m"]) -> _Layer:
        return _Layer(self.positive[rows], self.negative[rows], self.neutral[rows])


@dataclass(frozen=True, eq=False)
class _Decisions:
    """What probes say: above zero is positive."""

    positive: Float[np.ndarray, " n"]
    negative: Float[np.ndarray, " n"]
    neutral: Float[np.ndarray, " n"]

    @property
    def accuracy(self) -> float:
        # A tie is half right: a probe that learned nothing says zero to both answers.
        right = np.concatenate([np.sign(self.positive), -np.sign(self.negative)])
        return float((right + 1).mean() / 2)

    @property
    def auc(self) -> float:
        from sklearn.metrics import roc_auc_score

        labels = np.repeat([1, 0], [len(self.positive), len(self.negative)])
        return float(roc_auc_score(labels, np.concatenate([self.positive, self.negative])))

    @property
    def unit(self) -> float:
        """Standard deviation within a class."""
        return math.sqrt((self.positive.var() + self.negative.var()) / 2)

    def margin(self, unit: float) -> float:
        half = float(self.positive.mean() - self.negative.mean()) / 2
        return half / unit if unit else math.copysign(math.inf, half) if half else 0.0

    @property
    def neutral_positive(self) -> float:
        return float((np.sign(self.neutral) + 1).mean() / 2)


class _LayerProbes:
    """Cross-validated probes of one layer."""

    def __init__(self, folds: Sequence[Fold], n_groups: int, inverse_penalty: float) -> None:
        self.folds = folds
        self.n_groups = n_groups
        self.inverse_penalty = inverse_penalty
        self.unconverged = False

    def read(
        self, unedited: _Layer, edited: _Layer | None, exchanged: Bool[np.ndarray, "n_shuffles n"]
    ) -> dict[str, float]:
        """One row of the table."""
        before, after = self._decisions(unedited, [unedited, edited or unedited])
        row = self._report("", before, before.unit)
        if edited is not None:
            row |= self._report("edited_", after, before.unit)
            (refitted,) = self._decisions(edited, [edited])
            row |= self._accuracy("refitted_", refitted)
        if len(exchanged):
            shuffled = [unedited.exchanged(rows) for rows in exchanged]
            found = [self._decisions(layer, [layer])[0].accuracy for layer in shuffled]
            row |= {
                "shuffled_accuracy": float(np.mean(found)),
                "shuffled_low": min(found),
                "shuffled_high": max(found),
            }
        return row

    def _report(self, prefix: str, decisions: _Decisions, unit: float) -> dict[str, float]:
        return {
            **self._accuracy(prefix, decisions),
            f"{prefix}margin": decisions.margin(unit),
            f"{prefix}neutral_positive": decisions.neutral_positive,
        }

    def _accuracy(self, prefix: str, decisions: _Decisions) -> dict[str, float]:
        low, high = wilson_interval(decisions.accuracy * self.n_groups, self.n_groups)
        return {
            f"{prefix}accuracy": decisions.accuracy,
            f"{prefix}accuracy_low": low,
            f"{prefix}accuracy_high": high,
            f"{prefix}auc": decisions.auc,
        }

    def _decisions(self, trained: _Layer, read: Iterable[_Layer]) -> list[_Decisions]:
        """For each layer to read, the decision on every row by the probe of the fold that left it out."""
        layers = list(read)
        found = [np.zeros((3, len(trained.positive))) for _ in layers]
        for train, test in self.folds:
            weights, bias = self._fit(trained.rows(train))
            for values, layer in zip(found, layers, strict=True):
                part = layer.rows(test)
                for role, activations in enumerate((part.positive, part.negative, part.neutral)):
                    values[role, test] = activations @ weights + bias
        return [_Decisions(*values) for values in found]

    def _fit(self, layer: _Layer) -> tuple[Float[np.ndarray, " d_model"], float]:
        """Weights and bias for activations as they are."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        x = np.concatenate([layer.positive, layer.negative])
        labels = np.repeat([1, 0], len(layer.positive))
        mean, deviation = x.mean(0), x.std(0)
        # Standardising would blow the rounding left of a removed coordinate up to full size, so such ones get no weight.
        held = deviation > RESOLUTION * math.sqrt(np.square(x).mean())
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=held)
        if not held.any():
            return np.zeros_like(mean), 0.0
        probe = LogisticRegression(C=self.inverse_penalty, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told of once, in our words
            probe.fit((x - mean) * scale, labels)
        self.unconverged |= int(probe.n_iter_[0]) >= MAX_ITERATIONS
        weights = probe.coef_[0] * scale
        return weights, float(probe.intercept_[0] - mean @ weights)
