"""The search of a study: as many trials as there is time for, and the best of those that leave the model whole."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pandas as pd
from tqdm.auto import tqdm

from sea_lens.errors import InputError
from sea_lens.evaluation.study.clock import TIMED_ANSWERS, Clock
from sea_lens.evaluation.study.plans import Plan
from sea_lens.evaluation.study.trials import Trial, Trials
from sea_lens.models.damage import Damage, DamageMeter
from sea_lens.models.distributed import shows

TOLD = "{desc}: {n_fmt} of {total_fmt} planned, as many as there is time for [{elapsed}{postfix}]"
"""A progress bar without an estimate, which would be of all that is planned."""


def run_trials(
    tries: Trials, planned: Sequence[Plan], clock: Clock, n_held_out: int, progress: bool
) -> tuple[list[tuple[Plan, Trial]], dict[str, str]]:
    """Tries what is planned as long as there is time, and says what could not be tried.

    Args:
        tries: Makes trials.
        planned: In their order.
        clock: Tells when to stop.
        n_held_out: Questions that every control will be asked.
        progress: Whether to show a progress bar.
    """
    found: list[tuple[Plan, Trial]] = []
    left_out: dict[str, str] = {}
    most = len(planned) if clock.trials is None else min(clock.trials, len(planned))
    shape = None if clock.seconds is None else TOLD  # what is planned takes longer than there is
    with tqdm(total=most, desc="trials", unit="trial", bar_format=shape, disable=not shows(progress)) as bar:
        for plan in planned:
            is_known, is_fitted = plan.name in tries.known, tries.is_fitted(plan)
            if clock.is_over(fits=not is_fitted):
                break
            began = time.perf_counter()
            if isinstance(tries.direction(plan), str):
                left_out[f"{plan.setting}, {plan.token}, layers {plan.layers}"] = str(tries.direction(plan))
                continue
            fitted = time.perf_counter()
            trial = tries.run(plan)
            assert isinstance(trial, Trial)
            if not is_fitted:
                clock.fits.append(fitted - began)
            if not is_known:
                clock.took.append(time.perf_counter() - fitted)
            if tries.pace:
                clock.scoring = tries.pace[-1] * n_held_out
            if not tries.looks and clock.seconds is not None:  # an earlier run made the trial
                tries.cost(tries.editor(plan, trial))
            clock.look = max(tries.looks[-1:], default=0.0)
            clock.made += 1
            found.append((plan, trial))
            best = max((one.score for _, one in found if one.n), default=math.nan)
            bar.set_postfix_str(f"best {best:.3f}")
            bar.update()
    if not found:
        raise InputError(f"Nothing could be tried. {' '.join(f'{name}: {why}' for name, why in left_out.items())}")
    return found, left_out


def best_of(
    tries: Trials, found: Sequence[tuple[Plan, Trial]], meter: DamageMeter, max_kl: float | None, shown_tokens: int
) -> tuple[Plan, Trial, Damage | None] | str:
    """The best by score, and of equals by cost, whose damage on all texts is within the limits; and that damage.

    Returns:
        The plan, its trial and its damage; or why there is none, in a sentence.
    """
    refused: Damage | None = None
    allowed = [(plan, trial) for plan, trial in found if trial.n]
    for plan, trial in sorted(allowed, key=lambda each: (-each[1].score, each[1].kl)):
        if max_kl is None:
            return plan, trial, None
        damage = meter.measure(tries.editor(plan, trial), examples=TIMED_ANSWERS, max_new_tokens=shown_tokens)
        if not damage.is_broken:
            return plan, trial, damage
        refused = refused or damage
    return _why_none(found, max_kl or 0.0, refused)


def _why_none(found: Sequence[tuple[Plan, Trial]], max_kl: float, refused: Damage | None) -> str:
    if refused is None:
        each, least = (
            (f"each of {len(found)} settings", "the gentlest ") if len(found) > 1 else ("the one setting tried", "")
        )
        gentlest = min((trial.kl for _, trial in found), default=math.nan)
        return f"{each} costs more than {max_kl:g} nats per token ({least}{gentlest:.2g}), and none was chosen."
    within = sum(trial.n > 0 for _, trial in found)
    told = refused.finding.removeprefix("This edit breaks the model: ").rstrip(".")
    those, which = ("the one setting", "") if within == 1 else (f"each of the {within} settings", "the best: ")
    return (
        f"{those} within {max_kl:g} nats per token on a part of the texts is past the limits of damage on all of them "
        f"({which}{told}), and none was chosen."
    )


def trials_table(
    found: Sequence[tuple[Plan, Trial]], best: tuple[Plan, Trial, Damage | None] | str, max_kl: float | None
) -> pd.DataFrame:
    """See `Study.trials`."""
    rows = [
        {
            "token": str(plan.token),
            "method": plan.setting,
            "layers": plan.layers,
            "strength": trial.strength,
            "score": trial.score,
            "right": trial.right,
            "n": trial.n,
            "kl": trial.kl,
            "perplexity_ratio": trial.perplexity_ratio,
            "allowed": trial.n > 0 and (max_kl is None or trial.kl <= max_kl),
            "chosen": not isinstance(best, str) and plan == best[0],
        }
        for plan, trial in found
    ]
    return pd.DataFrame(rows)
