"""Settings of a method, compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from benchmarks import worlds
from benchmarks.timing import Row, in_turns
from sea_lens import SEA, Activations, Editor, SeaLensWarning, grid


def tune_rows() -> Iterator[Row]:
    """Every editor of six explained variances at eight sets of layers; both ways with this library's decomposition."""
    d, n, n_layers = 256, 200, 8
    sides = [worlds.activations(n, d, seed) for seed in range(n_layers)]
    by_role = [{layer: side[role] for layer, side in enumerate(sides)} for role in range(3)]
    activations = Activations.from_tensors(neutral=by_role[0], positive=by_role[1], negative=by_role[2])
    shares = (0.5, 0.8, 0.9, 0.99, 0.998, 0.9999)
    sets = [range(8), range(2), range(4), range(6), range(6, 8), range(4, 8), range(2, 8), range(2, 6)]
    found: dict[str, list[Editor]] = {}

    def baseline() -> None:
        found["each"] = [
            SEA(share).fit(activations.at_sites(layers), progress=False) for share in shares for layers in sets
        ]

    def ours() -> None:
        fits = SEA.fit_all(grid(SEA, explained_variance=shares), activations, progress=False)
        found["once"] = [fitted.at_layers(layers) for fitted in fits for layers in sets]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)  # of settings that edit little
        times = in_turns(baseline, ours, 3, 1)
    same = all(one.fingerprint == other.fingerprint for one, other in zip(found["each"], found["once"], strict=True))
    what = f"tune 6 explained variances x 8 layer sets, {n_layers} layers, d={d}"
    yield Row(what, *times, 10, f"48 editors {'equal to the bit' if same else 'differ'}", same, (1, 3))
