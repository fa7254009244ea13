from dataclasses import replace
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sea_lens import Activations, fit_sea
from sea_lens.analysis.effects import Effects
from sea_lens.analysis.layers import Ablation, Interactions
from sea_lens.analysis.massive import massive_activations
from sea_lens.analysis.subspaces import measure_spectra
from sea_lens.analysis.tokens import Directions
from sea_lens.models.activations import ROLES
from sea_lens.plotting import (
    plot_ablation,
    plot_directions,
    plot_effects,
    plot_interactions,
    plot_massive_activations,
    plot_principal_angles,
    plot_spectra,
)

pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")

PNG = b"\x89PNG\r\n\x1a\n"
MODES = ("only", "without", "first", "last")


@pytest.fixture(autouse=True)
def nothing_open():
    """No figure stays with pyplot."""
    plt.close("all")
    yield
    assert plt.get_fignums() == []


def rendered(figure):
    """The figure, once it has been drawn without complaint."""
    assert isinstance(figure, Figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    assert buffer.getvalue().startswith(PNG)
    return figure


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def make_ablation(modes=MODES, layers=(0, 1, 3), sets=(), n_controls=0, seed=0):
    generator = np.random.default_rng(seed)
    rows = [("none", None, ()), ("all", None, tuple(layers))]
    for mode in modes:
        numbers = layers if mode in ("only", "without") else range(1, len(layers) + 1)
        rows += [(mode, number, (number,)) for number in numbers]
    rows += [("set", None, tuple(chosen)) for chosen in sets]
    change = generator.normal(size=len(rows))
    table = pd.DataFrame(
        {
            "mode": [mode for mode, _, _ in rows],
            "layer": pd.array([layer for _, layer, _ in rows], dtype="Int64"),
            "layers": [chosen for _, _, chosen in rows],
            "value": 1 + change,
            "change": change,
            "low": change - generator.uniform(0.1, 0.2, len(rows)),
            "high": change + generator.uniform(0.2, 0.3, len(rows)),
            "p_value": 0.5,
        }
    )
    if n_controls:
        middle = generator.normal(size=len(rows)) / 10
        table = table.assign(control=middle, control_low=middle - 0.05, control_high=middle + 0.1)
    return Ablation(table, pd.DataFrame(), "log_probability_difference", 20, n_controls, 0.95, seed)


def of_mode(ablation, mode):
    return ablation.table[ablation.table["mode"] == mode]


def error_bars(container):
    """Low and high ends of an error bar container."""
    return np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])


def bars(axes, label):
    (found,) = (one for one in axes.containers if one.get_label() == label and hasattr(one, "patches"))
    return found.patches


# --- ablation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_controls", [0, 3])
@pytest.mark.parametrize("layers", [(2,), (0, 1, 3), tuple(range(32))], ids=len)
def test_bars_curves_and_intervals_of_an_ablation_equal_its_table(n_controls, layers):
    ablation = make_ablation(layers=layers, n_controls=n_controls)
    figure = rendered(plot_ablation(ablation))
    one, many = panels(figure)
    names = {"only": "this layer only", "without": "all but this layer"}
    for mode, name in names.items():
        drawn, rows = bars(one, name), of_mode(ablation, mode)
        np.testing.assert_allclose([bar.get_height() for bar in drawn], rows["change"])
        middle = [bar.get_x() + bar.get_width() / 2 for bar in drawn]
        np.testing.assert_allclose(middle, rows["layer"].astype(float), atol=0.25)
    intervals = [found for found in one.containers if not hasattr(found, "patches")]
    for mode, found in zip(names, intervals, strict=True):
        np.testing.assert_allclose(error_bars(found), of_mode(ablation, mode)[["low", "high"]])
    for container, mode in zip(many.containers, ("first", "last"), strict=True):
        rows = of_mode(ablation, mode)
        np.testing.assert_allclose(container.lines[0].get_xdata(), rows["layer"].astype(float))
        np.testing.assert_allclose(container.lines[0].get_ydata(), rows["change"])
        np.testing.assert_allclose(error_bars(container), rows[["low", "high"]])
    for axes in (one, many):
        (whole,) = (line for line in axes.lines if line.get_label() == "the whole editor")
        assert set(whole.get_ydata()) == {ablation.table["change"][1]}
    assert (one.get_xlabel(), many.get_xlabel()) == ("layer", "layers edited, n")
    assert one.get_ylabel() == "change of log probability difference"
    assert figure.get_suptitle() == "20 questions, 95% intervals"
    known = ["the whole editor", *names.values(), "the first n layers", "the last n layers"]
    assert sorted(legend_of(figure)) == sorted(known + ["range of 3 controls"] * bool(n_controls))


def test_controls_of_an_ablation_are_drawn_where_they_fall():
    ablation = make_ablation(n_controls=3)
    one, many = panels(plot_ablation(ablation))
    grey = [found for found in one.containers if found.get_label() == "range of 3 controls"]
    for mode, found in zip(("only", "without"), grey, strict=True):
        rows = of_mode(ablation, mode)
        np.testing.assert_allclose([bar.get_y() for bar in found.patches], rows["control_low"])
        ends = [bar.get_y() + bar.get_height() for bar in found.patches]
        np.testing.assert_allclose(ends, rows["control_high"])
    bands = [found for found in many.collections if found.get_label() == "range of 3 controls"]
    for mode, found in zip(("first", "last"), bands, strict=True):
        rows = of_mode(ablation, mode)
        heights = set(np.round(found.get_paths()[0].vertices[:, 1], 9))
        assert heights == set(np.round([*rows["control_low"], *rows["control_high"]], 9))


@pytest.mark.parametrize("mode", MODES)
def test_a_single_mode_has_a_single_panel(mode):
    ablation = make_ablation(modes=(mode,))
    (axes,) = panels(rendered(plot_ablation(ablation)))
    assert axes.get_ylabel() == "change of log probability difference"


def test_an_ablation_of_sets_only_names_them():
    ablation = make_ablation(modes=(), sets=[(0, 1), (3,)])
    (axes,) = panels(rendered(plot_ablation(ablation)))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0,1", "3"]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], of_mode(ablation, "set")["change"])


def make_interactions(layers=(0, 2, 5), seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    rows = []
    for index, first in enumerate(layers):
        for second in layers[index + 1 :]:
            value = scale * generator.normal()
            rows.append(
                {"first": first, "second": second, "interaction": value, "low": value - 0.5, "high": value + 0.5}
            )
    table = pd.DataFrame(rows, columns=["first", "second", "interaction", "low", "high"])
    alone = pd.Series(generator.normal(size=len(layers)), index=list(layers))
    return Interactions(table, alone, "kl", 20, 0.95, seed)


@pytest.mark.parametrize("layers", [(0, 2), (0, 2, 5), tuple(range(16))], ids=len)
def test_interactions_are_cells_and_sure_ones_are_framed(layers):
    interactions = make_interactions(layers)
    axes = rendered(plot_interactions(interactions)).axes[0]
    grid = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    sure = set()
    for row in interactions.table.itertuples():
        place = layers.index(row.first), layers.index(row.second)
        assert grid[place[::-1]] == row.interaction
        assert texts[place] == f"{row.interaction:.2g}"
        if row.low > 0 or row.high < 0:
            sure.add(place)
    assert np.isfinite(grid).sum() == len(interactions.table)
    for index, value in enumerate(interactions.alone):
        assert texts[index, index] == f"{value:.2g}"
    frames = [found for found in axes.patches if isinstance(found, Rectangle)]
    corners = {tuple(np.round(np.array(found.get_xy()) + 0.5).astype(int)) for found in frames}
    assert corners == sure
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(layer) for layer in layers]
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_interactions_of_nothing_are_drawn():
    rendered(plot_interactions(make_interactions(scale=0.0)))


# --- effects -----------------------------------------------------------------------------------------------------------


def make_effects(names=("logit_difference", "accuracy", "kl", "rank", "top_token"), n_controls=0, seed=0):
    generator = np.random.default_rng(seed)
    unedited, change = generator.normal(size=(2, len(names)))
    columns = {"unedited": unedited, "edited": unedited + change, "change": change}
    table = pd.DataFrame(columns | {"low": change - 0.1, "high": change + 0.2}, index=pd.Index(names, name="effect"))
    if n_controls:
        middle = generator.normal(size=len(names)) / 10
        table = table.assign(control=middle, control_low=middle - 0.05, control_high=middle + 0.1)
    return Effects(table, pd.DataFrame(), pd.DataFrame(), 20, n_controls, 0.95, seed)


@pytest.mark.parametrize("n_controls", [0, 4])
@pytest.mark.parametrize("names", [("kl",), ("logit_difference", "accuracy", "kl", "rank", "top_token")], ids=len)
def test_every_effect_has_a_panel_with_its_means_intervals_and_controls(names, n_controls):
    effects = make_effects(names, n_controls)
    figure = rendered(plot_effects(effects))
    assert [axes.get_title() for axes in panels(figure)] == [name.replace("_", " ") for name in names]
    for axes, (_, row) in zip(panels(figure), effects.table.iterrows(), strict=True):
        row = row.astype(float)
        (line,) = (line for line in axes.lines if line.get_label() == "unedited")
        assert set(line.get_ydata()) == {row["unedited"]}
        edited, *controls = axes.containers
        assert edited.lines[0].get_ydata() == [row["edited"]]
        np.testing.assert_allclose(error_bars(edited)[0], (row["unedited"] + row[["low", "high"]]).to_numpy())
        assert len(controls) == bool(n_controls)
        for found in controls:
            np.testing.assert_allclose(list(found.lines[0].get_ydata()), [row["unedited"] + row["control"]])
            ends = row["unedited"] + row[["control_low", "control_high"]]
            np.testing.assert_allclose(error_bars(found)[0], ends.to_numpy())
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert ticks == ["edited", "controls"][: 1 + bool(n_controls)]
    assert legend_of(figure) == ["unedited", "edited"] + ["4 controls (range)"] * bool(n_controls)
    assert figure.get_suptitle() == "Means over 20 questions; 95% intervals of the change"


# --- spectra, angles, massive activations ------------------------------------------------------------------------------


def make_activations(layers=(0, 2), seed=0, d=8):
    generator = torch.Generator().manual_seed(seed)
    roles = {role: {layer: torch.randn(20, d, generator=generator) + 0.5 for layer in layers} for role in ROLES}
    return Activations.from_tensors(**roles)


def make_spectra(layers=(0, 2), ranks=(3, 2)):
    activations = make_activations(layers)
    return measure_spectra(fit_sea(activations, ranks=ranks), activations)


@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        ((4,), [4]),
        ((0, 2), [0, 2]),
        (tuple(range(5)), [0, 1, 2, 3, 4]),
        (tuple(range(32)), [0, 4, 9, 13, 18, 22, 27, 31]),
    ],
)
def test_spectra_are_drawn_as_in_their_table_with_the_ranks_kept(layers, shown):
    spectra = make_spectra(layers)
    figure = rendered(plot_spectra(spectra))
    assert [axes.get_title() for axes in panels(figure)] == [f"layer {layer}" for layer in shown]
    for axes, layer in zip(panels(figure), shown, strict=True):
        curves = spectra.curves[spectra.curves["layer"] == layer]
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        marks = [line for line in axes.lines if line.get_label().startswith("_")]
        for (side, found), mark in zip(curves.groupby("side", sort=False), marks, strict=True):
            np.testing.assert_array_equal(lines[side].get_ydata(), found["explained"])
            np.testing.assert_array_equal(lines[side].get_xdata(), found["rank"])
            assert list(mark.get_xdata()) == [spectra.table.at[layer, f"rank_{side}"]]
        assert [text.get_text() for text in axes.texts] == ["3", "2"]
        assert axes.get_xscale() == "log"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("rank", "explained variance")
    assert legend_of(figure) == ["positive", "negative"]


@pytest.mark.parametrize("layers", [(4,), (0, 2), tuple(range(32))], ids=len)
@pytest.mark.parametrize("ranks", [3, (3, 1)])
def test_angles_and_movement_are_drawn_as_in_their_tables(layers, ranks):
    spectra = make_spectra(layers, ranks)
    angles, moved = rendered(plot_principal_angles(spectra)).axes
    dots, *alone = (found for found in angles.collections if isinstance(found, PathCollection))
    np.testing.assert_array_equal(dots.get_offsets(), spectra.angles[["layer", "degrees"]])
    assert len(alone) == (ranks != 3)
    for found in alone:
        np.testing.assert_array_equal(found.get_offsets(), [[layer, 90] for layer in layers])
    lines = {line.get_label(): line.get_ydata() for line in moved.lines}
    for role in ROLES:
        np.testing.assert_array_equal(lines[f"{role} moved"], spectra.table[f"moved_{role}"])
    np.testing.assert_array_equal(lines["neutral, 1 - cosine"], 1 - spectra.table["cosine_neutral"])
    assert [axes.get_xlabel() for axes in (angles, moved)] == ["layer", "layer"]
    assert [axes.get_ylabel() for axes in (angles, moved)] == ["degrees", "share of the norm"]


@pytest.mark.parametrize("layers", [(4,), (0, 2), tuple(range(32))], ids=len)
@pytest.mark.parametrize("planted", [False, True])
def test_massive_activations_are_cells_and_those_that_meet_the_criterion_framed(layers, planted):
    activations = make_activations(layers)
    if planted:
        activations.neutral[layers[-1]][3, 5] = -70_000.0
        activations.positive[layers[-1]][3, 1] = 30_000.0
    massive = massive_activations(activations)
    figure = rendered(plot_massive_activations(massive))
    axes = figure.axes[0]
    coordinates = sorted(set(massive.table["coordinate"]))
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    expected = {
        (layers.index(row.layer), coordinates.index(row.coordinate)): f"{row.largest:.0f}"
        for row in massive.table.itertuples()
    }
    assert texts == expected
    assert len(axes.patches) == 2 * planted
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(k) for k in coordinates]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "coordinate")
    count = "2" if planted else "none"
    assert axes.get_title() == f"Largest coordinates; {count} above 100 and 1000 x the median"


def test_a_map_of_activations_that_are_all_zero_is_drawn():
    zeros = Activations.from_tensors(**{role: {0: torch.zeros(4, 3)} for role in ROLES})
    rendered(plot_massive_activations(massive_activations(zeros)))


# --- directions --------------------------------------------------------------------------------------------------------

AWKWARD = ("$x$", " a\nb", "$", "\\frac{", "_^", "  ", "é", "%", "$\\alpha$", "\t", "")


def make_directions(eigenvalues=(0.75, 0.25, -0.5), oriented=False, tokens=AWKWARD):
    rows = [
        {
            "kind": "promoted" if value > 0 else "suppressed",
            "eigenvalue": value,
            "raises": tuple(tokens),
            "lowers": (f"low{index}",),
        }
        for index, value in enumerate(eigenvalues)
    ]
    return Directions(pd.DataFrame(rows), 7, oriented)


def cells(figure):
    drawn = figure.axes[0].tables[0].get_celld()
    n_rows = 1 + max(row for row, _ in drawn)
    return [[drawn[row, column].get_text().get_text() for column in range(4)] for row in range(n_rows)]


@pytest.mark.parametrize("oriented", [False, True])
def test_directions_are_rows_of_kind_eigenvalue_and_tokens(oriented):
    figure = rendered(plot_directions(make_directions(oriented=oriented, tokens=(" yes", "no "))))
    assert cells(figure) == [
        ["", "eigenvalue", "raises most", "lowers most"],
        ["promoted", "+0.75", "yes  no", "low0"],
        ["promoted", "+0.25", "yes  no", "low1"],
        ["suppressed", "-0.50", "yes  no", "low2"],
    ]
    sign = "pointing to where activations lie" if oriented else "signs arbitrary"
    assert figure.axes[0].get_title() == f"What the edit at layer 7 reads and writes ({sign})"


def test_awkward_tokens_survive_rendering_and_stay_apart():
    figure = rendered(plot_directions(make_directions()))
    shown = cells(figure)[1][2]
    assert "\n" not in shown
    assert "a\\nb" in shown
    assert shown.count(r"\$") == 5
    assert "␣" in shown


@pytest.mark.parametrize("most", [2, 5, 12])
def test_of_many_directions_those_of_the_largest_eigenvalues_are_shown(most):
    values = [round(value, 3) for value in np.linspace(1, -1, 40)]
    shown = cells(rendered(plot_directions(make_directions(values, tokens=("a",)), most)))[1:]
    half = most // 2
    expected = [f"{value:+.2f}" for value in [*values[:half], *values[half - most :]]]
    assert [row[1] for row in shown] == expected


def test_drawing_leaves_the_tables_alone():
    ablation = make_ablation(n_controls=2)
    before = ablation.table.copy()
    plot_ablation(ablation)
    pd.testing.assert_frame_equal(ablation.table, before)
    directions = make_directions()
    kept = replace(directions, table=directions.table.copy())
    plot_directions(directions)
    pd.testing.assert_frame_equal(directions.table, kept.table)
