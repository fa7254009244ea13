import json
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from sea_lens import Activations, Questions, fit_sea, random_editor_like
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.evaluation.compare import Benchmark, compare
from sea_lens.evaluation.crows_pairs import evaluate_crows_pairs
from sea_lens.evaluation.data_efficiency import data_efficiency, draw
from sea_lens.evaluation.perplexity import evaluate_perplexity
from sea_lens.evaluation.transfer import transfer
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa
from sea_lens.worlds.demo import collect

FIT = partial(fit_sea, explained_variance=0.8, progress=False)
PARTS = ("neutral", "positive", "negative")


@pytest.fixture(scope="module")
def model(organism):
    return organism[0]


@pytest.fixture(scope="module")
def activations(organism):
    model, world = organism
    return collect(model, replace(world, fitting=world.fitting[::4]))


@pytest.fixture(scope="module")
def editor(activations):
    return FIT(activations)


@pytest.fixture(scope="module")
def benchmarks(organism):
    _, world = organism
    facts = world.held_out
    return {
        "truth": partial(evaluate_truthfulqa, questions=world.questions(facts[::12]), prompt="plain"),
        "pairs": partial(evaluate_crows_pairs, questions=world.questions(facts[5::20])),
    }


@pytest.fixture(scope="module")
def comparison(model, editor, benchmarks):
    editors = {"SEA": editor, "late": editor.last_layers(2), "random": random_editor_like(editor, 0)}
    return compare(model, editors, benchmarks, repeats=2, progress=False)


def forward_passes(model, run):
    """How often the model is run, and what `run` returns."""
    seen = []
    counter = model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    try:
        result = run()
    finally:
        counter.remove()
    return len(seen), result


# --- comparison --------------------------------------------------------------------------------------------------------


def test_every_evaluation_fits_the_protocol_of_a_benchmark(benchmarks):
    assert all(isinstance(benchmark, Benchmark) for benchmark in [*benchmarks.values(), partial(evaluate_bbq)])


def test_a_comparison_holds_what_single_evaluations_say(model, comparison, benchmarks):
    table = comparison.table
    assert list(table.index) == ["unedited", "SEA", "late", "random"]
    for name, benchmark in benchmarks.items():
        plain = benchmark(model, editor=None, folder=None, progress=False)
        own, column = plain.table.loc[plain.headline], f"{name} {plain.headline}"
        assert (own["value"], own["low"], own["high"]) == tuple(
            table.loc["unedited", [column, f"{name} low", f"{name} high"]]
        )
        assert table.loc["unedited", [f"{name} change", f"{name} p_value"]].isna().all()
        for called, editor in comparison.editors.items():
            alone = benchmark(model, editor=editor, folder=None, progress=False)
            own = alone.table.loc[alone.headline]
            assert table.at[called, column] == own["edited"] == comparison.evaluations[called][name].score
            for what in ("change", "low", "high", "p_value"):
                assert table.at[called, f"{name} {what}"] == own[what]
    assert table.at["SEA", "truth change"] > 0.2  # the editor does something


def test_the_long_table_has_a_row_for_every_metric(comparison):
    long = comparison.long
    assert len(long) == 4 * (3 + 3)
    for editor, row in comparison.evaluations.items():
        for name, evaluation in row.items():
            found = long[(long["editor"] == editor) & (long["benchmark"] == name)].set_index("metric")
            score = evaluation.table["value" if editor == "unedited" else "edited"]
            pd.testing.assert_series_equal(found["score"], score, check_names=False)
            pd.testing.assert_series_equal(found["low"], evaluation.table["low"])


@pytest.mark.parametrize("kept", [True, False])
def test_the_unedited_model_is_scored_once_whatever_the_number_of_editors(model, editor, benchmarks, tmp_path, kept):
    benchmark = {"truth": benchmarks["truth"]}
    editors = {"a": editor, "b": editor.scaled(0.5)}
    folder = tmp_path if kept else None
    once, _ = forward_passes(model, lambda: benchmark["truth"](model, editor=None, folder=None, progress=False))
    all_of_it, _ = forward_passes(
        model, lambda: compare(model, editors, benchmark, folder=folder, repeats=0, progress=False)
    )
    assert all_of_it == 3 * once > 0
    if kept:
        again, _ = forward_passes(
            model, lambda: compare(model, editors, benchmark, folder=folder, repeats=0, progress=False)
        )
        assert again == 0


def test_costs_are_those_of_the_editor(comparison, editor, tmp_path):
    editor.save_pretrained(tmp_path)
    table = comparison.table
    assert table.at["SEA", "bytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert pd.isna(table.at["random", "bytes"])  # which cannot be saved
    assert pd.isna(table.at["unedited", "bytes"])
    assert table.at["SEA", "rank"] == sum(int(editor.card.layers[layer]["rank"]) for layer in editor.layers)
    assert list(table["layers"][1:]) == ["0-3", "2-3", "0-3"]
    assert table["fit_seconds"].isna().all()  # nothing was fitted
    assert (table["slowdown"] > 0).all()
    assert comparison.timed_on == "2 pairs of passes over 8 texts of up to 6 tokens on cpu"


@dataclass(frozen=True, eq=False)
class SlowEdit(AffineEdit):
    def __call__(self, h):
        time.sleep(0.2)
        return super().__call__(h)


def test_a_slow_editor_and_a_slow_fit_are_found_out(model, editor, benchmarks):
    first = editor[0]
    slow = SlowEdit(first.directions, first.eigenvalues, first.shift, restore_norm=first.restore_norm)

    def fit():
        time.sleep(0.2)
        return replace(editor, edits={0: slow, 2: editor[2], 3: editor[3]})

    benchmark = {"truth": benchmarks["truth"]}
    options = {"timed_on": ["Q Ada home A", "Q Bela job A"], "repeats": 3, "progress": False}
    found = compare(model, {"slow": fit, "quick": editor}, benchmark, **options)
    assert 0.2 <= found.table.at["slow", "fit_seconds"] < 10
    assert found.table.at["slow", "slowdown"] > 1.5 * found.table.at["quick", "slowdown"]
    assert found.table.at["slow", "layers"] == "0,2-3"
    assert found.timed_on == "3 pairs of passes over 2 texts of up to 5 tokens on cpu"


def test_where_only_texts_are_read_their_beginnings_are_timed(model, editor):
    texts = [f"<anyone> Q {name} home A Oslo ." for name in ("Ada", "Bela", "Cem")]

    def perplexity(model, **options):
        return evaluate_perplexity(model, texts, **options)

    found = compare(model, {"SEA": editor}, {"texts": perplexity}, repeats=1, progress=False)
    assert (found.table["slowdown"] > 0).all()
    assert found.timed_on == "1 pairs of passes over 3 texts of up to 8 tokens on cpu"


def test_tables_for_papers_put_intervals_beside_their_numbers(comparison):
    head, _, *rows = comparison.to_markdown().splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[:4] == ["editor", "truth MC1", "truth change", "truth p"]
    assert columns[-4:] == ["slowdown", "bytes", "rank", "layers"]  # nothing was fitted, so no seconds
    cells = [dict(zip(columns, map(str.strip, row.strip("|").split("|")), strict=True)) for row in rows]
    table = comparison.table
    assert cells[0]["truth MC1"] == "{:.3g} [{:.3g}, {:.3g}]".format(
        *table.loc["unedited", ["truth MC1", "truth low", "truth high"]]
    )
    assert cells[0]["truth change"] == ""
    assert cells[1]["truth MC1"] == f"{table.at['SEA', 'truth MC1']:.3g}"
    assert cells[1]["truth change"] == "{:+.3g} [{:.3g}, {:.3g}]".format(
        *table.loc["SEA", ["truth change", "truth low", "truth high"]]
    )
    latex = comparison.to_latex()
    assert latex.startswith(r"\begin{tabular}")
    assert all(cell in latex for cell in cells[1].values() if cell)


def test_a_comparison_is_a_folder(model, editor, benchmarks, tmp_path):
    editors = {"SEA / 1": editor, "SEA : 1": editor.scaled(0.5)}  # names that no folder can have, and that collide
    comparison = compare(model, editors, {"truth": benchmarks["truth"]}, repeats=0, progress=False)
    written = comparison.save(tmp_path / "out")
    assert all(path.is_file() for path in written)
    assert len(set(written)) == len(written)
    table = pd.read_csv(tmp_path / "out" / "comparison.csv", index_col="editor")
    np.testing.assert_allclose(table["truth MC1"], comparison.table["truth MC1"])
    assert len(pd.read_csv(tmp_path / "out" / "metrics.csv")) == len(comparison.long)
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert facts["headlines"] == {"truth": "MC1"}
    for name, own in {"unedited": None, **comparison.editors}.items():
        made = json.loads((tmp_path / "out" / facts["evaluations"][name]["truth"] / "evaluation.json").read_text())
        assert made["editor"] == (None if own is None else made["editor"])
        if own is not None:
            assert made["editor"]["fingerprint"] == own.fingerprint == facts["editors"][name]


@pytest.mark.usefixtures("without_type_checks")
def test_impossible_comparisons(model, editor, benchmarks):
    def passes(**given):
        options = {"editors": {"SEA": editor}, "benchmarks": benchmarks, "progress": False} | given
        return compare(model, **options)

    for given in ({"editors": {}}, {"benchmarks": {}}, {"editors": {"unedited": editor}}):
        with pytest.raises(InputError, match="At least one editor and one benchmark"):
            passes(**given)
    with pytest.raises(InputError, match="repeats is a number of pairs"):
        passes(repeats=-1)
    with pytest.raises(InputError, match="No texts were given to time"):
        passes(timed_on=[])
    with pytest.raises(InputError, match="Editor 'folder': for it was given a str"):
        passes(editors={"folder": "somewhere"})
    with pytest.raises(InputError, match="the function given for it returned a dict"):
        passes(editors={"folder": dict})
    with pytest.raises(InputError, match=r"Sources are activations, .* {'words': 'list'} were given"):
        transfer(model, {"words": ["a"]}, benchmarks, progress=False)
    wide = {layer: torch.randn(8, 64) for layer in (0, 1)}
    alien = fit_sea(
        Activations.from_tensors(neutral=wide, positive=wide, negative={k: v.flip(0) for k, v in wide.items()}), 0.5
    )

    def refused():
        with pytest.raises(ModelMismatchError, match="d_model 64"):
            passes(editors={"alien": alien})

    assert forward_passes(model, refused)[0] == 0  # before anything was run


# --- transfer ----------------------------------------------------------------------------------------------------------


def test_transfer_is_every_fit_on_every_benchmark(model, activations, editor, benchmarks, tmp_path):
    found = transfer(model, {"truth": activations, "given": editor.scaled(2.0)}, benchmarks, fit=FIT, progress=False)
    assert found.changes.shape == (2, 2)
    assert list(found.changes.index) == ["truth", "given"]
    assert list(found.changes.columns) == ["truth", "pairs"]
    for source, own in {"truth": FIT(activations), "given": editor.scaled(2.0)}.items():
        for name, benchmark in benchmarks.items():
            alone = benchmark(model, editor=own, folder=None, progress=False)
            row = alone.table.loc[alone.headline]
            assert found.changes.at[source, name] == row["change"]
            assert (found.low.at[source, name], found.high.at[source, name]) == (row["low"], row["high"])
            assert found.unedited[name] == row["unedited"]
    lines = found.to_markdown().splitlines()
    assert lines[2].startswith(f"| unedited | {found.unedited['truth']:.3g} [")
    assert lines[3].startswith(f"| truth | {found.changes.at['truth', 'truth']:+.3g} [")
    assert "slowdown" not in found.table
    saved = pd.read_csv(found.save(tmp_path)[-1], index_col="source")
    np.testing.assert_allclose(saved, found.changes)


# --- data efficiency ---------------------------------------------------------------------------------------------------

FITTED = []


def counted_fit(activations):
    """Says how many demonstrations it was given, and breaks off where that is asked for."""
    if FITTED and FITTED[0] == "kill at" and len(FITTED) - 2 == FITTED[1]:
        raise KeyboardInterrupt
    FITTED.append(activations.n)
    return FIT(activations)


@pytest.fixture(autouse=True)
def nothing_fitted():
    FITTED.clear()


def test_draws_are_rows_in_order_without_repeats_and_hold_smaller_draws(activations):
    numbered = {0: torch.arange(60.0)[:, None].repeat(1, 3)}
    whole = Activations.from_tensors(neutral=numbered, positive=numbered, negative=numbered)
    drawn = {size: draw(whole, size, seed=4) for size in (10, 25, 60)}
    rows = {size: found.neutral[0][:, 0].tolist() for size, found in drawn.items()}
    assert all(own == sorted(set(own)) and len(own) == size for size, own in rows.items())
    assert set(rows[10]) < set(rows[25]) < set(rows[60])
    assert draw(whole, 10, seed=5).neutral[0][:, 0].tolist() != rows[10]
    some = draw(activations, 7, seed=0)
    place = [int((activations.neutral[2] == row).all(1).nonzero()[0, 0]) for row in some.neutral[2]]
    for part in PARTS:
        assert torch.equal(some[part][3], activations[part][3][place])
    assert some.demonstrations != activations.demonstrations
    with pytest.raises(InputError, match="61 demonstrations were asked for, and there are 60"):
        draw(whole, 61, seed=0)


def test_every_fit_is_that_of_its_draw(model, activations, benchmarks):
    benchmark = benchmarks["truth"]
    found = data_efficiency(model, activations, benchmark, sizes=(60, 5), seeds=(3, 8), fit=counted_fit, progress=False)
    assert FITTED == [5, 5, 60]  # all demonstrations once
    table = found.table
    assert list(table["size"]) == FITTED
    assert list(table["seed"][:2]) == [3, 8]
    assert pd.isna(table.at[2, "seed"])
    for index, (size, seed) in enumerate([(5, 3), (5, 8), (60, 0)]):
        chosen = np.sort(torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:size].numpy())
        parts = {part: {k: v[chosen] for k, v in activations[part].items()} for part in PARTS}
        alone = benchmark(model, editor=FIT(Activations.from_tensors(**parts)), folder=None, progress=False)
        own = alone.table.loc["MC1"]
        assert table.at[index, "score"] == own["edited"]
        assert list(table.loc[index, ["change", "low", "high", "p_value"]]) == list(
            own[["change", "low", "high", "p_value"]]
        )
    assert found.unedited.score == own["unedited"]


def test_the_curve_has_students_interval_over_draws(model, activations, benchmarks):
    found = data_efficiency(model, activations, benchmarks["truth"], sizes=(2, 60), fit=FIT, progress=False)
    scores = found.table["score"].to_numpy()[:3]
    assert scores.std() > 0
    reach = 4.302652729749462 * scores.std(ddof=1) / np.sqrt(3)  # the 97.5 % quantile at two degrees of freedom
    few, whole = found.curve.loc[2], found.curve.loc[60]
    np.testing.assert_allclose(
        few[["fits", "mean", "low", "high", "change", "lowest", "highest"]],
        [
            3,
            scores.mean(),
            scores.mean() - reach,
            scores.mean() + reach,
            scores.mean() - found.unedited.score,
            scores.min(),
            scores.max(),
        ],
    )
    assert whole["fits"] == 1
    assert whole[["low", "high"]].isna().all()
    narrow = replace(found, confidence=0.5).curve.loc[2]
    assert narrow["high"] - narrow["low"] < few["high"] - few["low"]
    lines = found.to_markdown().splitlines()
    assert lines[2].startswith(f"| unedited |  | {found.unedited.score:.3g} [")
    assert lines[3] == f"| 2 | 3 | {few['mean']:.3g} [{few['low']:.3g}, {few['high']:.3g}] | {few['change']:+.3g} |"
    assert lines[4] == f"| 60 | 1 | {whole['mean']:.3g} | {whole['change']:+.3g} |"


def test_the_interval_over_draws_ends_where_scores_do(model, activations, benchmarks):
    found = data_efficiency(model, activations, benchmarks["truth"], sizes=[60], fit=FIT, progress=False)
    fits = pd.DataFrame({"size": [5, 5, 9, 9, 60], "score": [0.8, 1.0, 0.0, 0.4, 0.5]})
    curve = replace(found, table=fits).curve
    assert curve["high"][5] == 1
    assert curve["low"][9] == 0
    assert curve["high"][9] == 1
    assert curve.loc[60, ["low", "high"]].isna().all()
    assert (replace(found, table=fits, confidence=0.3).curve["high"][:2] < 1).all()


def test_sizes_by_default_go_up_to_all_there_are(model, activations, benchmarks):
    found = data_efficiency(model, activations, benchmarks["pairs"], seeds=[0], fit=FIT, progress=False)
    assert list(found.table["size"]) == [25, 50, 60]


def test_a_killed_run_goes_on_where_it_stopped(model, activations, benchmarks, tmp_path):
    def run(**options):
        given = {"sizes": (5,), "seeds": (0, 1, 2), "folder": tmp_path / "kept", "fit": counted_fit} | options
        return data_efficiency(model, activations, benchmarks["truth"], progress=False, **given)

    whole = run(folder=None)
    FITTED[:] = ["kill at", 1]
    with pytest.raises(KeyboardInterrupt):
        run()
    assert FITTED[2:] == [5]
    FITTED.clear()
    resumed = run()
    assert FITTED == [5, 5]
    same = [name for name in whole.table if name != "fit_seconds"]
    pd.testing.assert_frame_equal(resumed.table[same], whole.table[same])
    (tmp_path / "kept" / "fits" / "5-1" / "fit.json").write_text("{cut")
    FITTED.clear()
    pd.testing.assert_frame_equal(run().table[same], whole.table[same])
    assert FITTED == [5]  # the damaged one
    FITTED.clear()
    more = run(sizes=(5, 60))
    assert FITTED == [60]
    pd.testing.assert_frame_equal(more.table[same][:3], whole.table[same])
    count, _ = forward_passes(model, run)
    assert count == 0
    assert json.loads((tmp_path / "kept" / "fits" / "5-0" / "evaluation.json").read_text())["benchmark"] == "TruthfulQA"


def test_a_folder_of_another_experiment_is_refused(model, activations, benchmarks, tmp_path):
    def run(given=activations, benchmark="truth", fit=FIT):
        data_efficiency(
            model, given, benchmarks[benchmark], sizes=[5], seeds=[0], fit=fit, folder=tmp_path, progress=False
        )

    run()
    run(fit=partial(fit_sea, explained_variance=0.8, progress=False))
    others = [
        ({"given": activations.swapped()}, "activations"),
        ({"benchmark": "pairs"}, "benchmark"),
        ({"fit": partial(fit_sea, explained_variance=0.9, progress=False)}, "fit"),
        ({"fit": lambda found: fit_sea(found, 0.8)}, "fit"),
        ({"fit": counted_fit}, "fit"),
    ]
    for options, what in others:
        with pytest.raises(FileFormatError, match=f"fits that differ in {what}\\. Choose another folder"):
            run(**options)
    (tmp_path / "data_efficiency.json").write_text("[")
    with pytest.raises(FileFormatError, match="could not be read"):
        run()


def test_lambdas_are_told_apart_by_what_they_do(model, activations, benchmarks, tmp_path):
    def run(fit):
        options = {"sizes": [5], "seeds": [0], "folder": tmp_path, "progress": False}
        data_efficiency(model, activations, benchmarks["truth"], fit=fit, **options)

    def with_share(share):
        return lambda found: fit_sea(found, share)

    run(with_share(0.8))
    run(with_share(0.8))
    with pytest.raises(FileFormatError, match="differ in fit"):
        run(with_share(0.9))


def test_data_efficiency_is_a_folder(model, activations, benchmarks, tmp_path):
    found = data_efficiency(model, activations, benchmarks["truth"], sizes=[5], seeds=[0], fit=FIT, progress=False)
    assert all(path.is_file() for path in found.save(tmp_path))
    facts = json.loads((tmp_path / "result.json").read_text())
    assert facts["unedited"] == pytest.approx(found.unedited.score)
    assert facts["curve"][0]["mean"] == pytest.approx(found.curve.at[5, "mean"])
    assert pd.read_csv(tmp_path / "fits.csv")["score"].tolist() == pytest.approx(found.table["score"].tolist())
    assert "demonstrations 5: " in repr(found)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [10, 61]}, r"sizes of 1 to 60, the number of demonstrations; sizes \[61\]"),
        ({"sizes": [0, 10]}, r"sizes \[0\]"),
        ({"sizes": []}, r"sizes \[\] and seeds"),
        ({"seeds": []}, r"seeds \[\] were given"),
        ({"seeds": 3}, r"such as range\(3\)"),
        ({"confidence": 1.0}, r"confidence must be inside \(0, 1\), and 1.0 was given"),
    ],
)
def test_impossible_data_efficiency(model, activations, benchmarks, options, message):
    with pytest.raises(InputError, match=message):
        data_efficiency(model, activations, benchmarks["truth"], fit=FIT, progress=False, **options)


def test_any_architecture_is_compared(bridge):
    generator = torch.Generator().manual_seed(0)
    parts = {part: {1: torch.randn(12, 32, generator=generator)} for part in PARTS}
    activations = Activations.from_tensors(**parts, model=bridge)
    questions = Questions.from_lists(["a b", "c d"], [["e"], ["f g"]], [["h"], ["i"]])
    benchmark = {"few": partial(evaluate_truthfulqa, questions=questions, prompt="plain")}
    found = compare(bridge, {"SEA": partial(fit_sea, activations, 0.9)}, benchmark, repeats=1, progress=False)
    assert found.table["slowdown"].notna().all()
    assert found.table.at["SEA", "fit_seconds"] > 0
