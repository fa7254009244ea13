"""Does it work on this model? From demonstrations and questions to a verdict, within so many minutes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.cache import Store, digest
from sea_lens.data.confounds import DemonstrationCheck
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.questions import Questions
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.apart import check_apart
from sea_lens.evaluation.compare import kept_in
from sea_lens.evaluation.contenders import chosen_methods
from sea_lens.evaluation.evaluation import check_model, check_questions
from sea_lens.evaluation.sides import sides_apart
from sea_lens.evaluation.study.clock import TIMED_ANSWERS, Clock
from sea_lens.evaluation.study.confirm import EVERY, HeldOut, shuffled_pair, table_of, unedited_only
from sea_lens.evaluation.study.going_on import announce, going_on, keep_finished
from sea_lens.evaluation.study.plans import FREE_STRENGTHS, SHARES, STUDIED, TOKENS, plans, studied_layers
from sea_lens.evaluation.study.repeats import but_of, repeats_of
from sea_lens.evaluation.study.result import Study, verdict_of
from sea_lens.evaluation.study.search import best_of, run_trials, trials_table
from sea_lens.evaluation.study.sizes import needs_neutral, sized
from sea_lens.evaluation.study.thin import headed, thin_of
from sea_lens.evaluation.study.trials import Trials
from sea_lens.evaluation.unedited import answer_tokens, why_nothing_can_be_told
from sea_lens.methods.budget import tried
from sea_lens.methods.mean_difference import MeanDifference
from sea_lens.methods.measures import NamedMeasure, measure_of
from sea_lens.methods.method import Method
from sea_lens.models.bridge import Model, ModelInfo, weights_digest
from sea_lens.models.damage import DamageMeter
from sea_lens.models.damage_limits import DamageLimits
from sea_lens.statistics import Proportion
from sea_lens.wording import either, setting

MAX_KL = 0.5
"""Up to half a nat per token every text reads well; see `DamageLimits`."""
EXAMPLE_TOKENS = 40
"""Length of answers that are shown, at most."""
SETTINGS_PER_METHOD = 2
"""Of a method that is given by name, so many settings are tried."""
FORMAT = "sea_lens.study/2"


def study(
    model: Model,
    demonstrations: Demonstrations,
    questions: Questions,
    *,
    minutes: float = 10.0,
    trials: int | None = None,
    methods: Sequence[str | Method] | None = None,
    layers: Sequence[str] | None = None,
    strengths: Sequence[float] | None = None,
    measure: NamedMeasure = "preference_per_token",
    max_kl: float | None = MAX_KL,
    neutral_texts: Sequence[str] | None = None,
    control: int = 5,
    shuffles: int = 2,
    max_new_tokens: int = 32,
    seed: int = 0,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Study:
    """Finds out whether demonstrations steer a model, and says so in one sentence with its numbers.

    The demonstrations are checked for what separates them besides meaning, and the questions for what the unedited model
    makes of them: where it is at chance, or has none or all of them right, nothing can be told, and it is steered no further.
    The questions are split into two halves. On the fitting half, methods, tokens of the fit and layers are tried in a fixed
    order, each at the strengths that cost 80 % and 30 % of `max_kl`, as many as there is time for. The best, by the mean
    probability of right against wrong answers, is measured once on the held-out half: beside random editors that move every
    token as far, beside the same directions scaled until they cost as much, and beside its own refits on shuffled
    demonstrations, at the same cost.

    Example:
        >>> options = {"methods": [sl.SEA(0.5, center=True)], "layers": ["first:3"], "control": 1, "shuffles": 0}
        >>> found = sl.study(model, demonstrations, questions, trials=1, progress=False, **options)
        >>> found.verdict
        'works'

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        demonstrations: To fit on. Neutral answers are the model's own where a method needs them and there are none.
        questions: Others than those of the demonstrations, with right and (unless answers are measured) wrong answers.
        minutes: How long all of it may take. It decides how many settings are tried and, on slow models, how many
            demonstrations are read, how many questions are asked and how many controls are scored. At least one setting is
            tried, and one control of each kind; a study that took longer, for that or as the machine slowed down, says so.
        trials: How many settings to try instead, on all questions: the same numbers whatever the machine's speed.
        methods: Methods to try, in their order, by name or with settings; None for mean difference, ACE, MidSteer,
            SEA (centered at 0.5, and as published) and Gaussian transport.
        layers: Sets of layers to try, in their order, as for `tune`; None for single layers, a band, parts, and all.
        strengths: Strengths to try, instead of those that cost parts of `max_kl`.
        measure: What counts as right, as for `tune`. By default a right answer that is likelier per token than every wrong
            one: sums over tokens would mostly compare lengths.
        max_kl: What an edit may cost, in nats per token on prompts and neutral text; None for no limit.
        neutral_texts: Texts that the edit should leave alone, such as French ones for an edit that makes a model answer in
            French; None for `sl.neutral_texts(model)`.
        control: How many random directions to score beside the best, each at its length and at its cost.
        shuffles: How many refits on shuffled demonstrations to score beside it, each with its mirror image.
        max_new_tokens: Longest greedy answer, for the measures of answers.
        seed: Of the split, the controls and the intervals.
        batch_size: Rows in one forward pass.
        folder: Where to keep what is computed. A run that was killed goes on from there.
        progress: Whether to show progress bars.

    Returns:
        The verdict in a word and in a sentence, and in `table` the numbers of both models and of every control on the
        held-out questions. `report` writes it as a page.

    Raises:
        InputError: If a question is asked in the demonstrations, no method can be fitted, or the measure needs wrong answers
            where there are none.
        FileFormatError: If `folder` holds another study.
    """
    check_arguments(study, locals())
    check_model(model, None)
    check_questions(questions)
    if not minutes > 0 or (trials is not None and trials < 1) or control < 0 or shuffles < 0:
        raise InputError(
            f"{setting('minutes')} is above 0, {setting('trials')} at least 1, {setting('control')} and "
            f"{setting('shuffles')} at least 0; {minutes}, {trials}, {control} and {shuffles} were given."
        )
    if strengths is not None and 0 in strengths:
        raise InputError(f"{setting('strengths')} holds 0, which changes nothing: leave it out.")
    if max_kl is not None and not max_kl > 0:
        raise InputError(
            f"{setting('max_kl')} is a number of nats per token above zero, or {either('None', 'none')} for no "
            f"limit; {max_kl} was given."
        )
    if isinstance(neutral_texts, str):
        raise InputError("neutral_texts is a list of texts, and a single text was given. Put it into a list.")
    started = time.perf_counter()
    chosen = _chosen(methods)
    check_apart(demonstrations, (), questions)
    how = measure_of(measure, questions, max_new_tokens, batch_size)
    checked = demonstrations.check(model)
    all_fitting, all_held_out = questions.split(0.5, seed)
    with kept_in(folder) as kept:
        asking = {"measure": measure, "max_new_tokens": max_new_tokens, "seed": seed, "max_kl": max_kl}
        known = {"model": weights_digest(model), "demonstrations": demonstrations.fingerprint}
        known |= {"questions": questions.fingerprint, "texts": digest(neutral_texts)}
        store = Store(kept, "study", {"format": FORMAT, **known, **asking})
        seconds = None if trials is not None else 60 * minutes
        longest = answer_tokens(model, demonstrations)
        tokens = TOKENS[:1] if longest == 1 else TOKENS
        writes = needs_neutral(chosen, demonstrations)
        levels = SHARES if strengths is None and max_kl is not None else ()
        given = FREE_STRENGTHS if strengths is None else strengths
        sets = studied_layers(model.cfg.n_layers) if layers is None else list(layers)
        planned = plans(tokens, chosen, sets, levels, given)
        announce(going_on(store, kept, planned, trials, minutes, (control, shuffles)), progress)
        sizes = sized(
            model,
            demonstrations,
            (all_fitting, all_held_out),
            how,
            seconds,
            2 * (1 + control + shuffles),
            store,
            tokens=tokens,
            neutral_tokens=longest if writes else 0,
        )
        given_demonstrations, demonstrations = len(demonstrations), sizes.demonstrations
        fitting, held_out = sizes.fitting, sizes.held_out
        without = [method for method in chosen if "neutral" in method.roles]
        if writes and not sizes.writes_neutral and len(without) < len(chosen):
            writes, chosen = False, [method for method in chosen if method not in without]
            planned = plans(tokens, chosen, sets, levels, given)
        else:
            without = []
        facts: dict[str, Any] = {
            "model": str(ModelInfo.of(model).name),
            "n_layers": int(model.cfg.n_layers),
            "demonstrations": f"{given_demonstrations} of {demonstrations.source}",
            "questions": f"{len(questions)} of {questions.source}",
            "n_demonstrations": len(demonstrations),
            "n_demonstrations_given": given_demonstrations,
            "n_fitting": len(fitting),
            "n_fitting_given": len(all_fitting),
            "n_held_out": len(held_out),
            "n_held_out_given": len(all_held_out),
            "no_neutral": ", ".join(dict.fromkeys(method.name for method in without)),
            **asking,
            "minutes": minutes,
            "trials_asked": trials,
            "control_asked": control,
            "shuffles_asked": shuffles,
        }
        told = why_nothing_can_be_told(model, fitting, held_out, how, measure)
        if told.why:
            summary = f"no effect can be told: {told.why}."
            return _nothing(summary, told.right, checked, facts | _spent(started, 0, 0))
        if writes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SeaLensWarning)  # cut where the other answers end, as is meant
                demonstrations = demonstrations.with_neutral_answers(
                    model, longest, batch_size=batch_size, folder=kept, progress=progress
                )
        shown_tokens = min(EXAMPLE_TOKENS, 4 + 3 * longest)
        prompts = [str(question.prompt) for question in fitting]
        limits = DamageLimits() if max_kl is None else DamageLimits(kl=max_kl)
        meter = DamageMeter.of(model, prompts, neutral_texts, limits=limits, batch_size=min(batch_size, 16))
        tries = Trials(
            model,
            demonstrations,
            fitting,
            how,
            meter.on_fewer(EVERY),
            max_kl,
            batch_size,
            store,
            None if folder is None else kept,
            progress,
        )
        apart = sides_apart([tries.activations(MeanDifference(), token) for token in tokens], seed)
        facts |= {"apart": apart.told, "sides_tested": apart.is_tested}
        if apart.is_tested and not apart.is_certain:
            summary = f"no effect can be told: {apart.told}."
            return _nothing(summary, told.right, checked, facts | _spent(started, 0, 0))
        facts["unedited_right"], facts["unedited_score"] = tries.score(None)
        clock = Clock(started, seconds, trials, tries.pace[-1] * len(held_out), control, shuffles)
        if seconds is not None:
            began = time.perf_counter()
            meter.unedited_answers(TIMED_ANSWERS, shown_tokens)
            clock.texts = time.perf_counter() - began
        facts["resumed"] = sum(plan.name in tries.known for plan in planned)
        found, left_out = run_trials(tries, planned, clock, len(held_out), progress)
        facts |= {"left_out": left_out, **_spent(started, len(found), len(planned))}
        best = best_of(tries, found, meter, max_kl, shown_tokens)
        table_of_trials = trials_table(found, best, max_kl)
        if isinstance(best, str):
            thin = thin_of("breaks the model", facts)
            tried = unedited_only(told.right), table_of_trials, pd.DataFrame(), checked, facts
            return Study("breaks the model", headed("breaks the model", thin, best), (), *tried, thin=thin)
        plan, trial, cost = best
        editor = tries.editor(plan, trial)
        options = {"measure": measure, "max_new_tokens": max_new_tokens, "seed": seed}
        options |= {"batch_size": batch_size}
        meters, written = (meter, tries.meter), (clock.answers, shown_tokens)
        scored = HeldOut(model, held_out, neutral_texts, meters, cost, kept, written, options, progress)
        beside = scored.beside(
            scored.edited(editor),
            editor,
            (control, shuffles),
            clock,
            seed,
            lambda number: shuffled_pair(tries, plan, seed, number),
        )
        keep_finished(store, len(found) + len(left_out), beside.random, beside.shuffles)
    facts |= {"control": beside.random, "shuffles": beside.shuffles}
    table = table_of(beside)
    damage = beside.evaluation.damage
    examples = damage.examples if damage is not None else pd.DataFrame()
    repetition = repeats_of(model, beside.evaluation, examples, seed)
    verdict, said, reasons = verdict_of(beside, table, repetition)
    fitted_on = "the mean over the answer's tokens" if plan.token == "mean" else f"the {plan.token} token"
    chosen_one = f"{plan.setting}, fitted on {fitted_on}"
    facts["setting"] = f"{chosen_one}, layers {plan.layers}, strength {trial.strength:.3g}"
    facts |= _spent(started, len(found), len(planned))
    thin = thin_of(verdict, facts)
    return Study(
        verdict,
        headed(verdict, thin, said, but_of(verdict, repetition)),
        reasons,
        table,
        table_of_trials,
        examples,
        checked,
        facts,
        evaluation=beside.evaluation,
        editor=editor,
        controls=beside.controls,
        thin=thin,
        repetition=repetition,
    )


def _nothing(summary: str, right: Proportion, checked: DemonstrationCheck, facts: dict[str, Any]) -> Study:
    """A study that stopped before anything was steered."""
    return Study("no effect", summary, (), unedited_only(right), pd.DataFrame(), pd.DataFrame(), checked, facts)


def _chosen(methods: Sequence[str | Method] | None) -> list[Method]:
    """Methods with their settings, in the order in which they are tried."""
    if methods is None:
        return list(STUDIED)
    if isinstance(methods, str) or not methods:
        raise InputError(f"methods is a list with at least one method, or None, and {methods!r} was given.")
    found: list[Method] = []
    for one in methods:
        if not isinstance(one, str):
            if isinstance(one, type) or not isinstance(one, Method):
                raise InputError(f"A method is a name or an object such as sl.SEA(0.9), and {one!r:.80} was given.")
            found.append(one)
            continue
        known, left_out = chosen_methods([one])
        for why in left_out.values():
            raise InputError(f"{one}: {why}")
        found += [setting for method in known.values() for setting in tried(method, SETTINGS_PER_METHOD)[0]]
    return found


def _spent(started: float, made: int, planned: int) -> dict[str, object]:
    return {"trials": made, "planned": planned, "seconds": round(time.perf_counter() - started, 1)}
