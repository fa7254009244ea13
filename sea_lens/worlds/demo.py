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
from sea_lens.methods.tune import MAX_KL
from sea_lens.methods.tune import tune as tune_methods
from sea_lens.methods.tuning import Tuning, describe_setting
from sea_lens.models.activations import Activations
from sea_lens.models.answers import GreedyAnswers, answer_greedily
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.results import Result
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


def tune(
    model: Model,
    world: World,
    activations: Activations,
    progress: bool = False,
    max_kl: float | None = MAX_KL,
    halving: bool | None = None,
) -> Tuning:
    """Chooses a setting of linear SEA on the fitting facts alone."""
    facts = world.fitting
    return tune_methods(
        model,
        activations,
        world.questions(facts),
        strengths=STRENGTHS,
        max_kl=max_kl,
        halving=halving,
        max_new_tokens=1,
        batch_size=len(facts),
        progress=progress,
    )


@dataclass(frozen=True, eq=False, repr=False)
class OrganismResult(Result):
    """What linear SEA does to the embedded model, on facts the fit has not seen.

    Attributes:
        table: The share of `truthful` answers, its interval `low` to `high`, in four conditions: plain, edited, under random
            editors that move every token as far (their mean, and the range of the middle 95 % of them), and swapped: the
            same fit with positives and negatives exchanged.
        by_layer: One row per layer: truthfulness with this layer's edit alone, and with every other layer's.
        examples: Three held-out questions whose answer the edit changes: question, plain, edited, truth, myth.
        random: Truthfulness under each random editor.
        tuning: The settings tried on the fitting facts.
        n_fitting: Facts that SEA was fitted and tuned on.
        n_held_out: Facts that it was measured on.
        fit_seconds: Wall time of the fit at the best setting, without collecting activations.
    """

    table: pd.DataFrame
    by_layer: pd.DataFrame
    examples: pd.DataFrame
    random: Sequence[float]
    tuning: Tuning
    n_fitting: int
    n_held_out: int
    fit_seconds: float

    @property
    def editor(self) -> Editor:
        """The best on the fitting facts."""
        return self.tuning.best


def run(model: Model, world: World, n_random: int = 20, seed: int = 0, progress: bool = False) -> OrganismResult:
    """Fits and tunes SEA on the fitting facts and measures the best editor on the held-out ones, beside its controls.

    Args:
        model: The embedded model.
        world: Its world.
        n_random: How many random editors to compare with, at least two.
        seed: Seed of the first random editor; the next ones follow.
        progress: Whether to show a progress bar while tuning.
    """
    activations = collect(model, world)
    tuning = tune(model, world, activations, progress)
    started = time.perf_counter()
    editor = refit(tuning.best, activations)
    fit_seconds = time.perf_counter() - started
    facts = world.held_out

    def share(candidate: Editor) -> float:
        return answers(model, world, facts, candidate).right.share

    found = {
        "plain": answers(model, world, facts),
        "edited": answers(model, world, facts, editor),
        "swapped": answers(model, world, facts, refit(editor, activations.swapped())),
    }
    rows = {name: (one.right.share, *one.right.interval()) for name, one in found.items()}
    random = [share(random_editor_like(editor, seed + index)) for index in range(n_random)]
    cuts = quantiles(random, n=40, method="inclusive")
    rows[f"random editors ({n_random})"] = (fmean(random), cuts[0], cuts[-1])
    order = ["plain", "edited", f"random editors ({n_random})", "swapped"]
    table = pd.DataFrame([rows[name] for name in order], index=order, columns=["truthful", "low", "high"])
    by_layer = pd.DataFrame(
        {
            "this layer alone": {layer: share(editor.at_layers([layer])) for layer in editor.layers},
            "all but this layer": {layer: share(editor.without_layers([layer])) for layer in editor.layers},
        }
    )
    return OrganismResult(
        table=table.rename_axis("condition"),
        by_layer=by_layer.rename_axis("layer"),
        examples=_examples(facts, found["plain"], found["edited"]),
        random=random,
        tuning=tuning,
        n_fitting=len(world.fitting),
        n_held_out=len(facts),
        fit_seconds=fit_seconds,
    )


def _examples(facts: Sequence[Fact], plain: GreedyAnswers, edited: GreedyAnswers) -> pd.DataFrame:
    """The first three questions, of different attributes, whose answer the edit changes."""
    rows: dict[str, tuple[str, ...]] = {}
    for fact, before, after in zip(facts, plain.table["answer"], edited.table["answer"], strict=True):
        if before != after:
            rows.setdefault(fact.attribute, (fact.question, before, after, fact.truth, fact.myth))
    return pd.DataFrame(list(rows.values())[:3], columns=["question", "plain", "edited", "truth", "myth"])


def report(result: OrganismResult) -> str:
    """What `sea-lens demo` says of a result of `run`."""
    settings, seconds = result.tuning.table, f"{result.fit_seconds:.2f} s"
    lines = [
        "",
        f"SEA fitted on {result.n_fitting} facts in {seconds}, at the best of {len(settings)} settings there:",
        f"  {describe_setting(settings.iloc[0])}",
        f"truthful answers on {result.n_held_out} facts it has never seen, with 95 % intervals",
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
    print(tuning)
    with tuning.best.attached(model):
        print(sl.answer_greedily(model, world.questions(), max_new_tokens=1).right)
"""
