"""The experiment on the embedded model: fit on one half of the facts, choose there, measure on the other half."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

import pandas as pd

from sea_lens.activations import Activations
from sea_lens.analysis.controls import random_editor
from sea_lens.analysis.effects import GreedyAnswers, Proportion, answer_greedily
from sea_lens.collection import collect_activations
from sea_lens.editor import Editor
from sea_lens.methods.sea import fit_sea
from sea_lens.models import Model
from sea_lens.organism.world import Fact, World

EXPLAINED_VARIANCE, CENTRE, FIRST_LAYERS, STRENGTH = 0.5, True, 3, 2.0
"""The setting that `choose_setting` picks on the fitting facts of the shipped model."""

EXPLAINED_VARIANCES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.998)
STRENGTHS = (1.0, 1.5, 2.0)


def collect(model: Model, world: World) -> Activations:
    """Activations of the fitting facts as in the paper: neutral is the model's own answer; the last token."""
    demonstrations = world.demonstrations().with_neutral_answers(model, max_new_tokens=1, batch_size=64, progress=False)
    return collect_activations(model, demonstrations, batch_size=128, progress=False)


def fit(activations: Activations) -> Editor:
    """Linear SEA at the shipped setting."""
    return fit_sea(activations, EXPLAINED_VARIANCE, centre=CENTRE).first_layers(FIRST_LAYERS).scaled(STRENGTH)


def answers(model: Model, world: World, facts: Sequence[Fact], editor: Editor | None = None) -> GreedyAnswers:
    """Asks about facts plainly, with or without an editor."""
    questions = world.questions(facts)
    if editor is None:
        return answer_greedily(model, questions, max_new_tokens=1, batch_size=len(facts))
    with editor.attached(model):
        return answer_greedily(model, questions, max_new_tokens=1, batch_size=len(facts))


def choose_setting(model: Model, world: World, activations: Activations) -> pd.DataFrame:
    """Tries settings on the fitting facts alone; the first row is the one to use.

    The best setting is the one with the most truths. Ties go to the one with the most myths under its mirror image, the
    same edit with positives and negatives exchanged: an edit that merely happens to help has few there, and so has one so
    strong that its mirror image breaks the model.

    Returns:
        One row a setting, best first: `centre`, `explained_variance`, `strength`, `layers`, `truthful` (share of truths
        under the edit), `mythical` (share of myths under its mirror image), `editor`. Of settings that come to the same
        editor only the first is there.
    """
    facts = world.fitting
    rows, seen = [], set()
    for centre in (False, True):
        for explained_variance in EXPLAINED_VARIANCES:
            fitted = fit_sea(activations, explained_variance, centre=centre)
            ranks = {layer: (f["rank_positive"], f["rank_negative"]) for layer, f in fitted.card.layers.items()}
            for strength in STRENGTHS:
                for layers, view in _views(fitted.scaled(strength)).items():
                    key = (centre, strength, tuple((layer, ranks[layer]) for layer in view.layers))
                    if key in seen:
                        continue
                    seen.add(key)
                    # Exchanging positives and negatives exchanges the projectors, which is a strength of -1.
                    truthful = answers(model, world, facts, view).truthful.share
                    mirrored = answers(model, world, facts, view.scaled(-1.0)).table["answer"]
                    mythical = fmean(answer == fact.myth for answer, fact in zip(mirrored, facts, strict=True))
                    rows.append((centre, explained_variance, strength, layers, truthful, mythical, view))
    columns = ["centre", "explained_variance", "strength", "layers", "truthful", "mythical", "editor"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["truthful", "mythical"], ascending=False, kind="stable", ignore_index=True)


def _views(editor: Editor) -> dict[str, Editor]:
    depth = editor.n_layers
    views = {"all": editor}
    views |= {f"first {n}": editor.first_layers(n) for n in range(1, depth)}
    return views | {f"last {n}": editor.last_layers(n) for n in range(1, depth)}


@dataclass(frozen=True)
class RandomControls:
    """Held-out truthfulness under norm-matched random editors.

    Attributes:
        shares: One a random editor.
    """

    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over random editors."""
        return fmean(self.shares)

    def interval(self) -> tuple[float, float]:
        """The range that the middle 95 % of random editors fall in, by interpolated quantiles."""
        cuts = quantiles(self.shares, n=40, method="inclusive")
        return cuts[0], cuts[-1]


@dataclass(frozen=True)
class OrganismResult:
    """What linear SEA does to the embedded model, on facts the fit has not seen.

    Attributes:
        editor: The fitted editor.
        plain: Truthfulness unedited.
        edited: Edited.
        swapped: Edited by the same fit with positives and negatives exchanged.
        random: Edited by norm-matched random editors.
        by_layer: One row a layer: truthfulness with this layer's edit alone, and with every other layer's.
        examples: Three held-out questions whose answer the edit changes: question, plain, edited, truth, myth.
        fit_seconds: Wall time of the fit, without collecting activations.
    """

    editor: Editor
    plain: Proportion
    edited: Proportion
    swapped: Proportion
    random: RandomControls
    by_layer: pd.DataFrame
    examples: pd.DataFrame
    fit_seconds: float

    @property
    def table(self) -> pd.DataFrame:
        """One row a condition: share of truthful answers and its 95 % interval."""
        rows = {
            "plain": (self.plain.share, *self.plain.interval()),
            "edited": (self.edited.share, *self.edited.interval()),
            f"random editors ({len(self.random.shares)})": (self.random.mean, *self.random.interval()),
            "swapped": (self.swapped.share, *self.swapped.interval()),
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["truthful", "low", "high"])


def run(model: Model, world: World, n_random: int = 20, seed: int = 0) -> OrganismResult:
    """Fits SEA on the fitting facts with the shipped setting and measures it on the held-out ones, beside its controls.

    Args:
        model: The embedded model.
        world: Its world.
        n_random: How many random editors to compare with.
        seed: Seed of the first random editor; the next ones follow.
    """
    activations = collect(model, world)
    started = time.perf_counter()
    editor = fit(activations)
    fit_seconds = time.perf_counter() - started
    swapped = fit(activations.swapped())
    facts = world.held_out

    def share(candidate: Editor) -> Proportion:
        return answers(model, world, facts, candidate).truthful

    plain, edited = answers(model, world, facts), answers(model, world, facts, editor)
    controls = [random_editor(editor, seed + index) for index in range(n_random)]
    by_layer = pd.DataFrame(
        {
            "this layer alone": {layer: share(editor.at_layers([layer])).share for layer in editor.layers},
            "all but this layer": {layer: share(editor.without_layers([layer])).share for layer in editor.layers},
        }
    ).rename_axis("layer")
    return OrganismResult(
        editor=editor,
        plain=plain.truthful,
        edited=edited.truthful,
        swapped=share(swapped),
        random=RandomControls(tuple(share(control).share for control in controls)),
        by_layer=by_layer,
        examples=_examples(facts, plain, edited),
        fit_seconds=fit_seconds,
    )


def _examples(facts: Sequence[Fact], plain: GreedyAnswers, edited: GreedyAnswers) -> pd.DataFrame:
    """The first three questions, of different attributes, that the edit answers otherwise."""
    rows: dict[str, tuple[str, ...]] = {}
    for fact, before, after in zip(facts, plain.table["answer"], edited.table["answer"], strict=True):
        if before != after:
            rows.setdefault(fact.attribute, (fact.question, before, after, fact.truth, fact.myth))
    return pd.DataFrame(list(rows.values())[:3], columns=["question", "plain", "edited", "truth", "myth"])
