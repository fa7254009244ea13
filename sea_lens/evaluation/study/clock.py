"""The time of a study: when to stop trying, so that what was found can still be confirmed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

LAST = 5
"""Trials that say how long the next one takes: a machine's load changes."""
LOOKS_PER_CONTROL = 4
"""Measurements of damage that a random editor takes, of two strengths, and a shuffle, of two fits."""
TO_CONFIRM = 0.5
"""Share of the time that is kept back for all controls, at most."""
ALL_TEXTS = 4
"""Looks that the damage on all texts takes."""
TIMED_ANSWERS = 3
"""Answers that the time to write them is measured on, and that the best editor writes before it is chosen."""
ANSWERS, FEW_ANSWERS = 16, 6
"""Held-out answers that either model writes: enough to say whether one repeats itself; of a slow model, those shown."""
AS_LONG = {ANSWERS: 2.0, FEW_ANSWERS: 1.5}
"""How many times as long as the timed ones so many take, side by side, at most: 16 took 1.4 times as long on one core."""
TO_WRITE = 0.1
"""Share of the time that those of both models may take."""


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
        look: Seconds that damage takes on some of the texts.
        texts: Seconds in which the unedited model writes three answers.
        took: Seconds of the trials of this run; those of an earlier one cost nothing.
        fits: Seconds of its fits.
        made: Trials, those of an earlier run among them.
    """

    started: float
    seconds: float | None
    trials: int | None
    scoring: float
    control: int
    shuffles: int
    look: float = 0.0
    texts: float = 0.0
    took: list[float] = field(default_factory=list)
    fits: list[float] = field(default_factory=list)
    made: int = 0

    @property
    def spent(self) -> float:
        """Seconds."""
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds."""
        return math.inf if self.seconds is None else self.seconds - self.spent

    @property
    def trial(self) -> float:
        """What a trial takes without its fit, at most."""
        return max(self.took[-LAST:], default=0.0)

    @property
    def answers(self) -> int:
        """Held-out answers that either model writes."""
        takes = 2 * AS_LONG[ANSWERS] * self.texts
        return ANSWERS if self.seconds is None or takes <= TO_WRITE * self.seconds else FEW_ANSWERS

    def confirming(self, control: int, shuffles: int) -> float:
        """Seconds that the confirmation takes with so many controls."""
        per_control = 2 * self.scoring + LOOKS_PER_CONTROL * self.look
        writing = (1 + 2 * AS_LONG[self.answers]) * self.texts
        edited = 2 * self.scoring + (2 * ALL_TEXTS + 1) * self.look + writing
        return edited + control * per_control + shuffles * (per_control + 2 * self.trial)

    @property
    def kept_back(self) -> float:
        """Seconds for the confirmation: with all controls, but half of the time at most, unless one of each takes more."""
        if self.seconds is None:
            return 0.0
        least = self.confirming(min(1, self.control), min(1, self.shuffles))
        return max(least, min(self.confirming(self.control, self.shuffles), TO_CONFIRM * self.seconds))

    def is_over(self, fits: bool) -> bool:
        """Whether there is no time for another trial, or as many were made as were asked for.

        Args:
            fits: Whether the next trial fits an editor first.
        """
        if self.trials is not None:
            return self.made >= self.trials
        if not self.made:
            return False
        new_fit = max(self.fits, default=0.0) if fits else 0.0
        return self.left < self.trial + new_fit + self.kept_back
