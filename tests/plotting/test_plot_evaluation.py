from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from plotting.conftest import cells, ends, frames, labels, rendered

import sea_lens as sl
from sea_lens import plotting
from sea_lens.errors import InputError
from sea_lens.evaluation.data_efficiency import DataEfficiency
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.metrics import COST, SHARE, Scale, mean, metric_table, metrics_by_category
from sea_lens.plotting.style import INK, PROMOTED, SUPPRESSED, WARNING

BARE = {"control": 0, "damage": False, "progress": False}
METRICS = [mean("share", scale=SHARE), mean("other_share"), mean("nats", scale=COST)]


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
    # The last categories are the largest, the first are of one question.
    names = [f"kind {int((row / n) ** 0.5 * categories)}" if categories else None for row in range(n)]
    table, by_category = metric_table(METRICS, *sides), metrics_by_category(METRICS, names, *sides)
    scales = {metric.name: metric.scale for metric in METRICS}
    return Evaluation("Rolls", "share", table, by_category, pd.DataFrame(), pd.DataFrame(), {}, scales)


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation(categories=9)


# --- one evaluation --------------------------------------------------------------------------------------------------


def test_an_edited_evaluation_shows_both_scores_and_the_interval_of_the_change(evaluation):
    shares, nats, _ = rendered(plotting.plot_evaluation(evaluation)).axes
    for axes, rows in ((shares, ["share", "other_share"]), (nats, ["nats"])):  # nats are on another scale
        table = evaluation.table.loc[rows]
        assert labels(axes.get_yticklabels()) == [row.replace("_", " ") for row in rows]
        unedited = next(found for found in axes.collections if found.get_label() == "unedited")
        np.testing.assert_allclose(unedited.get_offsets()[:, 0], table["unedited"])
        (container,) = axes.containers
        np.testing.assert_allclose(container.lines[0].get_xydata()[:, 0], table["edited"])
        np.testing.assert_allclose(ends(container), table[["low", "high"]].add(table["unedited"], axis=0))
    assert shares.get_title() == "Rolls, n = 60"


def test_no_interval_is_drawn_where_no_score_can_be(evaluation):
    wide = replace(evaluation, table=evaluation.table.assign(low=-9.0, high=9.0))
    shares, nats, _ = plotting.plot_evaluation(wide).axes
    np.testing.assert_allclose(ends(shares.containers[0])[0], [0, 1])
    (low, high) = ends(nats.containers[0])[0]
    assert low == 0
    assert high == pytest.approx(evaluation.table.loc["nats", "unedited"] + 9)


def test_an_unedited_evaluation_shows_its_own_intervals():
    evaluation = make_evaluation(edited=False)
    figure = rendered(plotting.plot_evaluation(evaluation))
    expected = evaluation.table.loc[["share", "other_share"], ["low", "high"]]
    np.testing.assert_allclose(ends(figure.axes[0].containers[0]), expected)
    assert labels(figure.legends[0].get_texts()) == ["score, with its interval"]


@pytest.mark.parametrize(("metric", "better"), [("share", 1), ("nats", -1)])
def test_categories_are_sorted_colored_by_what_is_better_and_hollow_where_one_question_is_all(
    evaluation, metric, better
):
    axes = plotting.plot_evaluation(evaluation, metric).axes[-1]
    found = evaluation.by_category.xs(metric, level="metric").sort_values("n", ascending=False, kind="stable")
    found = found.sort_values("change", kind="stable")
    changes, sizes = found["change"].to_numpy(), found["n"].to_numpy()
    assert (sizes == 1).any()
    bars = axes.patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], changes)
    assert [label.rsplit(" (", 1)[1] for label in labels(axes.get_yticklabels())] == [f"{n})" for n in sizes]
    assert [bar.get_facecolor()[3] for bar in bars] == [float(n > 1) for n in sizes]
    expected = [PROMOTED if better * change > 0 else SUPPRESSED if change else INK for change in changes]
    assert [to_rgb(bar.get_edgecolor()) for bar in bars] == [to_rgb(color) for color in expected]
    intervals = next(one for one in axes.containers if not hasattr(one, "patches"))
    np.testing.assert_allclose(ends(intervals), found.loc[found["n"] > 1, ["low", "high"]])
    assert axes.get_title().endswith("hollow: one question, no interval")


def test_of_many_categories_the_largest_are_drawn():
    evaluation = make_evaluation(categories=50, n=600)
    axes = plotting.plot_evaluation(evaluation).axes[-1]
    sizes = evaluation.by_category.xs("share", level="metric")["n"]
    assert axes.get_title().startswith(f"By category, the 40 largest of {len(sizes)}")
    drawn = [label.rsplit(" (", 1)[0] for label in labels(axes.get_yticklabels())]
    assert len(drawn) == 40
    assert sizes[drawn].min() >= sizes.drop(drawn).max()


@pytest.mark.usefixtures("without_type_checks")
def test_a_metric_that_is_not_there(evaluation):
    with pytest.raises(InputError, match="The metrics are share, other_share, nats, and 'MC1' was given"):
        plotting.plot_evaluation(evaluation, "MC1")


def test_controls_are_crosses_and_damage_stands_above_in_red_where_the_model_is_broken():
    evaluation = make_evaluation()
    controls = pd.DataFrame({name: [-0.1, 0.2] for name in evaluation.table.index})
    for kl, color in ((0.5, INK), (7.0, WARNING)):
        table = pd.DataFrame(
            {"texts": 1, "tokens": 9, "unedited": 8.0, "edited": 9.0, "kl": kl}, index=["neutral text"]
        )
        found = replace(evaluation, damage=sl.Damage(table), controls=controls)
        figure = rendered(plotting.plot_evaluation(found))
        assert to_rgb(figure._suptitle.get_color()) == to_rgb(color)
        assert f"KL {kl:.3g} nats per token" in figure._suptitle.get_text().replace("\n", " ")
    axes = figure.axes[0]
    drawn = [one.get_offsets() for one in axes.collections if len(one.get_offsets()) == 2][-2:]
    expected = evaluation.table.loc[["share", "other_share"], "unedited"].to_numpy()[:, None] + [-0.1, 0.2]
    np.testing.assert_allclose([points[:, 0] for points in drawn], expected)
    assert "controls" in labels(figure.legends[0].get_texts())


# --- experiments -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmarks(questions):
    return {
        "truth": partial(sl.evaluate_truthfulqa, questions=questions, prompt="plain"),
        "pairs": partial(sl.evaluate_crows_pairs, questions=questions),
    }


def test_a_comparison_is_drawn_as_in_its_table(llama, editor, benchmarks):
    comparison = sl.compare(llama, benchmarks, {"one": editor, "two": editor.scaled(-1.0)}, **BARE)
    figure = rendered(plotting.plot_comparison(comparison))
    assert labels(figure.axes[0].get_yticklabels()) == ["unedited", "one", "two"]
    table = comparison.table
    for axes, (name, headline) in zip(figure.axes, comparison.headlines.items(), strict=True):
        assert (axes.get_title(), axes.get_xlabel().split("\n")[0]) == (name, headline.replace("_", " "))
        scores = table[f"{name} {headline}"]
        drawn = {round(y): x for marks in axes.collections[1:] for x, y in marks.get_offsets()}
        np.testing.assert_allclose([drawn[place] for place in range(3)], scores)
        expected = table[[f"{name} low", f"{name} high"]].to_numpy() + scores["unedited"]
        expected[0] -= scores["unedited"]
        np.testing.assert_allclose(ends(axes.containers[0]), expected.clip(0, 1))  # both scores are shares
    assert "unedited" in labels(figure.legends[0].get_texts())


@pytest.mark.parametrize(
    ("scale", "kinds"),
    [
        (Scale(best=np.inf), ("worse", "better", "better")),
        (Scale(best=0.0, low=0.0), ("better", "worse", "worse")),
        (Scale(best=0.5), ("worse", "better", "neither")),
        (Scale(), ("neither", "neither", "neither")),
    ],
)
def test_a_comparison_is_colored_by_what_is_better_and_its_legend_says_so(llama, editor, scale, kinds):
    scores = iter([0.4, 0.3, 0.5, 0.6])

    def benchmark(model, *, editor, folder, progress):
        score = next(scores)
        row = {"n": 9, "value": 0.4} if editor is None else {"n": 9, "edited": score, "change": score - 0.4}
        table = pd.DataFrame(row | {"low": np.nan, "high": np.nan, "p_value": np.nan}, index=["score"])
        return Evaluation("by hand", "score", table, *[pd.DataFrame()] * 3, {}, {"score": scale})

    editors = {"less": editor, "more": editor, "most": editor}
    comparison = sl.compare(llama, {"by hand": benchmark}, editors, **BARE)
    figure = plotting.plot_comparison(comparison)
    colors = {"better": PROMOTED, "worse": SUPPRESSED, "neither": INK}
    drawn = {
        round(y): to_rgb(marks.get_facecolors()[0])
        for marks in figure.axes[0].collections[1:]
        for _, y in marks.get_offsets()
    }
    assert [drawn[place] for place in (1, 2, 3)] == [to_rgb(colors[kind]) for kind in kinds]
    assert {label.split()[0] for label in labels(figure.legends[0].get_texts())} == {"unedited", *kinds}
    assert figure.axes[0].get_xlabel() == f"score\n({scale})"


@pytest.mark.filterwarnings("ignore::sea_lens.errors.BrokenModelWarning")
def test_figures_of_several_editors_say_which_are_broken(organism):
    model, world = organism
    benchmarks = {"truth": partial(sl.evaluate_truthfulqa, questions=world.questions()[:6])}
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    editor = sl.Editor({3: sl.AffineEdit.of_shift(1000 * direction)}, sl.EditorCard("by hand"))
    editors = {"mild": editor.scaled(1e-5), "far": editor}
    found = sl.compare(model, benchmarks, editors, control=1, progress=False)
    assert found.broken == ["far"]
    turned = sl.transfer(model, benchmarks, editors, control=1, progress=False)
    figures = plotting.plot_comparison(found), plotting.plot_transfer(turned)
    for figure in map(rendered, figures):
        names = [tick for tick in figure.axes[0].get_yticklabels() if tick.get_text() != "unedited"]
        assert [tick.get_text().split("\n")[0] for tick in names] == ["mild", "far"]
        assert [": broken" in tick.get_text() for tick in names] == [False, True]
        assert [to_rgb(tick.get_color()) == to_rgb(WARNING) for tick in names] == [False, True]
    assert "controls" in labels(figures[0].legends[0].get_texts())
    table = pd.DataFrame(
        {"size": [5, 5], "seed": [0, 1], "score": [0.4, 0.9], "is_broken": [False, True], "kl": [0.1, 9.0]}
    )
    result = DataEfficiency(table, make_evaluation(edited=False))
    (axes,) = rendered(plotting.plot_data_efficiency(result)).axes
    drawn = {one.get_label(): one.get_offsets()[:, 1].tolist() for one in axes.collections if one.get_label() != ""}
    assert drawn["one fit"] == [0.4]
    assert drawn["one fit that breaks the model"] == [0.9]
    assert "1 of 2 fits break the model (KL up to 9 nats per token)" in repr(result)


def test_transfer_is_a_heat_map_with_its_numbers(llama, editor, benchmarks):
    found = sl.transfer(llama, benchmarks, {"truth": editor, "elsewhere": editor.scaled(3.0)}, **BARE)
    axes, bar = rendered(plotting.plot_transfer(found)).axes
    edited = found.table.loc[found.changes.index]
    pairs = (found.unedited["pairs"] - 0.5, edited["pairs stereotype_preferred"] - 0.5)  # 0.5 is best
    gains = np.stack([found.changes["truth"], abs(pairs[0]) - abs(pairs[1])], axis=1)
    largest = np.abs(gains).max()
    np.testing.assert_allclose(axes.images[0].get_array() * largest, gains, atol=1e-9)
    assert labels(bar.get_yticklabels()) == [f"-{largest:.2g}", "0", f"+{largest:.2g}"]
    texts = cells(axes)
    assert len({len(text.strip("()")) for text in texts.values()}) == 1  # as many digits in every cell
    for (row, column), text in texts.items():
        chance = found.low.iat[row, column] <= 0 <= found.high.iat[row, column]
        assert text.startswith("(") == chance
        assert float(text.strip("()")) == pytest.approx(found.changes.iat[row, column], abs=0.005 * largest)
    assert labels(axes.get_yticklabels()) == ["truth", "elsewhere"]
    assert labels(axes.get_xticklabels())[0] == f"truth\nMC1\n{found.unedited['truth']:.3g}"
    assert frames(axes) == {(0, 0)}


def test_data_efficiency_shows_every_fit_the_mean_and_the_whole_band():
    table = pd.DataFrame(
        {
            "size": [25, 25, 25, 50, 50, 50, 400],
            "seed": pd.array([0, 1, 2, 0, 1, 2, None], dtype="Int64"),
            "score": [0.3, 0.55, 0.95, 0.6, 0.7, 0.72, 0.8],
        }
    )
    result = DataEfficiency(table, make_evaluation(edited=False))
    (axes,) = rendered(plotting.plot_data_efficiency(result)).axes
    assert labels(axes.get_xticklabels()) == ["25", "50", "400"]
    drawn = {line.get_label().split(",")[0]: line for line in axes.lines}
    np.testing.assert_allclose(drawn["mean"].get_xydata(), result.curve.reset_index()[["size", "mean"]])
    assert set(drawn["unedited"].get_ydata()) == {result.unedited.score}
    (band,) = (found for found in axes.collections if isinstance(found, PolyCollection))
    corners = {(round(x), round(y, 9)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(k, round(result.curve.at[k, end], 9)) for k in (25, 50) for end in ("low", "high")}
    low, high = axes.get_ylim()
    assert low <= result.curve["low"].min() < result.curve["high"].max() <= high
    points = next(found for found in axes.collections if found.get_label() == "one fit")
    np.testing.assert_allclose(points.get_offsets(), table[["size", "score"]])
