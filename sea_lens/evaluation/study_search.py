"""The search of a study: as many trials as there is time for, and the best of those that leave the model whole."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from tqdm.auto import tqdm

from sea_lens.errors import InputError
from sea_lens.evaluation.study_confirm import EVERY
from sea_lens.evaluation.study_trials import Plan, Trial, Trials
from sea_lens.models.damage import DamageMeter
from sea_lens.models.distributed import shows


@dataclass
class Clock:
    """Tells when to stop trying.

    Attributes:
        started: When the study began.
        seconds: How long it may take; None where trials are counted.
        trials: How many may be made; None where time is counted.
        scoring: Seconds that the held-out half takes one model.
        control: Random editors to be scored there.
        shuffles: Shuffled refits to be scored there, each with its mirror image.
    """

    started: float
    seconds: float | None
    trials: int | None
    scoring: float
    control: int
    shuffles: int
    look: float = 0.0
    took: list[float] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return math.inf if self.seconds is None else self.seconds - (time.perf_counter() - self.started)

    @property
    def trial(self) -> float:
        """What a trial takes, and a little more."""
        return 1.2 * statistics.median(self.took) if self.took else 0.0

    def is_over(self) -> bool:
        """Whether there is no time for another trial, or as many were made as were asked for."""
        made = len(self.took)
        if self.trials is not None or self.seconds is None:
            return self.trials is not None and made >= self.trials
        # The best one's damage is measured on the texts of both halves, and answers are shown.
        rest = 1.2 * self.scoring * (2 + self.control + 2 * self.shuffles) + 0.04 * self.seconds
        rest += self.look * (3 * EVERY + self.control + 2 * self.shuffles) + 2 * self.trial * self.shuffles
        return made > 0 and self.left < self.trial + rest

    def room(self, each: float, control: int, shuffles: int) -> tuple[int, int]:
        """How many random editors and shuffles there is time for, one of each at least where any are asked for.

        Args:
            each: Seconds that the held-out half takes one model.
            control: Random editors that are asked for.
            shuffles: Shuffles, each of which is fitted twice.
        """
        if self.seconds is None:
            return control, shuffles
        random, shuffled = each + self.look, 2 * (self.trial + each + self.look)
        some = min(control, max(1, int(0.5 * self.left / max(random, 1e-9))))
        return some, min(shuffles, max(1, int((self.left - some * random) / max(shuffled, 1e-9))))


def run_trials(
    tries: Trials, planned: Sequence[Plan], clock: Clock, progress: bool
) -> tuple[list[tuple[Plan, Trial]], dict[str, str]]:
    """Tries what is planned as long as there is time, and says what could not be tried."""
    found: list[tuple[Plan, Trial]] = []
    left_out: dict[str, str] = {}
    most = len(planned) if clock.trials is None else min(clock.trials, len(planned))
    with tqdm(total=most, desc="trials", unit="trial", disable=not shows(progress)) as bar:
        for plan in planned:
            if clock.is_over():
                break
            if isinstance(tries.direction(plan), str):  # fits are not what a trial takes
                left_out[f"{plan.setting}, {plan.token}, layers {plan.layers}"] = str(tries.direction(plan))
                continue
            began = time.perf_counter()
            trial = tries.run(plan)
            assert isinstance(trial, Trial)
            clock.took.append(time.perf_counter() - began)
            if not clock.look:
                began = time.perf_counter()
                tries.cost(tries.editor(plan, trial))
                clock.look = time.perf_counter() - began
            found.append((plan, trial))
            best = max((one.score for _, one in found if one.n), default=math.nan)
            bar.set_postfix_str(f"best {best:.3f}")
            bar.update()
    if not found:
        raise InputError(f"Nothing could be tried. {' '.join(f'{name}: {why}' for name, why in left_out.items())}")
    return found, left_out


def best_of(
    tries: Trials, found: Sequence[tuple[Plan, Trial]], meter: DamageMeter, max_kl: float | None, shown_tokens: int
) -> tuple[Plan, Trial] | None:
    """The best by score, and of equals by cost, whose damage on all texts is within the limit."""
    allowed = [(plan, trial) for plan, trial in found if trial.n]
    for plan, trial in sorted(allowed, key=lambda each: (-each[1].score, each[1].kl)):
        editor = tries.editor(plan, trial)
        if max_kl is None or not meter.measure(editor, examples=3, max_new_tokens=shown_tokens).is_broken:
            return plan, trial
    return None


def trials_table(
    found: Sequence[tuple[Plan, Trial]], best: tuple[Plan, Trial] | None, max_kl: float | None
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
            "chosen": best is not None and plan == best[0],
        }
        for plan, trial in found
    ]
    return pd.DataFrame(rows)
