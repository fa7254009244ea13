from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from plotting.conftest import LAYERS, WIDTH, cells, frames, labels, plots, rendered

import sea_lens as sl
from sea_lens import plotting
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import InputError
from sea_lens.worlds.demo import OrganismResult


def points(axes):
    """Marks on stems, sorted."""
    marks = [found for found in axes.collections if not isinstance(found, LineCollection)]
    return sorted((x, round(y, 5)) for found in marks for x, y in found.get_offsets().tolist())


def expected_points(editor):
    gains = {layer: editor[layer].strength * editor[layer].eigenvalues for layer in editor.layers}
    return sorted((layer, round(float(gain), 5)) for layer, found in gains.items() for gain in found)


def test_editors_of_several_sites_and_without_directions_are_drawn(editor):
    shift = AffineEdit.of_shift(torch.full((8,), 2.0))
    sites = sl.Editor({"blocks.1.hook_mlp_out": shift, "blocks.1.hook_resid_post": shift.scaled(-1.0)})
    (axes,) = plotting.plot_editor(sites).axes
    assert points(axes) == [(0.0, round(32**0.5, 5)), (1.0, -round(32**0.5, 5))]
    assert labels(axes.get_xticklabels()) == [str(site) for site in sites.sites]
    assert points(plotting.plot_editor(sl.random_editor_like(editor, 0)).axes[0]) == []


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_an_editor_is_a_point_per_direction_at_its_gain(editor, strength):
    (axes,) = rendered(plotting.plot_editor(editor.scaled(strength))).axes
    assert points(axes) == expected_points(editor.scaled(strength))
    assert len(points(axes)) >= 2 * LAYERS
    marks = [found for found in axes.collections if not isinstance(found, LineCollection)]
    pairs = [pair for found in marks for pair in zip(found.get_facecolors(), found.get_offsets(), strict=True)]
    colors = {(tuple(color), y > 0) for color, (_, y) in pairs}
    assert len(colors) == 2  # one color above zero, another below


def test_the_demos_figure_has_its_table_its_editor_and_its_layers(results):
    by_layer = pd.DataFrame({"this layer alone": [0.5, 0.6, 0.4], "all but this layer": [0.8, 0.7, 0.9]})
    table = pd.DataFrame({"truthful": [0.5, 0.9, 0.4, 0.1], "low": [0.4, 0.8, 0.3, 0.0], "high": [0.7, 1.0, 0.5, 0.2]})
    table.index = ["plain", "edited", "random editors (3)", "swapped"]
    demo_result = OrganismResult(table, by_layer, pd.DataFrame(), [0.3, 0.4, 0.5], results["tuning"], 8, 20, 0.1)
    figure = rendered(plotting.plot_organism(demo_result))
    bars, gains, layers = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], table["truthful"])
    (spans,) = (found for found in bars.collections if isinstance(found, LineCollection))
    np.testing.assert_allclose([segment[:, 0] for segment in spans.get_segments()], table[["low", "high"]])
    assert labels(bars.get_yticklabels()) == list(table.index)
    assert points(gains) == expected_points(results["tuning"].best)
    drawn = {line.get_label(): line.get_ydata() for line in layers.lines}
    for column, values in demo_result.by_layer.items():
        np.testing.assert_array_equal(drawn[column], values)
    assert set(drawn["plain"]) == {0.5}
    assert set(drawn["the whole editor"]) == {0.9}
    assert bars.get_title().startswith("20 facts")


def test_every_setting_of_a_tuning_is_a_cell_and_the_best_is_framed(results):
    tuning = results["tuning"]
    figure = rendered(plotting.plot_tuning(tuning))
    table = tuning.table
    shares, layers = (labels(ticks) for ticks in (figure.axes[0].get_yticklabels(), figure.axes[0].get_xticklabels()))
    assert layers == ["first:1", "all", "last:1"]
    assert list(map(float, shares)) == sorted(set(table["explained_variance"]))
    seen = 0
    for axes in plots(figure):
        center, strength = "center yes" in axes.get_title(), float(axes.get_title().rsplit(" ", 1)[1])
        rows = table[(table["center"] == center) & (table["strength"] == strength)]
        best = (
            {(shares.index(str(rows.at[0, "explained_variance"])), layers.index(rows.at[0, "layers"]))}
            if 0 in rows.index
            else set()
        )
        expected = {
            (shares.index(str(row.explained_variance)), layers.index(row.layers)): f"{100 * row.score:.0f}"
            for row in rows.itertuples()
        }
        assert cells(axes) == expected
        assert frames(axes) == best
        seen += len(rows)
    assert seen == len(table) == 2 * 2 * 2 * 3
    image = axes.images[0]
    worse, better = (image.cmap(image.norm(tuning.unedited.share + step)) for step in (-0.2, 0.2))
    assert better[1] > better[0]  # greener than red
    assert worse[0] > worse[1]
    half = replace(tuning, table=table.iloc[::2].reset_index(drop=True))
    texts = [text for axes in plots(plotting.plot_tuning(half)) for text in cells(axes).values() if text]
    assert len(texts) == 12
    kinds = [("Tanh", "ELU", np.nan, "Identity")[row % 4] for row in range(len(table))]
    curved = replace(tuning, table=table.assign(feature_map=kinds)[["method", "feature_map", *table.columns[1:]]])
    figure = rendered(plotting.plot_tuning(curved))
    assert labels(figure.axes[0].get_yticklabels()) == ["none", "ELU", "Identity", "Tanh"]
    assert "explained variance" in figure.axes[0].get_title()


def test_spectra_are_drawn_as_in_their_table_with_the_ranks_kept(results):
    spectra = results["spectra"]
    figure = rendered(plotting.plot_spectra(spectra))
    assert [axes.get_title() for axes in plots(figure)] == [f"layer {layer}" for layer in spectra.table.index]
    for axes, layer in zip(plots(figure), spectra.table.index, strict=True):
        curves = spectra.curves[spectra.curves["layer"] == layer]
        for index, side in enumerate(("positive", "negative")):
            line, mark = axes.lines[2 * index : 2 * index + 2]
            found = curves[curves["side"] == side]
            np.testing.assert_array_equal(line.get_xydata(), found[["rank", "explained"]])
            assert list(mark.get_xdata()) == [spectra.table.at[layer, f"rank_{side}"]]
            assert axes.texts[index].get_text() == str(spectra.table.at[layer, f"rank_{side}"])


def test_angles_and_movement_are_drawn_as_in_their_tables(results):
    spectra = results["spectra"]
    table = spectra.table.assign(rank_positive=[2, 2, 3], rank_negative=[2, 3, 3])
    angles, moved = rendered(plotting.plot_principal_angles(replace(spectra, table=table))).axes
    dots, alone = angles.collections
    np.testing.assert_array_equal(dots.get_offsets(), spectra.angles[["layer", "degrees"]])
    np.testing.assert_array_equal(alone.get_offsets(), [[1, 90]])
    lines = {line.get_label(): line.get_ydata() for line in moved.lines}
    for role in ("neutral", "positive", "negative"):
        np.testing.assert_array_equal(lines[f"{role} moved"], table[f"moved_{role}"])
    np.testing.assert_array_equal(lines["neutral, 1 - cosine"], 1 - table["cosine_neutral"])


AWKWARD = ("$x$", " a\nb", "$", "\\frac{", "_^", "  ", "é", "%", "$\\alpha$", "\t", "")


def test_an_editor_without_subspaces_is_drawn_by_its_gains(activations):
    sites = [sl.Site(0, "attn.hook_z"), sl.Site(0)]
    editor = sl.Editor({site: sl.AffineEdit.of_shift(torch.full((WIDTH,), 2.0)) for site in sites})
    sides = {role: dict.fromkeys(sites, activations[role][0]) for role in ("positive", "negative")}
    spectra = sl.measure_spectra(editor, sl.Activations.from_tensors(**sides))
    gains, moved = rendered(plotting.plot_principal_angles(spectra)).axes
    (dots,) = gains.collections
    np.testing.assert_allclose(dots.get_offsets()[:, 1], [2 * WIDTH**0.5] * 2)
    assert [label.get_text() for label in moved.get_xticklabels()] == list(map(str, sites))
    assert [line.get_label() for line in moved.lines] == ["positive moved", "negative moved"]
    with pytest.raises(InputError, match="cuts no subspaces"):
        plotting.plot_spectra(spectra)


@pytest.mark.parametrize("most", [2, 3, 12])
def test_directions_are_rows_those_of_the_largest_gains_first(results, most):
    directions = results["directions"]
    table = directions.table.assign(raises=[AWKWARD] * len(directions.table))
    figure = rendered(plotting.plot_directions(replace(directions, table=table), most=most))
    drawn = figure.axes[0].tables[0].get_celld()
    shown = [[drawn[row, column].get_text().get_text() for column in range(4)] for row in range(1, len(drawn) // 4)]
    half = most // 2
    kept = table if len(table) <= most else table.iloc[[*range(half), *range(len(table) - most + half, len(table))]]
    assert [row[:2] for row in shown] == [[row.kind, f"{row.gain:+.2f}"] for row in kept.itertuples()]
    assert "a\\nb" in shown[0][2]
    assert "\n" not in shown[0][2]
    assert shown[0][2].count(r"\$") == 5


def test_one_panel_is_drawn_in_axes_given_and_several_in_a_figure_given(editor, results):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    assert plotting.plot_editor(editor, axes=right) is figure
    assert points(right) == expected_points(editor)
    assert not left.has_data()
    whole = plt.figure(layout="constrained")
    _, below = whole.subfigures(2, 1)
    assert plotting.plot_effects(results["effects"], figure=below) is whole
    assert len(below.axes) == len(results["effects"].table)
    rendered(whole)
    plt.close("all")


def test_notebooks_show_a_figure_that_pyplot_does_not_know(editor):
    assert plotting.plot_editor(editor)._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_saved_figures_embed_their_fonts_as_type_42_and_the_style_sheet_does_the_same(editor, tmp_path):
    plotting.plot_editor(editor).savefig(tmp_path / "editor.pdf")
    assert b"/FontFile2" in (tmp_path / "editor.pdf").read_bytes()  # TrueType; Type 3 has none
    assert b"/Type3" not in (tmp_path / "editor.pdf").read_bytes()
    with plotting.styled():
        inside = matplotlib.rcParams["pdf.fonttype"], matplotlib.rcParams["axes.spines.top"]
    assert inside == (42, False)
    assert matplotlib.rcParams["axes.spines.top"]
