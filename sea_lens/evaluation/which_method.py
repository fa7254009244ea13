"""Which method is best here? All of them, tuned by one budget on one half of the questions and scored on the other."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import BrokenModelWarning, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.evaluation.apart import check_apart
from sea_lens.evaluation.benchmark import Benchmark
from sea_lens.evaluation.compare import Comparison, compare, kept_in
from sea_lens.evaluation.contenders import ALL, Sources, chosen_methods, that_fit
from sea_lens.evaluation.guard import passing_on
from sea_lens.evaluation.method_comparison import SCORED, MethodComparison, trials_table
from sea_lens.evaluation.side_by_side import CONTROLS, COSTS, DAMAGE, NUMBERS
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa, generate_answers
from sea_lens.methods.budget import TRIALS, own_site, tried
from sea_lens.methods.measures import check_chooses, measure_of
from sea_lens.methods.method import Method, method_of, refit
from sea_lens.methods.settings import layer_sets
from sea_lens.methods.tune import MAX_KL, tune
from sea_lens.methods.tuning import Tuning, describe_setting
from sea_lens.models.activations import Activations, TokenChoice
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.distributed import shows
from sea_lens.models.shared_meters import sharing
from sea_lens.results import folder_names
from sea_lens.statistics import holm
from sea_lens.wording import either

Scored = Literal["mc1", "rouge"]
"""What is tuned and scored by: log-probabilities of the answers, or greedy answers."""
SHUFFLED = ("shuffled", "shuffled_low", "shuffled_high")


def compare_methods(
    model: Model,
    demonstrations: Demonstrations,
    fitting_questions: Questions,
    held_out_questions: Questions,
    *,
    methods: Literal["all"] | Sequence[str | Method] = ALL,
    layers: Sequence[str | Sequence[int]] | None = None,
    trials: int = TRIALS,
    measure: Scored = "mc1",
    max_kl: float | None = MAX_KL,
    neutral_texts: Sequence[str] | None = None,
    token: TokenChoice = "last",
    max_new_tokens: int = 32,
    control: int = 3,
    shuffles: int = 3,
    seed: int = 0,
    batch_size: int = 64,
    folder: str | Path | None = None,
    progress: bool = True,
) -> MethodComparison:
    """Fits every method on the demonstrations, tunes each by one budget, and scores the best of each once.

    Every method tries as many settings times strengths at every set of layers as every other (see `methods.budget`: what it
    tries stands on its class), all on `fitting_questions`. What breaks the model is never chosen. The best of each is then
    scored once on `held_out_questions`, beside norm-matched random editors and its own refits on demonstrations whose sides
    are shuffled. Nothing is chosen on the held-out half. A method that cannot run on what is given is named, with the reason.

    Example:
        >>> options = {"layers": ["all"], "trials": 1, "max_new_tokens": 1, "control": 3, "shuffles": 1}
        >>> found = sl.compare_methods(model, demonstrations, fitting, questions, methods=["leace"], **options)
        >>> found.table.index.tolist()
        ['unedited', 'leace']

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        demonstrations: To fit on. Methods that need neutral answers get the model's own where there are none.
        fitting_questions: To tune by.
        held_out_questions: To score on. No prompt may be one of the fit or of the tuning.
        methods: `"all"` that are registered, or names of them, or methods with settings that the tuning leaves alone, such
            as `["all", sl.SAS(sl.load_sae("organism"))]`: one with settings takes the place of the one of its name.
        layers: Sets of layers, as for `tune`.
        trials: Settings times strengths that every method tries at every set of layers. A method of one site has one set of
            layers, and as many more strengths instead as it has.
        measure: `"mc1"`: the share of questions whose best answer is likelier than every wrong one (TruthfulQA's MC1).
            `"rouge"`: the share of greedy answers that are nearer to a right one than to every wrong one.
        max_kl: What a setting may cost, as for `tune`.
        neutral_texts: Texts that an edit should leave alone, as for `tune`.
        token: The token of each text to fit on, as for `collect_activations`.
        max_new_tokens: Longest answer, the neutral ones among them.
        control: How many norm-matched random editors to score beside each method.
        shuffles: How many shuffled refits to score beside each method.
        seed: Of the controls, the shuffles and the intervals.
        batch_size: Rows in one forward pass.
        folder: Where to keep what is computed. A run that was killed goes on from there, and one with further methods
            computes only those.
        progress: Whether to show progress bars.

    Returns:
        A result whose `table` has one row per method after the unedited model's, scored on the held-out questions, with
        interval, controls and damage. `trials` has every setting that was tried, `comparison` the editors.

    Raises:
        InputError: If there is no such method, none can run, a prompt of the held-out half is used before, or the unedited
            model has none or all of the fitting questions right.

    Warns:
        BrokenModelWarning: If the best setting of a method breaks the model on the held-out half.
    """
    check_arguments(compare_methods, locals())
    check_is_model(model)
    if measure not in ("mc1", "rouge"):
        raise InputError(f'measure is "mc1" or "rouge", and {measure!r} was given.')
    if trials < 1 or control < 0 or shuffles < 0:
        raise InputError(
            f"trials is at least 1, control and shuffles at least 0; {trials}, {control} and {shuffles} were given."
        )
    check_apart(demonstrations, fitting_questions, held_out_questions)
    chosen, left_out = chosen_methods(methods)
    how = measure_of(measure, fitting_questions, max_new_tokens, batch_size)
    check_chooses(measure, how(model, fitting_questions), fitting_questions)
    with kept_in(folder) as kept, sharing():
        own_folder = kept if folder is not None else None
        sources = Sources(model, demonstrations, token, max_new_tokens, batch_size, own_folder)
        tunings: dict[str, Tuning] = {}
        sides: dict[str, Activations] = {}
        budget = trials * len(layer_sets(layers, range(model.cfg.n_layers), model.cfg.n_layers))
        places = folder_names(chosen)
        for name, method in tqdm(chosen.items(), desc="methods", unit="method", disable=not shows(progress)):
            one_site = own_site(method) is not None
            settings, strengths = tried(method, budget if one_site else trials)
            try:
                activations = sources.of(method)
                attempt = partial(
                    tune,
                    model,
                    activations,
                    fitting_questions,
                    layers=[ALL] if one_site else layers,
                    strengths=strengths,
                    measure=measure,
                    max_kl=max_kl,
                    neutral_texts=neutral_texts,
                    control=0,
                    seed=seed,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    folder=None if own_folder is None else own_folder / f"tuning-{places[name]}",
                    progress=False,
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SeaLensWarning)  # what fits say, and what breaks, is in the table
                    tuning = _tuned(attempt, settings, activations)
            except (InputError, ModelMismatchError) as error:
                left_out[name] = str(error)
                continue
            if tuning.n_allowed:
                tunings[name], sides[name] = tuning, activations
            else:
                left_out[name] = tuning.why_none
        if not tunings:
            raise InputError(
                f"No method could run. {' '.join(f'{name}: {why}' for name, why in left_out.items())} "
                + either("See sl.METHODS.", "`sea-lens methods` lists what each needs.")
            )
        benchmark = _benchmark(measure, held_out_questions, max_new_tokens, batch_size, seed, neutral_texts)
        editors = {name: tuning.best for name, tuning in tunings.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BrokenModelWarning)  # said once, below
            found = compare(model, {SCORED: benchmark}, editors, control=control, folder=kept, progress=progress)
        shuffled = {
            name: _shuffled(model, benchmark, editor, sides[name], range(seed, seed + shuffles), kept)
            for name, editor in editors.items()
        }
        seconds = {name: _seconds(editor, sides[name]) for name, editor in editors.items()}
    table = _table(found, tunings, shuffled, seconds)
    tables = [
        trials_table(name, tuning.table, [describe_setting(row) for _, row in tuning.table.iterrows()])
        for name, tuning in tunings.items()
    ]
    result = MethodComparison(table, left_out, pd.concat(tables, ignore_index=True), found, budget)
    if result.broken:
        warnings.warn(
            f"{', '.join(result.broken)}: the best setting breaks the model.", BrokenModelWarning, stacklevel=2
        )
    return result


def _tuned(attempt: Callable[..., Tuning], settings: Sequence[Method], activations: Activations) -> Tuning:
    """The tuning over all settings; over those that can be fitted, where some cannot."""
    try:
        return attempt(methods=settings)
    except InputError:
        left = that_fit(settings, activations)
        if len(left) == len(settings):
            raise
        return attempt(methods=left)


def _table(
    found: Comparison,
    tunings: Mapping[str, Tuning],
    shuffled: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
) -> pd.DataFrame:
    """See `MethodComparison`."""
    own = {str(name).removeprefix(f"{SCORED} "): column for name, column in found.table.items()}
    best = [tuning.table.iloc[0] for tuning in tunings.values()]
    unedited = next(iter(tunings.values())).unedited.share
    nothing = float("nan")
    columns: dict[str, object] = {"score": own[found.headlines[SCORED]]}
    for name in (*NUMBERS, *CONTROLS):
        if name in own:
            columns[name] = own[name]
        if name == "p_value":
            columns["p_holm"] = holm(own[name].tolist()).tolist()
    for name in SHUFFLED:
        if all(name in numbers for numbers in shuffled.values()):
            columns[name] = [nothing, *(numbers[name] for numbers in shuffled.values())]
    columns |= {name: own[name] for name in (*DAMAGE, *COSTS) if name in own}
    columns["fit_seconds"] = [nothing, *seconds.values()]
    columns["tried"] = pd.array([pd.NA, *(len(tuning.table) for tuning in tunings.values())], dtype="Int64")
    columns["fitting_score"] = [unedited, *(float(row["score"]) for row in best)]
    columns["setting"] = ["", *map(describe_setting, best)]
    return pd.DataFrame(columns, index=found.table.index).rename_axis("method")


def _benchmark(
    measure: Scored,
    questions: Questions,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    neutral_texts: Sequence[str] | None,
) -> Benchmark:
    """The evaluation whose headline is the measure, on questions as they stand."""
    if measure == "mc1":
        return partial(
            evaluate_truthfulqa,
            questions=questions,
            prompt="plain",
            neutral_texts=neutral_texts,
            seed=seed,
            batch_size=batch_size,
        )
    return partial(
        generate_answers,
        questions=questions,
        prompt="plain",
        max_new_tokens=max_new_tokens,
        neutral_texts=neutral_texts,
        seed=seed,
        batch_size=batch_size,
    )


def _shuffled(
    model: Model, benchmark: Benchmark, editor: Editor, activations: Activations, seeds: Sequence[int], folder: Path
) -> Mapping[str, float]:
    """The change under refits on shuffled sides: their mean, their range, and how often one is as far from 0 as the edit."""
    changes: list[float] = []
    bare = passing_on(benchmark, control=0, damage=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        for seed in seeds:
            try:
                other = refit(editor, activations.shuffled(seed))
            except InputError:  # such as SAS, which finds no feature that is on one side
                changes.append(0.0)
                continue
            found = bare(model, editor=other, folder=folder, progress=False)
            changes.append(float(found.table["change"][found.headline]))
    if not changes:
        return {}
    return dict(zip(SHUFFLED, (sum(changes) / len(changes), min(changes), max(changes)), strict=True))


def _seconds(editor: Editor, activations: Activations) -> float:
    """How long one fit with an editor's settings takes, at all layers."""
    method = method_of(editor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        started = time.perf_counter()
        method.fit(activations)
        return time.perf_counter() - started
