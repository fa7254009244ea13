import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from sea_lens import Editor, EditorCard, random_editor
from sea_lens.analysis.effects import Proportion
from sea_lens.edits import LowRankEdit
from sea_lens.organism.experiment import OrganismResult, RandomControls
from sea_lens.plotting import plot_editor, plot_organism

EIGENVALUES = {0: [0.9, -0.4], 2: [0.25], 3: [], 5: [1.0, 0.5, -1.0]}
PNG = b"\x89PNG\r\n\x1a\n"


def make_editor(eigenvalues=EIGENVALUES, strength=1.0):
    edits = {
        layer: LowRankEdit(torch.eye(8)[:, : len(values)], torch.tensor(values, dtype=torch.float32), strength=strength)
        for layer, values in eigenvalues.items()
    }
    return Editor(edits, EditorCard("by hand", {}))


def make_result():
    by_layer = {
        "this layer alone": {0: 0.5, 2: 0.6, 3: 0.4, 5: 0.7},
        "all but this layer": dict.fromkeys([0, 2, 3, 5], 0.8),
    }
    return OrganismResult(
        editor=make_editor(),
        plain=Proportion(10, 20),
        edited=Proportion(18, 20),
        swapped=Proportion(2, 20),
        random=RandomControls((0.4, 0.5, 0.6)),
        by_layer=pd.DataFrame(by_layer).rename_axis("layer"),
        examples=pd.DataFrame(),
        fit_seconds=0.1,
    )


@pytest.fixture(autouse=True)
def nothing_open(monkeypatch):
    """No figure stays with pyplot, and none is shown."""
    shown = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: shown.append(True))
    plt.close("all")
    yield
    assert plt.get_fignums() == []
    assert not shown


def scattered(axes):
    """The collections of points, without the lines that lead to them."""
    return [found for found in axes.collections if not isinstance(found, LineCollection)]


def points(axes):
    return sorted((x, round(y, 6)) for found in scattered(axes) for x, y in found.get_offsets().tolist())


def expected_points(strength=1.0):
    return sorted((layer, round(strength * v, 6)) for layer, values in EIGENVALUES.items() for v in values)


@pytest.mark.parametrize("strength", [1.0, 2.0, -0.5])
def test_an_editor_is_drawn_as_one_point_an_eigenvalue(strength):
    figure = plot_editor(make_editor(strength=strength))
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert points(axes) == expected_points(strength)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "strength x eigenvalue")
    assert "promoted" in axes.get_title()
    assert axes.get_xticks().tolist() == [0, 2, 3, 5]


def test_promoted_and_suppressed_directions_differ_in_colour():
    (axes,) = plot_editor(make_editor({0: [0.9, -0.4]})).axes
    (dots,) = scattered(axes)
    up, down = dots.get_facecolors()
    assert not (up == down).all()


def test_editors_of_many_layers_and_of_no_eigenvalues_are_drawn():
    wide = plot_editor(make_editor({layer: [0.5] for layer in range(32)}))
    assert len(points(wide.axes[0])) == 32
    assert wide.get_figwidth() > plot_editor(make_editor()).get_figwidth()
    assert points(plot_editor(make_editor({0: []})).axes[0]) == []
    assert points(plot_editor(random_editor(make_editor(), 0)).axes[0]) == []


def test_the_organisms_figure_has_three_panels():
    figure = plot_organism(make_result())
    assert isinstance(figure, Figure)
    bars, eigenvalues, layers = figure.axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.5, 0.9, 0.5, 0.1])
    assert [label.get_text() for label in bars.get_yticklabels()] == [
        "plain",
        "edited",
        "random editors (3)",
        "swapped",
    ]
    assert bars.get_xlabel() == "truthful answers"
    assert "20 facts" in bars.get_title()
    assert points(eigenvalues) == expected_points()
    assert eigenvalues.get_xlabel() == layers.get_xlabel() == "layer"
    assert layers.get_ylabel() == "truthful answers"
    drawn = {line.get_label(): list(line.get_ydata()) for line in layers.lines}
    assert drawn["this layer alone"] == [0.5, 0.6, 0.4, 0.7]
    assert drawn["all but this layer"] == [0.8] * 4
    assert set(drawn["plain"]) == {0.5}
    assert set(drawn["the whole editor"]) == {0.9}
    assert {text.get_text() for text in layers.get_legend().get_texts()} == set(drawn)


def test_error_bars_span_the_intervals():
    table = make_result().table
    bars = plot_organism(make_result()).axes[0]
    (spans,) = [c for c in bars.collections if isinstance(c, LineCollection)]
    drawn = [(segment[0][0], segment[1][0]) for segment in spans.get_segments()]
    assert [low for low, _ in drawn] == pytest.approx(table["low"].tolist())
    assert [high for _, high in drawn] == pytest.approx(table["high"].tolist())


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_figures_can_be_saved(tmp_path, ending):
    for number, figure in enumerate([plot_editor(make_editor()), plot_organism(make_result())]):
        path = tmp_path / f"{number}.{ending}"
        figure.savefig(path)
        content = path.read_bytes()
        assert len(content) > 5000
        assert ending != "png" or content.startswith(PNG)
