from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from plotting.conftest import LAYERS, WIDTH, cells, containers, ends, frames, labels, plots, rendered

import sea_lens as sl
from sea_lens import plotting
from sea_lens.errors import InputError
from sea_lens.models.activations import BySite
from sea_lens.plotting.style import in_words

ROLES = ("positive", "negative", "neutral")


def with_table(result, **columns):
    return replace(result, table=result.table.assign(**columns))


# --- ablation --------------------------------------------------------------------------------------------------------


def test_an_ablation_is_bars_and_curves_with_intervals_and_controls(results):
    ablation = results["ablation"]
    figure = rendered(plotting.plot_ablation(ablation))
    bars, curves = plots(figure)
    table = ablation.table.set_index("mode")
    for axes, mode, name in (
        (bars, "only", "this layer only"),
        (bars, "without", "all but this layer"),
        (curves, "first", "the first n layers"),
        (curves, "last", "the last n layers"),
    ):
        rows, drawn = table.loc[mode], containers(axes)[name]
        if axes is bars:
            np.testing.assert_allclose([bar.get_height() for bar in drawn], rows["change"])
            drawn = drawn.errorbar
        else:
            np.testing.assert_allclose(drawn.lines[0].get_xydata()[:, 0], rows["layer"].astype(float))
            np.testing.assert_allclose(drawn.lines[0].get_xydata()[:, 1], rows["change"])
        np.testing.assert_allclose(ends(drawn), rows[["low", "high"]])
    grey = [found for found in bars.containers if found.get_label() == "range of 2 controls"]
    for mode, found in zip(("only", "without"), grey, strict=True):
        spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in found.patches]
        np.testing.assert_allclose(spans, table.loc[mode, ["control_low", "control_high"]])
    for axes in (bars, curves):
        (whole,) = (line for line in axes.lines if line.get_label() == "the whole editor")
        assert set(whole.get_ydata()) == {table.loc["all", "change"]}
    assert bars.get_ylabel() == "change of answer KL"
    assert len(figure.legends[0].get_texts()) == 6


def test_an_ablation_of_one_mode_or_of_sets_has_one_panel(results):
    ablation = results["ablation"]
    for modes, name in ((["last"], "layers edited, n"), (["set"], "layers edited")):
        kept = ablation.table[ablation.table["mode"].isin(["none", "all", *modes])]
        (axes,) = plots(plotting.plot_ablation(replace(ablation, table=kept)))
        assert axes.get_xlabel() == name
    assert labels(axes.get_xticklabels()) == ["0,2"]
    assert axes.patches[0].get_height() == kept["change"].iloc[-1]


def test_sites_of_several_names_are_drawn_by_name(results):
    named = {0: "blocks.0.attn.hook_z", 1: "blocks.0.hook_resid_post", 2: "unembed.hook_in"}
    ablation = results["ablation"]
    found = with_table(ablation, layers=[tuple(named[k] for k in layers) for layers in ablation.table["layers"]])
    bars, _curves = plots(rendered(plotting.plot_ablation(found)))
    assert labels(bars.get_xticklabels()) == list(named.values())
    assert len(bars.patches) == 3 * 4  # three sites, in two modes, with the controls' range each
    pairs = results["interactions"]
    table = pairs.table.assign(first=pairs.table["first"].map(named), second=pairs.table["second"].map(named))
    renamed = replace(pairs, table=table, alone=pairs.alone.rename(index=named))
    axes, _ = rendered(plotting.plot_interactions(renamed)).axes
    assert labels(axes.get_xticklabels()) == list(named.values())


def test_interactions_are_cells_and_those_whose_interval_has_no_zero_are_framed(results):
    found = with_table(results["interactions"], low=[-1.0, 0.1, -2.0], high=[1.0, 0.2, -1.0])
    axes, _ = rendered(plotting.plot_interactions(found)).axes
    drawn = {place: text for place, text in cells(axes).items() if text}
    expected = {(row.second, row.first): f"{row.interaction:.2g}" for row in found.table.itertuples()}
    alone = {(layer, layer): f"({value:.2g})" for layer, value in found.alone["change"].items()}
    assert drawn == expected | alone
    assert frames(axes) == {(row.second, row.first) for row in found.table.iloc[1:].itertuples()}
    rendered(plotting.plot_interactions(with_table(found, interaction=0.0)))


# --- effects ---------------------------------------------------------------------------------------------------------


def test_every_effect_has_a_panel_and_no_interval_leaves_the_possible(results):
    effects = results["effects"]
    wide = with_table(effects, low=effects.table["change"] - 50, high=effects.table["change"] + 50)
    figure = rendered(plotting.plot_effects(wide))
    limits = {"accuracy": (0, 1), "right_probability": (0, 1), "top_token": (0, 1), "total_variation": (0, 1)}
    limits |= {"rank": (1, np.inf), "answer_kl": (0, np.inf)}
    table, shown = wide.table, {title.partition("\n")[0]: title for title in map(Axes.get_title, plots(figure))}
    for axes, name in zip(plots(figure), [name for name in table.index if in_words(name) in shown], strict=True):
        row = table.loc[name]
        for same in shown[in_words(name)].split("\n= "):
            np.testing.assert_allclose(table.loc[same.lower().replace(" ", "_")].astype(float), row.astype(float))
        edited, controls = axes.containers
        low, high = limits.get(name, (-np.inf, np.inf))
        assert edited.lines[0].get_ydata() == [row["edited"]]
        expected = max(low, row["unedited"] + row["low"]), min(high, row["unedited"] + row["high"])
        np.testing.assert_allclose(ends(edited), [expected])
        assert controls.lines[0].get_ydata() == [row["unedited"] + row["control"]]
        np.testing.assert_allclose(ends(controls), [row["unedited"] + row[["control_low", "control_high"]]])
    assert sorted(in_words(name) for name in table.index) == sorted("\n= ".join(shown.values()).split("\n= "))
    assert "answer KL" in shown
    assert "cut where the scale ends" in figure.get_suptitle()
    assert (
        "cut"
        not in plotting.plot_effects(
            with_table(effects, low=effects.table["change"], high=effects.table["change"])
        ).get_suptitle()
    )
    assert labels(figure.legends[0].get_texts()) == ["unedited", "edited", "3 controls (range)"]
    alone = plots(plotting.plot_effects(replace(effects, n_controls=0)))
    assert all(labels(axes.get_xticklabels()) == ["edited"] for axes in alone)


# --- probes and activations ------------------------------------------------------------------------------------------


def halved(activations):
    sides = {role: BySite({site: rows / 2 for site, rows in side.items()}) for role, side in activations.sides.items()}
    return replace(activations, sides=sides, editor="by hand")


def test_probes_are_drawn_as_in_their_table(activations):
    found = sl.probe_activations(activations, halved(activations), n_shuffles=2, progress=False)
    found = replace(found, table=found.table.astype(float))
    accuracy, margin, neutral = plots(rendered(plotting.plot_probes(found)))
    names = {"": "unedited", "edited_": "edited, same probe", "refitted_": "edited, refitted probe"}
    for prefix, name in names.items():
        drawn = containers(accuracy)[name]
        np.testing.assert_allclose(drawn.lines[0].get_xydata()[:, 1], found.table[f"{prefix}accuracy"])
        expected = found.table[[f"{prefix}accuracy_low", f"{prefix}accuracy_high"]].astype(float)
        np.testing.assert_allclose(ends(drawn), expected, atol=1e-9)
    for axes, column in ((margin, "margin"), (neutral, "neutral_positive")):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        for prefix, name in list(names.items())[:2]:
            np.testing.assert_array_equal(lines[name], found.table[f"{prefix}{column}"])
    (band,) = accuracy.collections[:1]
    ys = set(np.round(band.get_paths()[0].vertices[:, 1], 9))
    assert ys == set(np.round(found.table[["shuffled_low", "shuffled_high"]].to_numpy(dtype=float).ravel(), 9))
    one = replace(found, table=found.table.iloc[:1])
    assert plots(rendered(plotting.plot_probes(one)))[0].collections[0].get_paths()[0].vertices[:, 0].min() == -0.4


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_activations_are_points_a_panel_per_layer(activations, method):
    figure = rendered(plotting.plot_activations(activations, halved(activations), method=method, perplexity=5.0))
    assert [axes.get_title() for axes in plots(figure)] == ["layer 0", "layer 1", "layer 2"]
    for axes in plots(figure):
        clouds = {found.get_label(): found.get_offsets() for found in axes.collections}
        assert list(clouds) == [*ROLES, "neutral, edited"]
        assert {len(points) for points in clouds.values()} == {activations.n}
        if method == "pca":
            # Projections keep means: positives lie up and right of negatives, edited neutrals between.
            assert (clouds["positive"].mean(0) > clouds["negative"].mean(0)).all()


def test_principal_components_are_those_of_an_eigendecomposition(activations):
    (axes,) = plots(plotting.plot_activations(activations, layers=[1]))
    rows = torch.cat([activations[role][1] for role in ROLES]).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    expected = (rows - rows.mean(0)) @ vectors[:, [-1, -2]]
    drawn = np.concatenate([found.get_offsets() for found in axes.collections])
    np.testing.assert_allclose(np.abs(drawn), np.abs(expected), atol=1e-9)
    assert axes.get_xlabel() == f"component 1 ({values[-1] / values.sum():.0%} of variance)"
    many = sl.Activations.from_tensors(**{role: {layer: torch.randn(4, 3) for layer in range(32)} for role in ROLES})
    shown = [axes.get_title() for axes in plots(plotting.plot_activations(many))]
    assert shown == [f"layer {layer}" for layer in (0, 4, 9, 13, 18, 22, 27, 31)]
    two = sl.Activations.from_tensors(**{role: {0: torch.randn(4, 3)} for role in ROLES[:2]})
    assert len(plots(rendered(plotting.plot_activations(two)))[0].collections) == 2  # no neutral ones
    flat = sl.Activations.from_tensors(**{role: {0: torch.ones(4, 1)} for role in ROLES})
    assert "0% of variance" in plots(plotting.plot_activations(flat))[0].get_xlabel()


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "umap"}, "method must be 'pca' or 'tsne', and 'umap' was given"),
        ({"layers": [0, 5]}, r"Layers \[0, 5\] were asked for, and the activations have \[0, 1, 2\]"),
        ({"layers": []}, r"Layers \[\] were asked for"),
        ({"method": "tsne", "perplexity": 90}, r"below the number of points, 72; 90 was given\. Lower it"),
    ],
)
def test_impossible_pictures(activations, options, message):
    with pytest.raises(InputError, match=message):
        plotting.plot_activations(activations, **options)


# --- massive activations ---------------------------------------------------------------------------------------------


def test_massive_activations_are_cells_and_those_that_meet_the_criterion_framed():
    generator = torch.Generator().manual_seed(0)
    roles = {role: {k: torch.randn(20, WIDTH, generator=generator) for k in range(LAYERS)} for role in ROLES}
    roles["neutral"][2][3, 5] = -70_000.0
    massive = sl.massive_activations(sl.Activations.from_tensors(**roles))
    axes, _ = rendered(plotting.plot_massive_activations(massive)).axes
    rows = sorted(set(massive.table["coordinate"]))
    assert labels(axes.get_yticklabels()) == [str(row) for row in rows]
    expected = {(rows.index(row.coordinate), row.layer): f"{row.largest:.0f}" for row in massive.table.itertuples()}
    assert {place: text for place, text in cells(axes).items() if text} == expected
    assert frames(axes) == {(rows.index(5), 2)}
    zeros = sl.Activations.from_tensors(**{role: {0: torch.zeros(4, 3)} for role in ROLES})
    rendered(plotting.plot_massive_activations(sl.massive_activations(zeros)))
