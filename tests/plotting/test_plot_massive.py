"""Pictures of massive activations show what their tables say."""

import numpy as np
import pandas as pd

import sea_lens as sl
from sea_lens import plotting
from tests.plotting.conftest import containers, ends, labels, rendered

LAYERS = pd.DataFrame(
    {"largest": [3.0, 900.0, 950.0], "second": [2.0, 40.0, 41.0], "third": [1.0, 8.0, 9.0], "median": [0.1, 0.2, 0.3]}
).rename_axis("layer")
FOUND = sl.MassiveTokens(pd.DataFrame(), LAYERS, 100.0, 1000.0, 4)


def test_the_largest_of_each_layer_are_curves_on_a_logarithmic_axis():
    (axes,) = rendered(plotting.plot_massive_tokens(FOUND)).axes
    assert axes.get_yscale() == "log"
    curves = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert curves.keys() == set(LAYERS)
    for name, values in curves.items():
        np.testing.assert_array_equal(values, LAYERS[name])


def test_interventions_are_marks_with_intervals_in_the_order_of_the_table():
    table = pd.DataFrame(
        {"ratio": [1e5, 1.0, 1.1], "ratio_low": [9e4, 0.9, 1.05], "ratio_high": [2e5, 1.2, 1.3]},
        index=["zero", "mean", "next largest to zero"],
    )
    (axes,) = rendered(plotting.plot_interventions(sl.Interventions(table, 37.2, 11, FOUND, 8))).axes
    assert labels(axes.get_yticklabels()) == [*table.index[::-1]]
    assert axes.get_xscale() == "log"
    (bars,) = axes.containers
    np.testing.assert_allclose(ends(bars), table[["ratio_low", "ratio_high"]].to_numpy()[::-1])
    assert "after layer 11, 8 texts, 95% intervals (unedited 37.2)" in axes.get_title()
    assert not containers(axes)


def test_attention_and_variances_are_curves():
    columns = ["attention", "most", "norm", "bias_variance", "rest_variance"]
    table = pd.DataFrame([[0.1, 0.2, 0.3, 0.01, 0.5], [0.6, 0.9, 0.4, 0.02, 0.4]], columns=columns)
    (axes,) = rendered(plotting.plot_implicit_bias(sl.ImplicitBias(table, "first", 3))).axes
    curves = [list(line.get_ydata()) for line in axes.lines]
    assert curves == [table[name].tolist() for name in ("attention", "bias_variance", "rest_variance")]
    assert axes.get_title() == "Attention on the first token, 3 texts"
