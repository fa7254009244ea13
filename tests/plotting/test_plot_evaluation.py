from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from sea_lens import Activations, fit_sea
from sea_lens.errors import InputError
from sea_lens.evaluation.compare import compare
from sea_lens.evaluation.crows_pairs import evaluate_crows_pairs
from sea_lens.evaluation.data_efficiency import DataEfficiency
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.metrics import COST, SHARE, Scale, mean, metric_table, metrics_by_category
from sea_lens.evaluation.transfer import Transfer, transfer
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa
from sea_lens.plotting import plot_comparison, plot_data_efficiency, plot_evaluation, plot_transfer
from sea_lens.plotting.style import INK, PROMOTED, SUPPRESSED

METRICS = [mean("share", scale=SHARE), mean("other_share"), mean("nats", scale=COST)]


@pytest.fixture(autouse=True)
def nothing_open():
    """No figure stays with pyplot."""
    plt.close("all")
    yield
    assert plt.get_fignums() == []


def make_evaluation(edited=True, categories=0, n=60):
    generator = torch.Generator().manual_seed(0)

    def columns(shift):
        drawn = torch.rand(3, n, generator=generator, dtype=torch.float64)
        return {
            "rows": torch.ones(n, dtype=torch.float64),
            "share": (drawn[0] < 0.4 + shift).double(),
            "other_share": (drawn[1] < 0.6).double(),
            "nats": 5 * drawn[2] + shift,
        }

    sides = columns(0.0), columns(0.3) if edited else None
    # The last categories are the largest.
    names = [f"kind {int((row / n) ** 0.5 * categories)}" if categories else None for row in range(n)]
    table, by_category = metric_table(METRICS, *sides), metrics_by_category(METRICS, names, *sides)
    scales = {metric.name: metric.scale for metric in METRICS}
    return Evaluation("Rolls", "share", table, by_category, pd.DataFrame(), pd.DataFrame(), {}, scales)


def error_bars(container):
    """Middles and the ends of what is drawn by `errorbar`."""
    (bars,) = container.lines[2]
    return np.array([segment[:, 0] for segment in bars.get_segments()])


# --- one evaluation ----------------------------------------------------------------------------------------------------


def test_an_edited_evaluation_shows_both_scores_and_the_interval_of_the_change():
    evaluation = make_evaluation()
    shares, nats = plot_evaluation(evaluation).axes
    for axes, rows in ((shares, ["share", "other_share"]), (nats, ["nats"])):  # nats are on another scale
        table = evaluation.table.loc[rows]
        assert [label.get_text() for label in axes.get_yticklabels()] == [row.replace("_", " ") for row in rows]
        unedited = next(found for found in axes.collections if found.get_label() == "unedited")
        np.testing.assert_allclose(unedited.get_offsets()[:, 0], table["unedited"])
        (container,) = axes.containers
        np.testing.assert_allclose(container.lines[0].get_xdata(), table["edited"])
        ends = table[["unedited", "unedited"]].to_numpy() + table[["low", "high"]].to_numpy()
        np.testing.assert_allclose(error_bars(container), ends)
    assert shares.get_title() == "Rolls"


def test_no_interval_is_drawn_where_no_score_can_be():
    sides = [
        {
            name: torch.tensor(row, dtype=torch.float64)
            for name, row in (("rows", [1, 1]), ("share", said), ("nats", said))
        }
        for said in ([0, 1], [1, 1])
    ]
    table = metric_table([mean("share"), mean("nats")], *sides)
    evaluation = Evaluation("Two rolls", "share", table, *[pd.DataFrame()] * 3, {}, {"share": SHARE})
    assert table.loc["share", ["low", "change", "high"]].tolist() == [0.0, 0.5, 1.0]
    (axes,) = plot_evaluation(evaluation).axes
    np.testing.assert_allclose(error_bars(axes.containers[0]), [[0.5, 1.0], [0.5, 1.5]])


def test_an_unedited_evaluation_shows_its_own_intervals():
    evaluation = make_evaluation(edited=False)
    figure = plot_evaluation(evaluation)
    np.testing.assert_allclose(
        error_bars(figure.axes[0].containers[0]), evaluation.table.loc[["share", "other_share"], ["low", "high"]]
    )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["score, with its interval"]


def test_categories_are_sorted_by_change_colored_by_what_is_better():
    evaluation = make_evaluation(categories=5)
    axes = plot_evaluation(evaluation).axes[-1]
    found = evaluation.by_category.xs("share", level="metric").sort_values("change")
    bars = axes.patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], found["change"])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(f"{name} ({n})" for name, n in found["n"].items())
    assert [to_rgb(bar.get_facecolor()) for bar in bars] == [
        to_rgb(PROMOTED if change >= 0 else SUPPRESSED) for change in found["change"]
    ]
    assert axes.get_xlabel() == "change of share"
    other = plot_evaluation(evaluation, "nats").axes[-1].patches  # of which fewer are better
    changes = evaluation.by_category.xs("nats", level="metric")["change"].sort_values()
    np.testing.assert_allclose([bar.get_width() for bar in other], changes)
    assert [to_rgb(bar.get_facecolor()) for bar in other] == [
        to_rgb(SUPPRESSED if change > 0 else PROMOTED) for change in changes
    ]


@pytest.mark.parametrize("edited", [True, False])
def test_of_many_categories_the_largest_are_drawn(edited):
    evaluation = make_evaluation(edited, categories=50, n=600)
    axes = plot_evaluation(evaluation).axes[-1]
    sizes = evaluation.by_category.xs("share", level="metric")["n"]
    assert axes.get_title() == f"By category, the 40 largest of {len(sizes)}"
    drawn = [label.get_text().rsplit(" (", 1)[0] for label in axes.get_yticklabels()]
    assert len(drawn) == 40
    assert sizes[drawn].min() >= sizes.drop(drawn).max()


@pytest.mark.usefixtures("without_type_checks")
def test_a_metric_that_is_not_there():
    with pytest.raises(InputError, match="The metrics are share, other_share, nats, and 'MC1' was given"):
        plot_evaluation(make_evaluation(), "MC1")


# --- experiments -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(organism):
    """A model, an editor of random activations, and two benchmarks."""
    model, world = organism
    generator = torch.Generator().manual_seed(0)
    random = {role: {2: torch.randn(20, 128, generator=generator)} for role in ("neutral", "positive", "negative")}
    questions = world.questions(world.held_out[::12])
    benchmarks = {
        "truth": partial(evaluate_truthfulqa, questions=questions, prompt="plain"),
        "pairs": partial(evaluate_crows_pairs, questions=questions),
    }
    return model, fit_sea(Activations.from_tensors(**random), 0.7), benchmarks


@pytest.mark.parametrize("repeats", [0, 1])
def test_a_comparison_is_drawn_as_in_its_table(parts, repeats):
    model, editor, benchmarks = parts
    comparison = compare(model, {"one": editor, "two": editor.scaled(2.0)}, benchmarks, repeats=repeats, progress=False)
    axes = plot_comparison(comparison).axes
    assert len(axes) == 2 + repeats
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["unedited", "one", "two"]
    table = comparison.table
    for own, (name, headline) in zip(axes, {"truth": "MC1", "pairs": "stereotype_preferred"}.items(), strict=False):
        assert (own.get_title(), own.get_xlabel().split("\n")[0]) == (name, headline.replace("_", " "))
        scores = table[f"{name} {headline}"]
        np.testing.assert_allclose(own.collections[-1].get_offsets()[:, 0], scores)
        ends = table[[f"{name} low", f"{name} high"]].to_numpy() + scores["unedited"]
        ends[0] -= scores["unedited"]
        ends = ends.clip(0, 1)  # both scores are shares
        np.testing.assert_allclose(error_bars(own.containers[0]), ends)
    if repeats:
        np.testing.assert_allclose(axes[2].collections[-1].get_offsets()[:, 0], table["slowdown"])


@pytest.mark.parametrize(
    ("scale", "colors"),
    [
        (Scale(best=np.inf), (SUPPRESSED, PROMOTED, PROMOTED)),
        (Scale(best=0.0, low=0.0), (PROMOTED, SUPPRESSED, SUPPRESSED)),
        (Scale(best=0.5), (SUPPRESSED, PROMOTED, INK)),
        (Scale(), (INK, INK, INK)),
    ],
)
def test_a_comparison_is_colored_by_what_is_better(parts, scale, colors):
    model, editor, _ = parts
    scores = iter([0.4, 0.3, 0.5, 0.6])

    def benchmark(model, *, editor, folder, progress):
        score = next(scores)
        row = {"n": 9, "value": 0.4} if editor is None else {"n": 9, "edited": score, "change": score - 0.4}
        table = pd.DataFrame(row | {"low": np.nan, "high": np.nan, "p_value": np.nan}, index=["score"])
        return Evaluation("by hand", "score", table, *[pd.DataFrame()] * 3, {}, {"score": scale})

    editors = {"less": editor, "more": editor, "most": editor}
    (axes,) = plot_comparison(compare(model, editors, {"by hand": benchmark}, repeats=0, progress=False)).axes
    drawn = [to_rgb(color) for color in axes.collections[-1].get_facecolors()[1:]]
    assert drawn == [to_rgb(color) for color in colors]
    assert axes.get_xlabel() == f"score\n({scale})"


def test_transfer_is_a_heat_map_with_its_numbers(parts):
    model, editor, benchmarks = parts
    found = transfer(model, {"truth": editor, "elsewhere": editor.scaled(3.0)}, benchmarks, progress=False)
    axes, bar = plot_transfer(found).axes
    (image,) = axes.images
    edited = found.table.loc[found.changes.index]
    pairs = (found.unedited["pairs"] - 0.5, edited["pairs stereotype_preferred"] - 0.5)  # of which 0.5 is best
    gains = np.stack([found.changes["truth"], abs(pairs[0]) - abs(pairs[1])], axis=1)
    largest = np.abs(gains).max()
    np.testing.assert_allclose(image.get_array() * largest, gains, atol=1e-9)
    assert [text.get_text() for text in bar.get_yticklabels()] == [f"-{largest:.2g}", "0", f"+{largest:.2g}"]
    for text in axes.texts:
        column, row = map(int, text.get_position())
        chance = found.low.iat[row, column] <= 0 <= found.high.iat[row, column]
        number = f"{found.changes.iat[row, column]:+.3g}"
        assert text.get_text() == (f"({number})" if chance else number)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["truth", "elsewhere"]
    assert axes.get_xticklabels()[0].get_text() == f"truth\nMC1\n{found.unedited['truth']:.3g}"
    (frame,) = axes.patches
    assert frame.get_xy() == (-0.5, -0.5)


def test_benchmarks_on_different_scales_have_columns_of_their_own_scale(parts):
    model, editor, benchmarks = parts

    def nats(model, *, editor, folder, progress):
        found = evaluate_crows_pairs(model, benchmarks["pairs"].keywords["questions"], editor, progress=progress)
        headline = "log_probability_difference"
        return Evaluation("nats", headline, found.table * 10, *[pd.DataFrame()] * 3, {}, {headline: Scale(-np.inf)})

    found = transfer(model, {"one": editor}, {"nats": nats, **benchmarks}, progress=False)
    assert isinstance(found, Transfer)
    axes, _ = plot_transfer(found).axes
    changes, (shades,) = found.changes.loc["one"], axes.images[0].get_array()
    assert (shades[0], shades[1]) == (-np.sign(changes["nats"]), np.sign(changes["truth"]))
    assert changes["nats"] != 0


def test_data_efficiency_shows_every_fit_the_mean_and_the_unedited_score():
    unedited = make_evaluation(edited=False)
    table = pd.DataFrame(
        {
            "size": [25, 25, 25, 50, 50, 50, 400],
            "seed": pd.array([0, 1, 2, 0, 1, 2, None], dtype="Int64"),
            "score": [0.5, 0.55, 0.65, 0.6, 0.7, 0.72, 0.8],
        }
    )
    result = DataEfficiency(table, unedited)
    figure = plot_data_efficiency(result)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["25", "50", "400"]
    drawn = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(drawn["mean"].get_xydata(), result.curve.reset_index()[["size", "mean"]])
    assert set(drawn["unedited"].get_ydata()) == {unedited.score}
    (band,) = (found for found in axes.collections if isinstance(found, PolyCollection))
    corners = {(round(x), round(y, 9)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(k, round(result.curve.at[k, end], 9)) for k in (25, 50) for end in ("low", "high")}
    points = next(found for found in axes.collections if found.get_label() == "one fit")
    np.testing.assert_allclose(points.get_offsets(), table[["size", "score"]])
    low, high = axes.get_ylim()
    assert low < 0.5 < 0.8 < high
    assert axes.get_ylabel() == "Rolls share"
    (legend,) = figure.legends
    assert "95% interval of the mean over draws" in [text.get_text() for text in legend.get_texts()]
