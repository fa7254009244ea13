"""The experiment on the embedded model: fit on one half of the facts, choose there, measure on the other half."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

import pandas as pd

from sea_lens.editing.controls import random_editor_like
from sea_lens.editing.editor import Editor
from sea_lens.methods.method import refit
from sea_lens.methods.tune import tune as tune_methods
from sea_lens.methods.tuning import Tuning, describe_setting
from sea_lens.models.activations import Activations
from sea_lens.models.answers import GreedyAnswers, answer_greedily
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.statistics import Proportion
from sea_lens.worlds.facts import Fact, World

STRENGTHS = (1.0, 2.0)
"""The paper's strength, and twice it."""


def collect(model: Model, world: World) -> Activations:
    """Activations of the fitting facts as in the paper: neutral is the model's own answer; the last token."""
    demonstrations = world.demonstrations().with_neutral_answers(model, max_new_tokens=1, batch_size=64, progress=False)
    return collect_activations(model, demonstrations, batch_size=128, progress=False)


def answers(model: Model, world: World, facts: Sequence[Fact], editor: Editor | None = None) -> GreedyAnswers:
    """Asks about facts plainly, with or without an editor."""
    questions = world.questions(facts)
    if editor is None:
        return answer_greedily(model, questions, max_new_tokens=1, batch_size=len(facts))
    with editor.attached(model):
        return answer_greedily(model, questions, max_new_tokens=1, batch_size=len(facts))


def tune(model: Model, world: World, activations: Activations, progress: bool = False) -> Tuning:
    """Chooses a setting of linear SEA on the fitting facts alone."""
    facts = world.fitting
    return tune_methods(
        model,
        activations,
        world.questions(facts),
        strengths=STRENGTHS,
        max_new_tokens=1,
        batch_size=len(facts),
        progress=progress,
    )


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
        tuning: The settings tried on the fitting facts.
        editor: The best of them.
        plain: Truthfulness unedited.
        edited: Edited.
        swapped: Edited by the same fit with positives and negatives exchanged.
        random: Edited by norm-matched random editors.
        by_layer: One row a layer: truthfulness with this layer's edit alone, and with every other layer's.
        examples: Three held-out questions whose answer the edit changes: question, plain, edited, truth, myth.
        fit_seconds: Wall time of the fit at that setting, without collecting activations.
    """

    tuning: Tuning
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


def run(model: Model, world: World, n_random: int = 20, seed: int = 0, progress: bool = False) -> OrganismResult:
    """Fits and tunes SEA on the fitting facts and measures the best editor on the held-out ones, beside its controls.

    Args:
        model: The embedded model.
        world: Its world.
        n_random: How many random editors to compare with.
        seed: Seed of the first random editor; the next ones follow.
        progress: Whether to show a progress bar while tuning.
    """
    activations = collect(model, world)
    tuning = tune(model, world, activations, progress)
    started = time.perf_counter()
    editor = refit(tuning.best, activations)
    fit_seconds = time.perf_counter() - started
    swapped = refit(editor, activations.swapped())
    facts = world.held_out

    def share(candidate: Editor) -> Proportion:
        return answers(model, world, facts, candidate).right

    plain, edited = answers(model, world, facts), answers(model, world, facts, editor)
    controls = [random_editor_like(editor, seed + index) for index in range(n_random)]
    by_layer = pd.DataFrame(
        {
            "this layer alone": {layer: share(editor.at_layers([layer])).share for layer in editor.layers},
            "all but this layer": {layer: share(editor.without_layers([layer])).share for layer in editor.layers},
        }
    ).rename_axis("layer")
    return OrganismResult(
        tuning=tuning,
        editor=editor,
        plain=plain.right,
        edited=edited.right,
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


def report(result: OrganismResult, n_fitting: int) -> str:
    """What `sea-lens demo` says.

    Args:
        result: From `sea_lens.worlds.demo.run`.
        n_fitting: How many facts it was fitted on.
    """
    settings = result.tuning.table
    lines = [
        "",
        f"SEA fitted on {n_fitting} facts in {result.fit_seconds:.2f} s, at the best of {len(settings)} settings there:",
        f"  {describe_setting(settings.iloc[0])}",
        f"truthful answers on {result.plain.n} facts it has never seen, with 95 % intervals",
    ]
    for name, row in result.table.iterrows():
        bar = "=" * round(24 * row["truthful"])
        interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        lines.append(f"  {name:<22} {bar:<24} {row['truthful']:>6.1%}  {interval}")
    lines.append("")
    for example in result.examples.to_dict("records"):
        kinds = {example["myth"]: "myth", example["truth"]: "true"}
        plain, edited = (f"{example[name]} ({kinds.get(example[name], 'neither')})" for name in ("plain", "edited"))
        lines.append(f"Q: {example['question']:<34} plain: {plain:<20} edited: {edited}")
    return "\n".join(lines)


def code() -> str:
    """The lines of Python that do what the demo does."""
    return f"""    import sea_lens as sl
    model, world = sl.load_organism()
    demonstrations = world.demonstrations().with_neutral_answers(model, max_new_tokens=1)
    activations = sl.collect_activations(model, demonstrations)
    questions = world.questions(world.fitting)
    tuning = sl.tune(model, activations, questions, strengths={STRENGTHS}, max_new_tokens=1)
    print(tuning.table.head())
    with tuning.best.attached(model):
        print(sl.answer_greedily(model, world.questions(), max_new_tokens=1).right)
"""
