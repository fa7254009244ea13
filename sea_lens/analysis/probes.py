"""Does a linear probe still read the behavior after the edit, layer by layer: is it gone, or only moved?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.activations import Activations, TokenChoice
from sea_lens.models.distributed import shows
from sea_lens.models.sites import Site, labels_of
from sea_lens.results import Result
from sea_lens.statistics import wilson_interval
from sea_lens.wording import setting

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MAX_ITERATIONS = 2000
RESOLUTION = 1e-6
"""Coordinates that vary less than this, relative to the layer's typical entry, hold nothing but rounding."""
Fold = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]
ByRole = Mapping[str, Float[np.ndarray, "n width"]]
"""Activations of each role."""
Decisions = dict[str, Float[np.ndarray, " n"]]
"""Decision values of each role; above 0 is positive."""


@dataclass(frozen=True, eq=False, repr=False)
class Probes(Result):
    """What linear probes for positive against negative read off activations, before and after an edit.

    Every row is read by a probe that was trained on other demonstrations.

    Attributes:
        table: One row per layer (per site, where sites of several names were collected), with these columns:

            - `accuracy`, `accuracy_low`, `accuracy_high`, `auc`: how well the probe tells positives from negatives. The
              interval is Wilson's at 95 %, with as many trials as groups of demonstrations: the two answers of a
              demonstration are not independent, and counting them once is on the safe side.
            - `margin`: half the distance between the classes' mean decision values, in units of their standard deviation
              within a class (d'/2 of signal detection); negative when the probe reads them the wrong way round.
            - `neutral_positive`: the share of neutral activations, where there are any, that the probe reads as positive.
            - `edited_...`: the same six for the *same* probe on edited activations; the margin keeps the unedited unit. An
              accuracy of 1/2 with a large margin means that the edit moved both classes to one side.
            - `refitted_accuracy`, `refitted_accuracy_low`, `refitted_accuracy_high`, `refitted_auc`: a probe trained and
              read on edited activations. Where it succeeds and the old one fails, what it reads has been moved, not removed.
            - `shuffled_accuracy`, `shuffled_low`, `shuffled_high`: mean, least and greatest accuracy of probes trained and
              read with the two labels of every demonstration exchanged at random: the control, what a probe of this width
              reads off noise.

            Without edited activations there are no `edited_` and `refitted_` columns, without shuffles no `shuffled_` ones.
        n: Number of demonstrations.
        n_groups: Number of groups that are kept together when split; n unless groups were given.
        n_folds: Number of folds.
        n_shuffles: Number of shuffles.
        regularization: Strength of the probes' L2 penalty.
        seed: Of folds and shuffles.
        editor: Fingerprint of the edited activations' editor, where known.
        site: The name of the hook points that the activations come from.
        token: Which token of a text they belong to.

    Example:
        >>> probes = sl.probe_activations(activations.at_sites([1]), n_shuffles=1)
        >>> probes.n, probes.site
        (120, 'resid_post')
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
    shown: ClassVar[tuple[str, ...]] = (
        *("accuracy", "accuracy_low", "accuracy_high", "margin", "edited_accuracy", "edited_accuracy_low"),
        *(
            "edited_accuracy_high",
            "edited_margin",
            "refitted_accuracy",
            "refitted_accuracy_low",
            "refitted_accuracy_high",
        ),
        "shuffled_accuracy",
    )


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

    A probe is a logistic regression on standardized activations, one per layer and fold. Folds are split by demonstration,
    so both answers and the neutral one of a demonstration are read by a probe that has seen none of them.

    Args:
        activations: Of the unedited model.
        edited: Of the same demonstrations under an editor: `collect_activations(..., editor=editor)`. Its layers are probed;
            for None, those of `activations`.
        n_folds: Number of folds of the cross-validation.
        n_shuffles: How often the labels are shuffled for the control; 0 for no control.
        regularization: Strength of the L2 penalty on the weights for standardized activations; larger is smoother.
        groups: A label per demonstration; those that share one (a prompt, a topic) stay on one side of every split.
        seed: Of folds and shuffles.
        progress: Whether to show a progress bar.

    Returns:
        A result whose `table` has one row per site, with accuracies and AUCs before and after the edit, with intervals.

    Raises:
        InputError: If the two sets of activations do not belong together, there are fewer groups than folds, or an argument
            is out of range.

    Warns:
        SeaLensWarning: If a probe did not converge.

    Example:
        >>> probes = sl.probe_activations(activations.at_sites([1]), n_shuffles=1)
        >>> (probes.table["accuracy"] > probes.table["shuffled_accuracy"]).tolist()
        [True]
    """
    check_arguments(probe_activations, locals())
    check_pair(activations, edited)
    sites = (edited or activations).sites
    labels = labels_of(sites)
    if n_shuffles < 0 or not (math.isfinite(regularization) and regularization > 0):
        raise InputError(
            f"{setting('n_shuffles')} must be at least 0 and {setting('regularization')} a finite number above zero; got "
            f"{n_shuffles} and {regularization}."
        )
    codes = _group_codes(activations.n, groups)
    n_groups = int(codes.max()) + 1
    folds = split_folds(codes, n_folds, seed)
    exchanged = np.random.default_rng(seed).random((n_shuffles, activations.n)) < 0.5
    rows, unconverged = [], []
    for site, label in zip(tqdm(sites, desc="probes", unit="site", disable=not shows(progress)), labels, strict=True):
        run = _SiteProbes(folds, n_groups, 1 / regularization)
        rows.append(run.read(_arrays(activations, site), None if edited is None else _arrays(edited, site), exchanged))
        if run.unconverged:
            unconverged.append(label)
    if unconverged:
        warnings.warn(
            f"Probes of layers {unconverged} did not converge in {MAX_ITERATIONS} iterations. Raise regularization above "
            f"{regularization:g}.",
            SeaLensWarning,
            stacklevel=2,
        )
    return Probes(
        pd.DataFrame(rows, index=pd.Index(labels, name="layer")),
        n=activations.n,
        n_groups=n_groups,
        n_folds=n_folds,
        n_shuffles=n_shuffles,
        regularization=regularization,
        seed=seed,
        editor=None if edited is None else edited.editor,
        site=", ".join(dict.fromkeys(site.name for site in sites)),
        token=activations.token,
    )


def check_pair(activations: Activations, edited: Activations | None) -> None:
    """Checks that unedited and edited activations are of the same texts.

    Raises:
        InputError: If they are not, or the first set is an edited one.
    """
    if activations.editor is not None:
        raise InputError(
            f"The first activations must be the unedited model's, and these were collected under {activations.editor}. "
            "Give unedited activations first and edited ones second."
        )
    if edited is None:
        return
    for name in ("n", "roles", "token", "demonstrations"):
        one, other = getattr(activations, name), getattr(edited, name)
        if one != other and (name != "demonstrations" or None not in (one, other)):
            raise InputError(
                f"Both sets of activations must be of the same texts, and they differ in {name}: {one!r} unedited and "
                f"{other!r} edited. Collect both from the same demonstrations, with and without editor=."
            )
    absent = [str(site) for site in edited.sites if site not in activations.sites]
    if absent:
        raise InputError(
            f"The edited activations have {', '.join(absent)}, which the unedited ones lack; those have "
            f"{', '.join(map(str, activations.sites))}. Collect the same sites both times."
        )
    for site in edited.sites:
        widths = [each["positive"][site].shape[1] for each in (activations, edited)]
        if widths[0] != widths[1]:
            raise InputError(
                f"Activations of {site} are {widths[0]} wide unedited and {widths[1]} edited. Collect both from one model."
            )


def _group_codes(n: int, groups: Sequence[Hashable] | None) -> Int[np.ndarray, " n"]:
    """Groups as integers from 0 on, in order of appearance."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise InputError(
            f"groups needs one label per demonstration: there are {n}, and {len(groups)} labels were given."
        )
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
            f"{setting('n_folds')} must be at least 2 and at most the number of groups of demonstrations, {n_groups}; got "
            f"{n_folds}. Lower it, or give more demonstrations."
        )
    folds = GroupKFold(n_folds, shuffle=True, random_state=seed).split(groups, groups=groups)
    return [(np.asarray(train), np.asarray(test)) for train, test in folds]


def _arrays(activations: Activations, site: Site) -> ByRole:
    """One site's activations in float64."""
    return {role: activations[role][site].double().cpu().numpy() for role in activations.roles}


def _exchanged(layer: ByRole, rows: Bool[np.ndarray, " n"]) -> ByRole:
    """With positive and negative exchanged in these rows."""
    swap = rows[:, None]
    sides = layer["positive"], layer["negative"]
    return {**layer, "positive": np.where(swap, *sides[::-1]), "negative": np.where(swap, *sides)}


class _SiteProbes:
    """Cross-validated probes of one site."""

    def __init__(self, folds: Sequence[Fold], n_groups: int, inverse_penalty: float) -> None:
        self.folds = folds
        self.n_groups = n_groups
        self.inverse_penalty = inverse_penalty
        self.unconverged = False

    def read(
        self, unedited: ByRole, edited: ByRole | None, exchanged: Bool[np.ndarray, "n_shuffles n"]
    ) -> dict[str, float]:
        """One row of the table."""
        before, after = self._decisions(unedited, [unedited, edited or unedited])
        unit = math.sqrt((before["positive"].var() + before["negative"].var()) / 2)
        row = self._report("", before, unit)
        if edited is not None:
            row |= self._report("edited_", after, unit)
            row |= self._accuracy("refitted_", self._decisions(edited, [edited])[0])
        if len(exchanged):
            shuffled = [_exchanged(unedited, rows) for rows in exchanged]
            found = [_accuracy(self._decisions(layer, [layer])[0]) for layer in shuffled]
            row |= {
                "shuffled_accuracy": float(np.mean(found)),
                "shuffled_low": min(found),
                "shuffled_high": max(found),
            }
        return row

    def _report(self, prefix: str, decisions: Decisions, unit: float) -> dict[str, float]:
        half = float(decisions["positive"].mean() - decisions["negative"].mean()) / 2
        found = self._accuracy(prefix, decisions)
        found[f"{prefix}margin"] = half / unit if unit else math.copysign(math.inf, half) if half else 0.0
        if "neutral" in decisions:
            found[f"{prefix}neutral_positive"] = float((np.sign(decisions["neutral"]) + 1).mean() / 2)
        return found

    def _accuracy(self, prefix: str, decisions: Decisions) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        accuracy = _accuracy(decisions)
        low, high = wilson_interval(accuracy * self.n_groups, self.n_groups)
        values, labels = _stacked(decisions)
        return {
            f"{prefix}accuracy": accuracy,
            f"{prefix}accuracy_low": low,
            f"{prefix}accuracy_high": high,
            f"{prefix}auc": float(roc_auc_score(labels, values)),
        }

    def _decisions(self, trained: ByRole, read: Sequence[ByRole]) -> list[Decisions]:
        """For each layer to read, the decision on every row by the probe of the fold that left it out."""
        found = [{role: np.zeros(len(values)) for role, values in layer.items()} for layer in read]
        for train, test in self.folds:
            probe = self._fit({role: values[train] for role, values in trained.items()})
            if probe is not None:
                for decisions, layer in zip(found, read, strict=True):
                    for role, values in layer.items():
                        decisions[role][test] = probe.decision_function(values[test])
        return found

    def _fit(self, layer: ByRole) -> Pipeline | None:
        """A probe; None where activations do not vary."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_selection import VarianceThreshold
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x, labels = _stacked(layer)
        # Standardizing would blow the rounding left of a removed coordinate up to full size, so such coordinates are dropped.
        floor = RESOLUTION**2 * np.square(x).mean()
        if not (x.var(0) > floor).any():
            return None
        regression = LogisticRegression(C=self.inverse_penalty, max_iter=MAX_ITERATIONS)
        probe = make_pipeline(VarianceThreshold(floor), StandardScaler(), regression)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # reported once, in our words
            probe.fit(x, labels)
        self.unconverged |= int(regression.n_iter_[0]) >= MAX_ITERATIONS
        return probe


def _stacked(sides: Mapping[str, Float[np.ndarray, n * width]]) -> tuple[np.ndarray, Int[np.ndarray, " two_n"]]:
    """Positives, then negatives, and their labels."""
    return np.concatenate([sides["positive"], sides["negative"]]), np.repeat([1, 0], len(sides["positive"]))


def _accuracy(decisions: Decisions) -> float:
    # A tie is half right: a probe that learned nothing says zero to both answers.
    right = np.concatenate([np.sign(decisions["positive"]), -np.sign(decisions["negative"])])
    return float((right + 1).mean() / 2)
