"""Two ways of computing one thing, timed in turns, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What is compared.
        baseline: Median of the other way, in `unit`.
        ours: Median of this library's way.
        wanted: What the ratio should be at least, or at most if it is below 2; None for a row that is only shown.
        exactness: How far the results are apart, in words.
        exact: Whether they are the same, as far as the row asks. If not, the ratio does not count.
        repeats: Of the baseline and of ours.
        unit: `s` or `MB`.
        inverted: Whether the ratio is ours / baseline, for what should cost hardly more than nothing.
        against: What the baseline is.
    """

    what: str
    baseline: float
    ours: float
    wanted: float | None
    exactness: str
    exact: bool
    repeats: tuple[int, int] = (1, 1)
    unit: str = "s"
    inverted: bool = False
    against: str = "published procedure"

    @property
    def ratio(self) -> float:
        """Of times or sizes: baseline / ours, or ours / baseline if inverted."""
        return self.ours / self.baseline if self.inverted else self.baseline / self.ours

    @property
    def verdict(self) -> str:
        """`met`, `not met`, or `not equal` where the results differ."""
        if not self.exact:
            return "not equal"
        if self.wanted is None:
            return ""
        met = self.ratio <= self.wanted if self.inverted else self.ratio >= self.wanted
        return "met" if met else "not met"

    def cells(self) -> dict[str, str]:
        """As text, by column."""
        sign = "<=" if self.inverted else ">="
        return {
            "what": self.what,
            "against": self.against,
            "theirs": f"{self.baseline:.4g} {self.unit} (x{self.repeats[0]})",
            "sea_lens": f"{self.ours:.4g} {self.unit} (x{self.repeats[1]})",
            "ratio": f"{self.ratio:.3g}" if self.exact else "not counted",
            "wanted": "" if self.wanted is None else f"{sign} {self.wanted:g}",
            "verdict": self.verdict,
            "exactness": self.exactness,
        }


def in_turns(
    baseline: Callable[[], object], ours: Callable[[], object], repeats: int, baseline_repeats: int | None = None
) -> tuple[float, float]:
    """Median wall time in seconds of each, run alternately and in changing order, so that both meet the same machine.

    Args:
        baseline: The other way.
        ours: This library's way.
        repeats: How often ours is run.
        baseline_repeats: How often the baseline is, if it is dear: in the first rounds.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            if which == 1 or turn < (repeats if baseline_repeats is None else baseline_repeats):
                times[which].append(seconds((baseline, ours)[which]))
    return median(times[0]), median(times[1])


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def distance(one: torch.Tensor, other: object) -> float:
    """Largest difference, as a share of the largest entry where that is above 1."""
    assert isinstance(other, torch.Tensor)
    return float((one - other).abs().max() / other.abs().max().clamp_min(1))
