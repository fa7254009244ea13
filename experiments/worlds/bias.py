"""SEA on the model with a bias: the tables of edits in sea_lens/worlds/README.md.

`python -m experiments.worlds.bias` measures the model that ships, and takes other folders by name. Settings
are chosen on the fitting half and scored once on the held-out one.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from experiments.worlds.bias_scores import bias_scores
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.editing.controls import random_editor_like
from sea_lens.editing.editor import Editor
from sea_lens.errors import SeaLensWarning
from sea_lens.methods.grid import grid
from sea_lens.methods.method import refit
from sea_lens.methods.sea.feature_space import FeatureMap, SquaredExponential
from sea_lens.methods.sea.sea import SEA
from sea_lens.methods.tune import EXPLAINED_VARIANCES
from sea_lens.methods.tune import tune as tune_methods
from sea_lens.methods.tuning import Tuning, describe_setting
from sea_lens.models.activations import Activations
from sea_lens.models.answers import answer_greedily
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.worlds.bias import BiasQuestion, BiasWorld
from sea_lens.worlds.demo import STRENGTHS
from sea_lens.worlds.load import BIAS_WEIGHTS, load_bias_organism

N_RANDOM = 6
Scores = dict[str, float]
"""As `bias_scores` gives them."""


def ask(model: Model, world: BiasWorld, items: Sequence[BiasQuestion], editor: Editor | None = None) -> Scores:
    """Asks plainly, with or without an editor, and scores greedy answers."""
    questions = world.questions(items)
    if editor is None:
        table = answer_greedily(model, questions, max_new_tokens=1, batch_size=len(items)).table
    else:
        with editor.attached(model):
            table = answer_greedily(model, questions, max_new_tokens=1, batch_size=len(items)).table
    return bias_scores(questions, [str(answer) for answer in table["answer"]])


def collect(model: Model, demonstrations: Demonstrations) -> Activations:
    """Activations at the last token, the model's own answer being neutral."""
    answered = demonstrations.with_neutral_answers(model, max_new_tokens=1, batch_size=64, progress=False)
    return collect_activations(model, answered, batch_size=128, progress=False)


def tune(
    model: Model,
    world: BiasWorld,
    activations: Activations,
    feature_maps: Sequence[FeatureMap | None] = (None,),
    progress: bool = False,
) -> Tuning:
    """Chooses a setting of SEA by accuracy over all fitting questions, both conditions alike."""
    items = world.items("fitting")
    methods = grid(SEA, feature_map=feature_maps, center=(False, True), explained_variance=EXPLAINED_VARIANCES)
    return tune_methods(
        model,
        activations,
        world.questions(items),
        methods=methods,
        strengths=STRENGTHS,
        max_kl=None,  # the tables are of the highest score, whatever it costs
        halving=False,  # as the tables were made
        max_new_tokens=1,
        batch_size=len(items),
        progress=progress,
    )


@dataclass(frozen=True)
class BiasResult:
    """What SEA does to the model with a bias, on groups and places that the fit has not seen.

    Attributes:
        tuning: The settings tried on the fitting half.
        plain: Scores unedited.
        edited: Edited at the best setting.
        swapped: Edited by the same fit with positives and negatives exchanged.
        random: Edited by norm-matched random editors, one score each.
    """

    tuning: Tuning
    plain: Scores
    edited: Scores
    swapped: Scores
    random: tuple[Scores, ...]


def run(
    model: Model,
    world: BiasWorld,
    demonstrations: Demonstrations | None = None,
    feature_maps: Sequence[FeatureMap | None] = (None,),
    n_random: int = N_RANDOM,
    progress: bool = False,
) -> BiasResult:
    """Fits and tunes SEA on the fitting half and scores the best editor on the held-out one, beside its controls.

    Args:
        model: The model with a bias.
        world: Its world.
        demonstrations: To fit on; `world.demonstrations()` for None.
        feature_maps: To choose among; None is the linear edit.
        n_random: How many random editors to compare with.
        progress: Whether to show a progress bar while tuning.
    """
    activations = collect(model, world.demonstrations() if demonstrations is None else demonstrations)
    tuning = tune(model, world, activations, feature_maps, progress)
    editor, items = tuning.best, world.items()
    return BiasResult(
        tuning=tuning,
        plain=ask(model, world, items),
        edited=ask(model, world, items, editor),
        swapped=ask(model, world, items, refit(editor, activations.swapped())),
        random=tuple(ask(model, world, items, random_editor_like(editor, seed)) for seed in range(n_random)),
    )


def rows(name: str, result: BiasResult) -> list[str]:
    """The table's lines: edited, swapped, and mean and range of random editors."""
    numbers = {f"{name}": result.edited, f"{name}, swapped": result.swapped}
    lines = [_line(key, [f"{value:.3f}" for value in scores.values()]) for key, scores in numbers.items()]
    if result.random:
        columns = zip(*(scores.values() for scores in result.random), strict=True)
        ranges = [f"{fmean(column):.3f} ({min(column):.3f} to {max(column):.3f})" for column in map(list, columns)]
        lines.append(_line(f"{name}, {len(result.random)} random editors", ranges))
    return lines


def _line(name: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def report(folder: Path) -> None:
    """Prints the table of one folder."""
    model, world = load_bias_organism(folder=folder)
    plain = ask(model, world, world.items())
    names = list(plain)
    print(_line("held out", names) + "\n|" + "---|" * (len(names) + 1))
    print(_line("plain", [f"{value:.3f}" for value in plain.values()]), flush=True)
    fits: dict[str, tuple[Demonstrations, FeatureMap | None]] = {
        "linear": (world.demonstrations(), None),
        "linear, disambiguated demonstrations only": (world.demonstrations(context_condition="disambig"), None),
        "squared exponential, scale 1": (world.demonstrations(), SquaredExponential(1.0)),
    }
    settings = []
    for name, (demonstrations, feature_map) in fits.items():
        result = run(model, world, demonstrations, (feature_map,))
        print("\n".join(rows(name, result)), flush=True)
        best = result.tuning.table.iloc[0]
        settings.append(f"{name}: {describe_setting(best)}; accuracy on fitting questions {best['score']:.3f}")
    print("\n" + "\n".join(settings))


if __name__ == "__main__":
    warnings.simplefilter("ignore", SeaLensWarning)
    for argument in sys.argv[1:] or [str(BIAS_WEIGHTS)]:
        print(f"{argument}\n")
        report(Path(argument))
