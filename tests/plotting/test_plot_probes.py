from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb

from sea_lens import Activations, probe_activations
from sea_lens.errors import InputError
from sea_lens.plotting import plot_activations, plot_probes

N, D = 30, 6
NAMES = ["positive", "negative", "neutral", "neutral, edited"]


@pytest.fixture(autouse=True)
def nothing_open():
    """No figure stays with pyplot."""
    plt.close("all")
    yield
    assert plt.get_fignums() == []


def make_activations(layers=(0, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Activations.from_tensors(
        **{
            role: {layer: torch.randn(N, D, generator=generator) + shift for layer in layers}
            for role, shift in (("positive", 1.0), ("negative", -1.0), ("neutral", 0.0))
        }
    )


def halved(activations):
    roles = {role: {k: v / 2 for k, v in activations[role].items()} for role in ("positive", "negative", "neutral")}
    return replace(activations, **roles, editor="by hand")


def lines(axes):
    """Label to y values of what is drawn with markers."""
    found = {container.get_label(): container.lines[0] for container in axes.containers}
    found |= {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    return {label: np.asarray(line.get_ydata(), dtype=float) for label, line in found.items()}


def clouds(axes):
    return {found.get_label(): found for found in axes.collections if isinstance(found, PathCollection)}


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


# --- probes ------------------------------------------------------------------------------------------------------------


def test_what_is_drawn_equals_the_table():
    activations = make_activations()
    probes = probe_activations(activations, halved(activations), n_shuffles=3, progress=False)
    table, figure = probes.table, plot_probes(probes)
    accuracy, margin, neutral = figure.axes
    drawn = lines(accuracy)
    names = {"": "unedited", "edited_": "edited, same probe", "refitted_": "edited, refitted probe"}
    for prefix, name in names.items():
        np.testing.assert_allclose(drawn[name], table[f"{prefix}accuracy"])
    for prefix in ("", "edited_"):
        np.testing.assert_allclose(lines(margin)[names[prefix]], table[f"{prefix}margin"])
        np.testing.assert_allclose(lines(neutral)[names[prefix]], table[f"{prefix}neutral_positive"])
    assert set(drawn["chance"]) == {0.5}
    for container, prefix in zip(accuracy.containers, names, strict=True):
        spans = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])
        np.testing.assert_allclose(spans, table[[f"{prefix}accuracy_low", f"{prefix}accuracy_high"]])
    (band,) = (found for found in accuracy.collections if isinstance(found, PolyCollection))
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(k, round(table.at[k, f"shuffled_{e}"], 6)) for k in table.index for e in ("low", "high")}
    assert [axes.get_xlabel() for axes in figure.axes] == ["layer"] * 3
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert "30 demonstrations" in accuracy.get_title()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["shuffled labels", "chance", *names.values()]


def test_probes_look_different_in_print_too():
    activations = make_activations()
    figure = plot_probes(probe_activations(activations, halved(activations), n_shuffles=0, progress=False))
    drawn = [container.lines[0] for container in figure.axes[0].containers]
    assert len({line.get_marker() for line in drawn}) == len({line.get_color() for line in drawn}) == 3


@pytest.mark.parametrize("n_shuffles", [0, 2])
def test_probes_of_one_layer_or_without_an_edit_are_drawn(n_shuffles):
    one = probe_activations(make_activations(layers=(4,)), n_shuffles=n_shuffles, progress=False)
    figure = plot_probes(one)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == (["shuffled labels"] if n_shuffles else []) + ["chance", "unedited"]
    assert list(lines(figure.axes[1])) == ["unedited"]


# --- activations -------------------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_unedited_activations():
    activations = make_activations()
    edited = halved(activations)
    figure = plot_activations(activations, edited)
    assert [axes.get_title() for axes in panels(figure)] == ["layer 0", "layer 2"]
    for axes, layer in zip(panels(figure), activations.layers, strict=True):
        sets = [activations[role][layer].double().numpy() for role in ("positive", "negative", "neutral")]
        known = np.concatenate(sets)
        values, vectors = np.linalg.eigh(np.cov(known.T))
        drawn = clouds(axes)
        assert list(drawn) == NAMES
        for name, found in zip(NAMES, [*sets, edited.neutral[layer].double().numpy()], strict=True):
            expected = (found - known.mean(0)) @ vectors[:, [-1, -2]]
            np.testing.assert_allclose(np.abs(drawn[name].get_offsets()), np.abs(expected), atol=1e-8)
        shares = values[::-1] / values.sum()
        assert axes.get_xlabel() == f"component 1 ({shares[0]:.0%} of variance)"
        assert axes.get_ylabel() == f"component 2 ({shares[1]:.0%})"
        means = [drawn[name].get_offsets().mean(0) for name in NAMES[:2]]
        assert (means[0] >= means[1]).all()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == NAMES


def test_t_sne_draws_every_point_and_is_deterministic():
    activations = make_activations(layers=(1,))
    edited = halved(activations)
    first, again = (plot_activations(activations, edited, method="tsne", perplexity=8.0) for _ in range(2))
    for name in NAMES:
        one, other = (clouds(panels(figure)[0])[name].get_offsets() for figure in (first, again))
        assert one.shape == (N, 2)
        np.testing.assert_array_equal(one, other)
    assert panels(first)[0].get_xlabel() == "t-SNE 1"
    other = clouds(panels(plot_activations(activations, edited, method="tsne", perplexity=20.0))[0])
    assert not np.allclose(other["positive"].get_offsets(), clouds(panels(first)[0])["positive"].get_offsets())


def test_the_four_kinds_differ_in_color_and_marker():
    activations = make_activations(layers=(1,))
    drawn = clouds(panels(plot_activations(activations, halved(activations)))[0]).values()
    assert len({to_rgb(found.get_facecolors()[0]) for found in drawn}) == 4
    assert len({found.get_paths()[0].vertices.tobytes() for found in drawn}) == 4
    assert list(clouds(panels(plot_activations(activations))[0])) == NAMES[:3]


def test_eight_layers_of_many_are_shown_in_two_rows():
    activations = make_activations(layers=range(32))
    shown = panels(plot_activations(activations))
    layers = [int(axes.get_title().split()[1]) for axes in shown]
    assert (len(layers), layers[0], layers[-1]) == (8, 0, 31)
    assert len({axes.get_subplotspec().rowspan.start for axes in shown}) == 2
    chosen = panels(plot_activations(activations, layers=[30, 1, 7, 8, 9]))
    assert [axes.get_title() for axes in chosen] == [f"layer {layer}" for layer in (1, 7, 8, 9, 30)]


def test_activations_that_are_all_equal_or_of_width_one_are_drawn():
    same = {role: {0: torch.ones(N, D)} for role in ("positive", "negative", "neutral")}
    (axes,) = panels(plot_activations(Activations.from_tensors(**same)))
    assert "0% of variance" in axes.get_xlabel()
    narrow = {role: {0: torch.randn(N, 1)} for role in ("positive", "negative", "neutral")}
    (axes,) = panels(plot_activations(Activations.from_tensors(**narrow)))
    assert "100% of variance" in axes.get_xlabel()


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "umap"}, "method is one of pca, tsne, and 'umap' was given"),
        ({"layers": [0, 5]}, r"Layers \[0, 5\] were asked for, and the activations have \[0, 2\]"),
        ({"layers": []}, r"Layers \[\] were asked for"),
        ({"method": "tsne", "perplexity": 90}, r"below the number of points, 90; 90 was given\. Lower it"),
        ({"edited": make_activations(layers=(1,))}, r"layers \[1\], which the unedited ones lack"),
    ],
)
def test_impossible_pictures(options, message):
    with pytest.raises(InputError, match=message):
        plot_activations(make_activations(), **options)
