"""The colors of all figures stay apart in gray and to color-blind readers, and stand in one place."""

import re
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

import sea_lens as sl
from sea_lens.plotting import style

ORDER = ("INK", "PROMOTED", "VIOLET", "SUPPRESSED", "GREY", "GOLD")
COLORS = {name: getattr(style, name) for name in ORDER}
# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB
SEEN_BY = {
    "normal": np.eye(3),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(color):
    values = np.array(to_rgb(color))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(values):
    """CIE L*a*b* of linear RGB, white point D65."""
    x, y, z = np.cbrt(TO_XYZ @ values.clip(0, 1) / (0.95047, 1.0, 1.08883))  # none of them is near black
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(color):
    """With white, as WCAG defines it."""
    return 1.05 / (linear(color) @ (0.2126, 0.7152, 0.0722) + 0.05)


def test_black_and_white_are_the_ends_of_the_scale():
    assert lab(linear("white")) == pytest.approx([100, 0, 0], abs=0.02)
    assert lab(linear("#777777"))[0] == pytest.approx(50.03, abs=0.02)
    assert contrast("black") == pytest.approx(21)


def test_in_gray_each_is_lighter_than_the_one_before():
    lightness = [lab(linear(color))[0] for color in COLORS.values()]
    assert min(np.diff(lightness)) > 5
    promoted, suppressed = (lab(linear(COLORS[name]))[0] for name in ("PROMOTED", "SUPPRESSED"))
    assert suppressed - promoted > 20


@pytest.mark.parametrize("reader", SEEN_BY)
def test_any_two_are_apart_for(reader):
    seen = {name: lab(SEEN_BY[reader] @ linear(color)) for name, color in COLORS.items()}
    assert {(a, b) for a, b in combinations(ORDER, 2) if np.linalg.norm(seen[a] - seen[b]) < 20} == set()


def test_text_and_marks_can_be_read_on_white():
    assert min(contrast(color) for color in (style.INK, style.PROMOTED, style.WARNING)) > 4.5
    assert contrast(style.SUPPRESSED) > 3


def test_the_style_sheet_has_the_same_colors():
    with sl.plotting.styled():
        cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()
    assert {to_hex(color) for color in cycle["color"]} == set(COLORS.values())
    looks = list(zip(cycle["color"], cycle["linestyle"], strict=True))
    assert len(set(looks)) == len(looks)


def test_colors_stand_in_one_place():
    literal = re.compile(r"#[0-9a-fA-F]{6}\b")
    modules = (path for path in Path(style.__file__).parent.glob("*.py") if path.name != "style.py")
    found = {path.name: set(literal.findall(path.read_text(encoding="utf-8"))) - {"#ffffff"} for path in modules}
    assert {name: colors for name, colors in found.items() if colors} == {}
