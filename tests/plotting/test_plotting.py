import random
from itertools import product

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sea_lens import Editor, EditorCard, random_editor_like
from sea_lens.editing.edits import LowRankEdit
from sea_lens.methods.tune import Tuning
from sea_lens.plotting import plot_editor, plot_organism, plot_tuning
from sea_lens.statistics import Proportion
from sea_lens.worlds.demo import OrganismResult, RandomControls

EIGENVALUES = {0: [0.9, -0.4], 2: [0.25], 3: [], 5: [1.0, 0.5, -1.0]}
PNG = b"\x89PNG\r\n\x1a\n"


def make_editor(eigenvalues=EIGENVALUES, strength=1.0):
    edits = {
        layer: LowRankEdit(torch.eye(8)[:, : len(values)], torch.tensor(values, dtype=torch.float32), strength=strength)
        for layer, values in eigenvalues.items()
    }
    return Editor(edits, EditorCard("by hand", {}))


ORDERED_LAYERS = ["first:1", "first:2", "all", "last:2", "last:1", "0,3"]


def make_tuning(
    maps=("linear",), center=(False, True), strengths=(1.0,), shares=(0.5, 0.9), layers=("all", "first:1"), seed=0
):
    """Every setting with a score of its own, best first."""
    settings = list(product(maps, center, strengths, shares, layers))
    random.Random(seed).shuffle(settings)
    table = pd.DataFrame(settings, columns=["feature_map", "center", "strength", "explained_variance", "layers"])
    scores = [0.99 - 0.9 * index / len(table) for index in range(len(table))]
    table = table.assign(ranks="1+1", score=scores, low=0.0, high=1.0, kl=0.1)
    return Tuning(table, (make_editor(),) * len(table), Proportion(9, 20))


def make_result():
    by_layer = {
        "this layer alone": {0: 0.5, 2: 0.6, 3: 0.4, 5: 0.7},
        "all but this layer": dict.fromkeys([0, 2, 3, 5], 0.8),
    }
    return OrganismResult(
        tuning=make_tuning(),
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


def test_promoted_and_suppressed_directions_differ_in_color():
    (axes,) = plot_editor(make_editor({0: [0.9, -0.4]})).axes
    (dots,) = scattered(axes)
    up, down = dots.get_facecolors()
    assert not (up == down).all()


def test_editors_of_many_layers_and_of_no_eigenvalues_are_drawn():
    wide = plot_editor(make_editor({layer: [0.5] for layer in range(32)}))
    assert len(points(wide.axes[0])) == 32
    assert wide.get_figwidth() > plot_editor(make_editor()).get_figwidth()
    assert points(plot_editor(make_editor({0: []})).axes[0]) == []
    assert points(plot_editor(random_editor_like(make_editor(), 0)).axes[0]) == []


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


# --- tuning ----------------------------------------------------------------------------------------------------------


def panels(figure):
    """Axes that hold a heat map."""
    return [axes for axes in figure.axes if axes.images and axes.get_visible()]


def ticks(figure):
    """Labels of rows and of columns, which outer panels show for all."""
    found = []
    for labels in ("get_yticklabels", "get_xticklabels"):
        shown = {tuple(label.get_text() for label in getattr(axes, labels)()) for axes in panels(figure)}
        (texts,) = (texts for texts in shown if any(texts))
        found.append(list(texts))
    return found


def drawn_cells(figure):
    """By panel, explained variance and layers: the text in a cell, and the value that colors it."""
    rows, columns = ticks(figure)
    found = {}
    for axes in panels(figure):
        for text in axes.texts:
            column, row = text.get_position()
            cell = axes.get_title(), rows[row], columns[column]
            assert cell not in found
            found[cell] = text.get_text(), axes.images[0].get_array()[row, column]
    return found


def framed(figure):
    """Panel, explained variance and layers of every frame there is."""
    rows, columns = ticks(figure)
    found = []
    for axes in panels(figure):
        for frame in (patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()):
            assert (frame.get_width(), frame.get_height()) == (1, 1)
            x, y = frame.get_xy()
            found.append((axes.get_title(), rows[int(y + 0.5)], columns[int(x + 0.5)]))
    return found


def title_of(feature_map, center, strength):
    return f"{feature_map}\n{'centered' if center else 'uncentered'}, strength {strength:g}"


TUNINGS = {
    "one cell": {"center": (True,), "shares": (0.998,), "layers": ("all",)},
    "one panel": {"center": (True,), "layers": ORDERED_LAYERS},
    "one row of panels": {"strengths": (1.0, 2.0)},
    "as on the embedded model": {"strengths": (1.0, 2.0), "shares": (0.5, 0.8, 0.9, 0.99), "layers": ORDERED_LAYERS},
    "panels that do not fill the last row": {"maps": ("linear", "Tanh(scale=4.0)", "ELU(alpha=1.0)")},
    "feature maps": {"maps": ("Tanh(scale=4.0)", "linear", "ELU(alpha=1.0)"), "strengths": (0.5, 1.0)},
    "pairs": {"shares": (0.9, (0.9, 0.5), (0.5, 0.9))},
}


@pytest.mark.parametrize("kind", TUNINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_setting_of_a_tuning_is_a_cell_of_its_panel(kind, seed):
    tuning = make_tuning(**TUNINGS[kind], seed=seed)
    figure = plot_tuning(tuning)
    expected = {}
    for row in tuning.table.itertuples():
        cell = title_of(row.feature_map, row.center, row.strength), str(row.explained_variance), row.layers
        expected[cell] = f"{100 * row.score:.0f}", pytest.approx(row.score)
    assert drawn_cells(figure) == expected
    assert len(panels(figure)) == len({panel for panel, _, _ in expected})


@pytest.mark.parametrize("kind", TUNINGS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_frame_is_on_the_best_setting_alone(kind, seed):
    tuning = make_tuning(**TUNINGS[kind], seed=seed)
    best = tuning.table.iloc[0]
    title = title_of(best["feature_map"], best["center"], best["strength"])
    assert framed(plot_tuning(tuning)) == [(title, str(best["explained_variance"]), best["layers"])]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_panels_rows_and_columns_have_one_order_whatever_the_scores(seed):
    tuning = make_tuning(
        maps=("Tanh(scale=4.0)", "linear"),
        strengths=(2.0, 1.0),
        shares=(0.998, 0.5, 0.9),
        layers=ORDERED_LAYERS,
        seed=seed,
    )
    figure = plot_tuning(tuning)
    assert [axes.get_title() for axes in panels(figure)] == [
        title_of(*panel) for panel in product(("linear", "Tanh(scale=4.0)"), (False, True), (1.0, 2.0))
    ]
    assert ticks(figure) == [["0.5", "0.9", "0.998"], ORDERED_LAYERS]


def test_colors_tell_better_from_worse_than_the_unedited_model():
    tuning = make_tuning(center=(True,), layers=ORDERED_LAYERS)
    (axes,) = panels(plot_tuning(tuning))
    norm, colors = axes.images[0].norm, axes.images[0].cmap
    assert norm(tuning.unedited.share) == pytest.approx(0.5)
    (worse, better) = (colors(norm(tuning.unedited.share + step)) for step in (-0.2, 0.2))
    assert better[1] > better[0]  # greener than red
    assert worse[0] > worse[1]


@pytest.mark.parametrize("successes", [0, 20])
def test_an_unedited_score_of_0_or_1_is_drawn(successes):
    tuning = make_tuning()
    figure = plot_tuning(Tuning(tuning.table, tuning.editors, Proportion(successes, 20)))
    assert f"20 questions; {5 * successes}% unedited" in figure.axes[-1].get_ylabel()


def test_missing_cells_stay_empty():
    whole = make_tuning(strengths=(1.0, 2.0), layers=ORDERED_LAYERS)
    kept = whole.table.iloc[::2].reset_index(drop=True)
    figure = plot_tuning(Tuning(kept, whole.editors[::2], whole.unedited))
    texts = [text.get_text() for axes in panels(figure) for text in axes.texts]
    assert sorted(text for text in texts if text not in ("", "nan")) == sorted(
        f"{100 * score:.0f}" for score in kept["score"]
    )
    assert len(framed(figure)) == 1


def test_every_column_of_panels_has_its_layers_written_below():
    figure = plot_tuning(make_tuning(**TUNINGS["panels that do not fill the last row"]))
    lowest = {round(axes.get_position().x0, 3): axes for axes in panels(figure)}  # later rows replace earlier ones
    assert len(lowest) == 4
    for axes in lowest.values():
        assert any(label.get_visible() and label.get_text() for label in axes.get_xticklabels())


def test_missing_cells_say_nothing():
    whole = make_tuning(layers=ORDERED_LAYERS)
    figure = plot_tuning(Tuning(whole.table.iloc[::2].reset_index(drop=True), whole.editors[::2], whole.unedited))
    assert "nan" not in [text.get_text() for axes in panels(figure) for text in axes.texts]


@pytest.mark.parametrize("kind", TUNINGS)
def test_labels_fit(kind):
    figure = plot_tuning(make_tuning(**TUNINGS[kind]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page, renderer = figure.bbox, canvas.get_renderer()
    labels = [*figure.texts, figure._supxlabel, figure._supylabel]
    for axes in figure.axes:
        labels += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    for label in labels:
        if label.get_visible() and label.get_text():
            box = label.get_window_extent(renderer)
            assert box.x0 >= page.x0 - 1, label
            assert box.y0 >= page.y0 - 1, label
            assert box.x1 <= page.x1 + 1, label
            assert box.y1 <= page.y1 + 1, label
    titles = [axes.title.get_window_extent(renderer) for axes in panels(figure)]
    assert not any(one.overlaps(other) for index, one in enumerate(titles) for other in titles[:index])
    for axes in panels(figure):
        cell = axes.bbox.width / len(axes.get_xticks()), axes.bbox.height / len(axes.get_yticks())
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert all(box.width < cell[0] and box.height < cell[1] for box in boxes)
        rows = [label.get_window_extent(renderer) for label in axes.get_yticklabels() if label.get_visible()]
        assert not any(one.overlaps(other) for index, one in enumerate(rows) for other in rows[:index])


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_figures_can_be_saved(tmp_path, ending):
    figures = [plot_editor(make_editor()), plot_organism(make_result()), plot_tuning(make_tuning())]
    for number, figure in enumerate(figures):
        path = tmp_path / f"{number}.{ending}"
        figure.savefig(path)
        content = path.read_bytes()
        assert len(content) > 5000
        assert ending != "png" or content.startswith(PNG)
