"""The strength at which an edit costs so much and no more."""

from __future__ import annotations

import math
from collections.abc import Callable

from sea_lens.errors import InputError

MOST = 1024.0
"""The largest strength that is tried."""
STEPS = 60
"""Measurements at most; a smooth edit needs three to eight."""


def strength_for(kl_at: Callable[[float], float], kl: float, tolerance: float = 0.03, steps: int = STEPS) -> float:
    """A factor of an editor's strength at which its KL is the one asked for.

    KL grows with the square of a small strength. So the search goes by powers: through the last two points, or where these
    leave the bracket, to its middle.

    Args:
        kl_at: The KL at a factor; infinite where the model overflows.
        kl: In nats per token.
        tolerance: Relative to `kl`.
        steps: Measurements at most.

    Raises:
        InputError: If `kl` is no finite number above zero, `tolerance` not inside (0, 1), or there is no such factor.

    Example:
        >>> round(strength_for(lambda factor: 0.4 * factor**2, 0.1), 2)
        0.5
    """
    if not (math.isfinite(kl) and kl > 0 and 0 < tolerance < 1):
        raise InputError(
            f"kl is a number of nats per token above zero, and tolerance inside (0, 1); {kl} and {tolerance} were given."
        )
    low, high = (0.0, 0.0), (math.inf, math.inf)  # factors with their KLs, below and above the one asked for
    factor = 1.0
    for _ in range(steps):
        found = kl_at(factor)
        if abs(found - kl) <= tolerance * kl:
            return factor
        if found < kl:
            low = factor, found
            if factor >= MOST:
                break
        else:
            high = factor, found
        factor = _next(low, high, kl)
        if not low[0] < factor < high[0]:
            break
    if high[0] == math.inf and low[1] == 0:
        raise InputError(
            "The editor changes nothing on these texts, at any strength. Is it the identity, or does it edit only positions "
            "beyond them?"
        )
    jump = f" and {high[1]:.3g} at {high[0]:.4g}" if high[0] < math.inf else ""
    raise InputError(
        f"No strength has a KL of {kl:g} nats per token on these texts: it is {low[1]:.3g} at {low[0]:.4g} times the "
        f"editor's own strength{jump}. Ask for another KL."
    )


def _next(low: tuple[float, float], high: tuple[float, float], kl: float) -> float:
    """Where to look next."""
    known = [(factor, found) for factor, found in (low, high) if 0 < found < math.inf]
    if len(known) == 2:
        (first, below), (last, above) = known
        slope = math.log(above / below) / math.log(last / first)
        share = math.log(kl / below) / slope / math.log(last / first)
        # Never so near an end that the bracket hardly shrinks: an edit's KL can be steep.
        return float(first * (last / first) ** min(max(share, 0.1), 0.9))
    if known:
        factor, found = known[0]
        guess = factor * math.sqrt(kl / found)
        if high[0] == math.inf:
            return min(max(guess, 1.1 * factor), 8 * factor, MOST)
        return (
            min(max(guess, factor / 16, (low[0] + factor) / 16), 0.9 * factor)
            if low[0] == 0
            else (low[0] + high[0]) / 2
        )
    return min(8 * low[0], MOST) if high[0] == math.inf else (low[0] + high[0]) / 2
