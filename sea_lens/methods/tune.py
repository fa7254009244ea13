"""Choosing a method and its settings honestly: every one measured on questions you give, and on nothing else.

A limit on damage comes before the score: what breaks the model is shown, and never chosen.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.cache import Store, digest
from sea_lens.data.questions import Questions
from sea_lens.editing.controls import control_editors
from sea_lens.errors import BrokenModelWarning, InputError, SeaLensWarning
from sea_lens.methods.grid import grid
from sea_lens.methods.halving import Race, halves, in_rounds
from sea_lens.methods.measures import Measure, NamedMeasure, check_chooses, measure_name_of, measure_of
from sea_lens.methods.method import Method, fit_all
from sea_lens.methods.sea.sea import SEA
from sea_lens.methods.settings import keys_and_editors, layer_sets, row_of, shown_settings, sites_of
from sea_lens.methods.trials import FEWER, FIRST_LOOK, WHOLE, Trials
from sea_lens.methods.tuning import TunedEditors, Tuning, View
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model, check_is_model, weights_digest
from sea_lens.models.damage import Damage, DamageMeter
from sea_lens.models.damage_limits import DamageLimits
from sea_lens.models.distributed import from_first
from sea_lens.models.shared_meters import shared_meter
from sea_lens.wording import either, setting

EXPLAINED_VARIANCES = (0.5, 0.8, 0.9, 0.99, 0.998, 0.9999)
MAX_KL = DamageLimits().kl
UNLIMITED = sys.float_info.max
FORMAT = "sea_lens.tuning/4"
EXAMPLE_TOKENS = 24
"""Length of the answers that are shown, in tokens."""


def tune(
    model: Model,
    activations: Activations,
    questions: Questions,
    *,
    methods: Sequence[Method] | None = None,
    layers: Sequence[str | Sequence[int]] | None = None,
    strengths: Sequence[float] = (1.0,),
    measure: NamedMeasure | Measure = "answers",
    measure_name: str | None = None,
    max_kl: float | None = MAX_KL,
    halving: bool | None = None,
    neutral_texts: Sequence[str] | None = None,
    control: int = 3,
    examples: int = 3,
    seed: int = 0,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Tuning:
    """Fits methods and measures each, at sets of layers and strengths, on the questions given.

    An edit can win any score by destroying the model. So a setting that moves next-token distributions by more than `max_kl`
    is not chosen, whatever its score; it stays in the table.

    Layers and strengths are views of one fit per method, settings of one method share its work, and settings that come to
    the same edit are measured once. Where log-probabilities are compared, and for damage, editors that are alike up to a
    layer share the blocks below it, to the bit. Under `torchrun`, with `torch.distributed` initialised, settings are split
    over the processes.

    Many settings are halved (successive halving, Jamieson and Talwalkar 2016): all of them answer a quarter of the questions
    and have their damage measured on a quarter of the texts, the better half goes on to half of the questions, and the
    better half of those to all questions and all texts. So the best quarter has whole scores. The others keep the score,
    the interval and the damage of what they saw, their number of questions `n`, and places below. Where the summed KL of a
    first look alone is past the limit, whatever the other texts say, a setting is asked nothing. Until some setting that
    came to the end may be chosen, the next best go on. A setting that is better on all questions may be lost early: one that
    is right on 60 % where the others are on 40 % is among the better half of 15 questions in 9 of 10 cases.

    Example:
        >>> methods = sl.grid(sl.SEA, center=[True], explained_variance=[0.5, 0.9])
        >>> tuning = sl.tune(model, activations, fitting, methods=methods, layers=["all"], max_new_tokens=1)
        >>> len(tuning.table), tuning.best.card.method
        (2, 'sea')

    Args:
        model: A TransformerBridge with a tokenizer, unedited: the one the activations come from.
        activations: To fit on.
        questions: To choose by. Keep others to report on: the best of many settings looks better than it is.
        methods: Methods with their settings; for None SEA, centered and not, at six explained variances.
        layers: Sets of layers: `"all"`, `"first:3"`, `"last:21"`, `"3,5,10-20"`, or lists. For None: all, and the first and
            last quarter, half and three quarters of the model. Where a method edits none of a set's layers, there is no row.
        strengths: 1 is the published method.
        measure: The share of questions that the model has right. Of greedy answers: `"answers"`, those that hold a right
            answer and no wrong one; `"exact"`, those that equal a right one; `"rouge"`, those nearer to a right one than to
            every wrong one. Of log-probabilities: `"mc1"`, where the first right answer is likelier than every wrong one;
            `"preference"`, where any right one is; `"preference_per_token"`, the same by means over tokens, for answers of
            unlike lengths. Or a function of model and questions that returns a `Proportion`.
        measure_name: What tells the function from others, where it has no name of its own and a folder is given.
        max_kl: What a setting may cost, in nats per token: the mean KL(unedited || edited) of next-token distributions on the
            questions' prompts and on neutral text, the higher of the two. Perplexity may grow by the factor that a KL of this
            size stands for, exp(max_kl). At the default of 1 nat, text is e times as perplexing as it was. None for no limit.
        halving: Whether settings are halved. None for yes from 64 settings and 48 questions on: of fewer, too few would come
            to the end, and be dropped by too few questions. False measures every setting on every question.
        neutral_texts: Texts that an edit should leave alone; None for `sl.neutral_texts(model)`, none for prompts only.
        control: How many norm-matched random editors to score beside the best setting.
        examples: How many of the questions' prompts to continue with and without the best edit.
        seed: Of the random editors.
        max_new_tokens: Longest greedy answer.
        batch_size: Questions in one forward pass.
        folder: Where to keep scores as they come. A run that was killed goes on from there, and so does one with further
            methods, layers or strengths.
        progress: Whether to show a progress bar.

    Returns:
        A result whose `table` has one row per setting, best first, with score, interval and damage; `best` is the
        editor of the first.

    Raises:
        InputError: If a list of settings is empty, a setting is impossible, the measure needs wrong answers that a question
            lacks or has no name to keep scores by, or the unedited model has none or all of the questions right.
        FileFormatError: If `folder` holds the scores of another model, questions, texts or measure.

    Warns:
        BrokenModelWarning: If every setting costs more than `max_kl`.
        SeaLensWarning: If no setting that may be chosen scores higher than the unedited model.
    """
    check_is_model(model)
    given = dict(locals())
    check_arguments(tune, {"model": model, "strengths": strengths})
    chosen = [*grid(SEA, center=(False, True), explained_variance=EXPLAINED_VARIANCES)] if methods is None else methods
    for name, values in {
        "methods": chosen,
        "strengths": strengths,
        "layers": [""] if layers is None else layers,
    }.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise InputError(f"{name} is a list of values to try, with at least one, and {values!r} was given.")
    strange = [repr(one) for one in chosen if isinstance(one, type) or not isinstance(one, Method)]
    if strange:
        raise InputError(f"methods are objects such as SEA(0.9), and {', '.join(strange)} was given.")
    if not isinstance(questions, Questions):
        raise InputError(f"questions are sea_lens.Questions, and a {type(questions).__name__} was given.")
    if layers is not None and any(isinstance(given, int) for given in layers):
        raise InputError(f"layers is a list of sets of layers, such as [[0, 1], [2]], and {layers!r} was given.")
    if not all(map(math.isfinite, strengths)):
        raise InputError(f"A strength must be a finite number, and {strengths} were given.")
    if isinstance(neutral_texts, str):
        raise InputError("neutral_texts is a list of texts, and a single text was given. Put it into a list.")
    if max_kl is not None and not max_kl > 0:
        raise InputError(
            f"{setting('max_kl')} is a number of nats per token above zero, or {either('None', 'none')} for no "
            f"limit; {max_kl} was given."
        )
    if control < 0 or examples < 0:
        raise InputError(f"control and examples are at least 0, and {control} and {examples} were given.")
    check_arguments(tune, given)
    prompts = [question.prompt for question in questions]
    sets = layer_sets(layers, activations.layers, model.cfg.n_layers)
    needed = {layer for found in sets.values() for layer in found}
    score = measure_of(measure, questions, max_new_tokens, batch_size)
    limits = _limits(max_kl)
    meter = shared_meter(DamageMeter.of(model, prompts, neutral_texts, limits=limits, batch_size=batch_size))
    store = None
    if folder is not None:
        texts = {kind: plain.rows for kind, plain in meter.predictions.items()}
        facts = {"measure": measure_name_of(measure, measure_name), "max_new_tokens": max_new_tokens}
        facts |= {"weights": weights_digest(model), "questions": digest(list(questions)), "texts": digest(texts)}
        store = Store(folder, "scores", {"format": FORMAT, **facts})
    n_settings = len(chosen) * len(sets) * len(strengths)
    parts, rounds = in_rounds(model, score, questions, halves(halving, n_settings, len(questions)))
    meters = {WHOLE: meter, FIRST_LOOK: meter.on_fewer(FEWER)}
    trials = Trials(model, score, parts, meters, store, progress)
    unedited = trials.unedited()
    check_chooses(measure, unedited, questions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)  # an edit that does nothing is a row like any other here
        used = [site for site in activations.sites if "all" in sets or site.layer in needed]
        fits = tuple(fit_all(chosen, activations.at_sites(used), progress=progress))
        named = [
            (name, View(number, sites, float(strength)))
            for number, fit in enumerate(fits)
            for name, sites in sites_of(fit, sets).items()
            for strength in strengths
        ]
        editors = TunedEditors(fits, tuple(view for _, view in named))
        own_keys, by_key = keys_and_editors(editors)
        keys: list[str] = from_first(own_keys)
        trials.editors.update(by_key)
        sizes = pd.Series([sum(edit.rank for edit in editor.edits.values()) for editor in editors])
        race = Race(trials, rounds, dict(zip(reversed(keys), reversed(sizes.tolist()), strict=True)), limits)
        race.run(keys)
        shown = shown_settings(chosen)
        damage: Damage | None = None
        broken: set[str] = set()  # by their answers, which repeat themselves
        while True:
            measured = [trials.of(key, race.reached[key]) for key in keys]
            table = pd.DataFrame(
                row_of(chosen[view.fit], shown, name, view, fits[view.fit], found)
                for (name, view), found in zip(named, measured, strict=True)
            )
            within = [found.is_within(limits) and key not in broken for key, found in zip(keys, measured, strict=True)]
            table = table.assign(allowed=within, editor=keys)
            order = table.assign(size=sizes).sort_values(
                ["allowed", "n", "score", "kl", "size"], ascending=[False, False, False, True, True], kind="stable"
            )
            first = int(order.index[0])
            if not table.at[first, "allowed"]:
                break
            if not race.is_finished(keys[first]):
                race.go_on()
                continue
            damage = trials.damage(keys[first], editors[first], examples, min(max_new_tokens, EXAMPLE_TOKENS))
            if not damage.is_broken:
                break
            broken.add(keys[first])  # the next one is looked at
            damage = None
        controls: list[dict[str, object]] = []
        if damage is not None and not editors[first].is_identity:
            others = control_editors(editors[first], control, seed)
            named_others = {digest("control", other.fingerprint): other for other in others}
            trials.editors.update(named_others)
            race.finish(list(named_others))
            for number, key in enumerate(named_others):
                controls.append({"control": f"random {seed + number}", **trials.of(key, race.reached[key]).columns})
    found = Tuning(
        table.loc[order.index].reset_index(drop=True),
        TunedEditors(fits, tuple(named[int(row)][1] for row in order.index)),
        (unedited.successes, unedited.n),
        max_kl,
        pd.DataFrame(controls).set_index("control") if controls else pd.DataFrame(),
        damage,
    )
    _warn_of(found)
    return found


def _limits(max_kl: float | None) -> DamageLimits:
    if max_kl is None:
        return DamageLimits(UNLIMITED, UNLIMITED, 1.0)
    return DamageLimits(max_kl, math.exp(min(max_kl, 700)))


def _warn_of(tuning: Tuning) -> None:
    """Says what a choice is worth, to the caller of `tune`."""
    if not tuning.n_allowed:
        warnings.warn(f"No setting is chosen: {tuning.why_none}", BrokenModelWarning, stacklevel=3)
    elif tuning.table["score"].iloc[0] <= tuning.unedited.share:
        limited = "" if tuning.n_allowed == len(tuning.table) else f" within a KL of {tuning.max_kl:g}"
        warnings.warn(
            f"None of {tuning.n_allowed} settings{limited} scores higher than the unedited model ({tuning.unedited}). "
            + "Try other layers, strengths or settings, "
            f"{either('look at demonstrations.check()', 'other demonstrations')}, or another {setting('token')}.",
            SeaLensWarning,
            stacklevel=3,
        )
