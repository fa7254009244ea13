"""The closed-form fit of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import published, worlds
from benchmarks.timing import Row, in_turns
from sea_lens import SEA, Activations
from sea_lens.methods.sea.projectors import principal_angles
from sea_lens.methods.sea.spectral import CrossCovariance

SHARE = 0.998
"""The paper's explained variance."""


def fit_rows() -> Iterator[Row]:
    """One layer, at the paper's size and at half of it; and centered, where the spectrum decays slowly."""
    yield _fit(2048, 1000, center=False, wanted=20, baseline_repeats=2)
    yield _fit(2048, 1000, center=True, wanted=6, baseline_repeats=1)
    yield _fit(4096, 2000, center=False, wanted=50, baseline_repeats=1)


def _fit(d: int, n: int, center: bool, wanted: float | None, baseline_repeats: int) -> Row:
    neutral, positive, negative = worlds.activations(n, d)
    activations = Activations.from_tensors(neutral={0: neutral}, positive={0: positive}, negative={0: negative})
    found: list[torch.Tensor] = []

    def baseline() -> None:
        found[:] = published.fit(neutral, positive, negative, SHARE, center)[0]

    ours = partial(SEA(SHARE, center=center).fit, activations, progress=False)
    times = in_turns(baseline, ours, 3, baseline_repeats)
    cuts = [side.explaining(SHARE).basis for side in CrossCovariance.of_sides(neutral, [positive, negative], center)]
    ranks = "+".join(str(cut.shape[1]) for cut in cuts)
    same = all(cut.shape == basis.shape for cut, basis in zip(cuts, found, strict=True))
    apart = [float(principal_angles(cut, basis).max().sin()) for cut, basis in zip(cuts, found, strict=True)]
    return Row(
        f"fit one layer, d={d} n={n}, {'centered' if center else 'uncentered'}",
        *times,
        wanted,
        f"ranks {ranks} {'equal' if same else 'differ'}, projectors {max(apart):.1e} apart",
        same and max(apart) < 1e-6,
        (baseline_repeats, 3),
    )
