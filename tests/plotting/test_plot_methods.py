"""The figure of methods: a point per method at its damage and change, filled where it is more than chance."""

from itertools import pairwise

import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from sea_lens.plotting.methods import LEAST_KL, draw_methods

ROWS = pd.DataFrame(
    {
        "change": [0.3, 0.1, 0.2, 0.0],
        "low": [0.2, 0.0, 0.1, 0.0],
        "high": [0.4, 0.2, 0.3, 0.0],
        "kl": [0.1, 0.01, 0.5, 0.0],
        "control_low": [-0.1] * 4,
        "control_high": [0.05] * 4,
    },
    index=["strong", "gentle", "worse", "nothing"],
)


def test_points_names_and_front():
    axes = Figure().subplots()
    draw_methods(axes, ROWS, ["strong", "gentle", "worse"], label="here")
    drawn = [each for each in axes.collections if isinstance(each, PathCollection)]
    points = [tuple(map(float, each.get_offsets()[0])) for each in drawn]
    assert points == [(max(kl, LEAST_KL), change) for kl, change in zip(ROWS["kl"], ROWS["change"], strict=True)]
    assert {text.get_text() for text in axes.texts} == set(ROWS.index)
    step = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(step.get_ydata())[:2] == [0.1, 0.3]  # the third is bettered


def test_names_do_not_overlap():
    axes = Figure().subplots()
    alike = pd.concat([ROWS.iloc[[0]]] * 15).set_axis(list("abcdefghijklmno"))
    draw_methods(axes, alike, [])
    low, high = axes.get_ylim()
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert min(b - a for a, b in pairwise(heights)) >= (high - low) / 22 - 1e-9
    assert heights[-1] <= high + 1e-9
