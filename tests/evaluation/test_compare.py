"""Comparisons and transfer say what single evaluations say, and what editors cost."""

import time
from dataclasses import dataclass
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import Passes, low_rank, make_editor

from sea_lens import SEA, Activations, AffineEdit, Editor, EditorCard, Questions, compare, fit_sea, transfer
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.evaluation import costs
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.evaluation.benchmark import Benchmark
from sea_lens.evaluation.compare import Comparison
from sea_lens.evaluation.costs import forward_slowdown
from sea_lens.evaluation.crows_pairs import evaluate_crows_pairs
from sea_lens.evaluation.transfer import Transfer
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa

WORDS = ["red", "owl", "fox", "sea", "ink", "elm", "ice", "oak", "jam", "bee", "fig", "tin"]
QUESTIONS = Questions.from_lists(
    [f"What is {word}?" for word in WORDS], [[word] for word in WORDS], [[word] for word in reversed(WORDS)]
)
TEXTS = ["Once upon a time.", "The end of it.", "A story"]
BARE = {"control": 0, "damage": False}
"""Controls and damage are tested in test_guard.py."""
BENCHMARKS = {
    "truth": partial(evaluate_truthfulqa, questions=QUESTIONS, **BARE),
    "pairs": partial(evaluate_crows_pairs, questions=QUESTIONS[:8], **BARE),
}


@pytest.fixture(scope="module")
def activations(llama):
    generator = torch.Generator().manual_seed(0)
    sides = {part: {1: torch.randn(12, 32, generator=generator)} for part in ("neutral", "positive", "negative")}
    return Activations.from_tensors(**sides, model=llama)


@pytest.fixture(scope="module")
def comparison(llama, editor_of, activations):
    editor = editor_of(llama)
    editors = {"SEA / 1": editor, "SEA : 1": editor.at_layers([0, 2]), "fitted": partial(fit_sea, activations, 0.9)}
    return compare(llama, BENCHMARKS, editors, progress=False, **BARE)


def test_every_evaluation_fits_the_protocol_of_a_benchmark():
    assert all(isinstance(benchmark, Benchmark) for benchmark in [*BENCHMARKS.values(), partial(evaluate_bbq)])


def test_a_comparison_holds_what_single_evaluations_say(llama, comparison):
    table, long = comparison.table, comparison.long
    assert list(table.index) == ["unedited", "SEA / 1", "SEA : 1", "fitted"]
    assert len(long) == 4 * (3 + 3)
    for name, benchmark in BENCHMARKS.items():
        plain = benchmark(llama, progress=False)
        own, column = plain.table.loc[plain.headline], f"{name} {plain.headline}"
        assert (own["value"], own["low"], own["high"]) == tuple(
            table.loc["unedited", [column, f"{name} low", f"{name} high"]]
        )
        assert table.loc["unedited", [f"{name} change", f"{name} p_value"]].isna().all()
        for called, editor in comparison.editors.items():
            alone = benchmark(llama, editor=editor, progress=False)
            own = alone.table.loc[alone.headline]
            assert table.at[called, column] == own["edited"] == comparison.evaluations[called][name].score
            for what in ("change", "low", "high", "p_value"):
                assert table.at[called, f"{name} {what}"] == own[what]
            found = long[(long["editor"] == called) & (long["benchmark"] == name)].set_index("metric")
            assert found["score"].tolist() == alone.table["edited"].tolist()
            assert found["low"].tolist() == alone.table["low"].tolist()
    for name in BENCHMARKS:
        assert (table[f"{name} change"][1:] != 0).any()  # the editors do something


@pytest.mark.parametrize("kept", [True, False])
def test_the_unedited_model_is_scored_once_whatever_the_number_of_editors(llama, editor_of, tmp_path, counted, kept):
    benchmark = {"truth": BENCHMARKS["truth"]}
    editors = {"a": editor_of(llama), "b": editor_of(llama).scaled(0.5)}
    with counted(llama) as passes:
        BENCHMARKS["truth"](llama, progress=False)
        once = len(passes)
        transfer(llama, benchmark, editors, folder=tmp_path if kept else None, progress=False, **BARE)
        assert len(passes) - once == 3 * once > 0
        if kept:
            transfer(llama, benchmark, editors, folder=tmp_path, progress=False, **BARE)
            assert len(passes) == 4 * once


def test_costs_are_those_of_the_editor(comparison, llama, editor_of, tmp_path):
    editor_of(llama).save_pretrained(tmp_path)
    table = comparison.table
    weights, config = tmp_path / "editor.safetensors", tmp_path / "config.json"
    assert table.at["SEA / 1", "bytes"] == weights.stat().st_size + config.stat().st_size
    assert pd.isna(table.at["unedited", "bytes"])
    assert table["rank"].tolist()[1:3] == [12, 8]
    assert list(table["layers"][1:]) == ["0-2", "0,2", "1"]
    assert table["fit_seconds"].notna().tolist() == [False, False, False, True]
    assert (table["slowdown"] > 0).all()


@dataclass(frozen=True, eq=False)
class SlowEdit(AffineEdit):
    def __call__(self, h):
        time.sleep(0.2)
        return super().__call__(h)


def test_a_slow_editor_is_found_out(llama):
    basis = torch.eye(32)[:, :1]
    slow, quick = (Editor({0: edit(basis, basis)}, EditorCard("by hand")) for edit in (SlowEdit, AffineEdit))
    assert forward_slowdown(llama, TEXTS, slow, 3) > 1.5 * forward_slowdown(llama, TEXTS, quick, 3)
    with pytest.raises(InputError, match="no texts to time"):
        forward_slowdown(llama, [], quick)


def test_where_only_texts_are_read_their_beginnings_are_timed(llama, editor_of):
    found = compare(llama, {"perplexity": TEXTS}, {"SEA": editor_of(llama)}, progress=False, **BARE)
    assert (found.table["slowdown"] > 0).all()


def test_tables_for_papers_put_intervals_beside_their_numbers(comparison):
    head, _, plain, first, *_ = comparison.to_markdown().splitlines()
    columns, unedited, edited = ([cell.strip() for cell in row.strip("|").split("|")] for row in (head, plain, first))
    assert columns[:4] == ["editor", "truth MC1", "truth change", "truth p"]
    assert columns[-5:] == ["fit (s)", "slowdown", "bytes", "rank", "layers"]
    table = comparison.table[["truth MC1", "truth low", "truth high", "truth change"]]
    score, low, high, _ = table.loc["unedited"]
    assert unedited[:3] == ["unedited", f"{score:.3g} [{low:.3g}, {high:.3g}]", ""]
    score, low, high, change = table.loc["SEA / 1"]
    assert edited[:3] == ["SEA / 1", f"{score:.3g}", f"{change:+.3g} [{low:.3g}, {high:.3g}]"]
    assert all(cell in comparison.to_latex() for cell in edited if cell)


def test_a_comparison_comes_back_from_its_folder(comparison, tmp_path):
    written = comparison.save(tmp_path)
    assert all(path.is_file() for path in written)
    assert len(set(written)) == len(written)  # though the editors' names differ by signs that no folder can have
    back = Comparison.load(tmp_path)
    for name in ("table", "long"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(comparison, name), check_exact=True)
    assert (back.headlines, back.scales) == (comparison.headlines, comparison.scales)
    for name, editor in comparison.editors.items():
        made = back.evaluations[name]["truth"]
        assert made.provenance["editor"]["fingerprint"] == editor.fingerprint
        assert made.per_answer.equals(comparison.evaluations[name]["truth"].per_answer)
    assert back.to_markdown() == comparison.to_markdown()
    assert "SEA / 1" in repr(back)


@pytest.mark.usefixtures("without_type_checks")
def test_impossible_comparisons(llama, editor_of, counted):
    editors = {"SEA": editor_of(llama)}
    alien = Editor({0: low_rank(torch.eye(64)[:, :1], torch.ones(1))}, EditorCard("by hand"))
    with counted(llama) as passes:
        for given in (({}, editors), (BENCHMARKS, {}), (BENCHMARKS, {"unedited": editor_of(llama)})):
            with pytest.raises(InputError, match="at least one benchmark and one editor"):
                compare(llama, *given, progress=False, **BARE)
        for given, message in (
            ({"folder": "somewhere"}, "editors must be a mapping"),
            ({"folder": dict}, "the function given for it returned a dict"),
        ):
            with pytest.raises(InputError, match=message):
                compare(llama, BENCHMARKS, given, progress=False, **BARE)
        with pytest.raises(InputError, match=r"the model, then benchmarks, then editors|The order is"):
            compare(llama, editors, BENCHMARKS, progress=False, **BARE)
        with pytest.raises(InputError, match=r"'mine' is a Questions.*\(.*truthfulqa.*\)"):
            compare(llama, {"mine": QUESTIONS}, editors, progress=False, **BARE)
        with pytest.raises(InputError, match="sources must be a mapping"):
            transfer(llama, BENCHMARKS, {"words": ["a"]}, progress=False, **BARE)
        with pytest.raises(ModelMismatchError, match="d_model 64"):
            compare(llama, BENCHMARKS, {"alien": alien}, progress=False, **BARE)
    assert not passes  # all of it before anything was run


def test_transfer_is_every_fit_on_every_benchmark(llama, activations, editor_of, tmp_path):
    method = partial(fit_sea, explained_variance=0.9)
    sources = {"truth": activations, "given": editor_of(llama)}
    found = transfer(llama, BENCHMARKS, sources, method=method, progress=False, **BARE)
    assert list(found.changes.index) == ["truth", "given"]
    assert list(found.changes.columns) == ["truth", "pairs"]
    for source, own in {"truth": method(activations), "given": editor_of(llama)}.items():
        for name, benchmark in BENCHMARKS.items():
            alone = benchmark(llama, editor=own, progress=False)
            row = alone.table.loc[alone.headline]
            assert found.changes.at[source, name] == row["change"]
            assert (found.low.at[source, name], found.high.at[source, name]) == (row["low"], row["high"])
            assert found.unedited[name] == row["unedited"]
    lines = found.to_markdown().splitlines()
    assert lines[2].startswith(f"| unedited | {found.unedited['truth']:.3g} [")
    assert lines[3].startswith(f"| truth | {found.changes.at['truth', 'truth']:+.3g} [")
    found.save(tmp_path)
    back = Transfer.load(tmp_path)
    pd.testing.assert_frame_equal(back.changes, found.changes, check_exact=True)
    assert back.to_latex() == found.to_latex()
    by_method = transfer(llama, BENCHMARKS, {"truth": activations}, method=SEA(0.9), progress=False, **BARE)
    assert by_method.changes.loc["truth"].tolist() == found.changes.loc["truth"].tolist()


def test_timing_ends_after_enough_seconds_and_takes_texts_of_one_token(llama, monkeypatch):
    monkeypatch.setattr(costs, "ENOUGH_SECONDS", 0.0)
    with Passes(llama) as passes:
        assert forward_slowdown(llama, [""], make_editor().at_positions("prompt")) > 0
    assert passes.n == 2 * (1 + costs.FEWEST_PAIRS)
