"""The baseline is the published procedure: it must give what the library gives, or a ratio means nothing."""

import numpy as np
import pytest
import torch

import sea_lens as sl
from benchmarks import memory, published, worlds
from benchmarks.scaling import exponent
from benchmarks.timing import Row, in_turns
from sea_lens.models.log_probs import score_answers
from sea_lens.models.tokens import TokenizedAnswer


@pytest.mark.parametrize("center", [False, True])
def test_the_published_fit_and_edit_are_the_librarys(center):
    neutral, positive, negative = worlds.activations(60, 96)
    activations = sl.Activations.from_tensors(neutral={0: neutral}, positive={0: positive}, negative={0: negative})
    editor = sl.fit_sea(activations, 0.998, center=center)
    bases, (keep, remove) = published.fit(neutral, positive, negative, 0.998, center)
    found = editor.card.reports[sl.Site(0)]
    assert [basis.shape[1] for basis in bases] == [found["rank_positive"], found["rank_negative"]]
    edit = editor[0]
    np.testing.assert_allclose(
        torch.eye(96) + (edit.directions * edit.eigenvalues) @ edit.directions.T, keep + remove, atol=1e-5
    )
    if not center:  # the library's centered edit subtracts the mean as well
        h = neutral[:5]
        np.testing.assert_allclose(edit(h), published.edit(h, keep, remove), rtol=1e-4, atol=1e-4)


def test_the_published_collection_and_scoring_are_the_librarys():
    hf_model, model = worlds.hf_llama(64, 3), worlds.llama(64, 3)
    demonstrations = worlds.demonstrations(3)
    activations = sl.collect_activations(model, demonstrations, progress=False)
    texts = [(row.prompt, row.neutral) for row in demonstrations]
    states = published.collect(hf_model, [TokenizedAnswer.of(model, *text).ids for text in texts])
    for layer in range(2):
        np.testing.assert_allclose(activations.neutral[layer], states[:, layer], atol=1e-4)
    questions = worlds.questions(2, answers=4)
    texts = [(row.prompt, text) for row in questions for text in (*row.right, *row.wrong)]
    scores = score_answers(model, questions, progress=False).log_probabilities
    np.testing.assert_allclose(scores.flatten(), published.score(model, texts), rtol=1e-5)


def test_texts_of_one_length_make_memory_a_matter_of_their_number():
    model = worlds.llama(64, 1)
    for prompt in ("", worlds.SHOTS):
        texts = [(row.prompt, row.neutral) for row in worlds.demonstrations(1200, prompt)[::99]]
        assert len({len(TokenizedAnswer.of(model, *text).ids) for text in texts}) == 1


@pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
def test_memory_is_measured_of_a_streaming_fit_that_equals_the_one_in_memory(monkeypatch):
    monkeypatch.setattr(memory, "D_MODEL", 64)
    few, kept = memory.measure("checked", 30), memory.measure("in memory", 30)
    assert few.ranks == kept.ranks
    assert min(int(rank) for side in few.ranks.split() for rank in side.split("+")) > 1
    assert few.apart < 1e-5
    assert kept.apart is None
    assert min(few.megabytes, kept.megabytes) >= 0


def test_a_row_counts_only_what_is_equal():
    row = Row("what", 10.0, 1.0, 5, "equal", True)
    assert (row.ratio, row.verdict, row.cells()["wanted"]) == (10, "met", ">= 5")
    assert Row("what", 10.0, 4.0, 5, "equal", True).verdict == "not met"
    apart = Row("what", 10.0, 1.0, 5, "0.1 apart", False)
    assert (apart.verdict, apart.cells()["ratio"]) == ("not equal", "not counted")
    dearer = Row("what", 10.0, 10.4, 1.05, "equal", True, inverted=True)
    assert (dearer.ratio, dearer.verdict, dearer.cells()["wanted"]) == (1.04, "met", "<= 1.05")
    assert Row("what", 10.0, 11.0, 1.05, "equal", True, inverted=True).verdict == "not met"


def test_both_ways_are_run_in_turns_and_a_dear_one_less_often():
    calls = []
    in_turns(lambda: calls.append("published"), lambda: calls.append("ours"), 3, 1)
    assert calls == ["published", "ours", "ours", "ours"]
    calls.clear()
    in_turns(lambda: calls.append("published"), lambda: calls.append("ours"), 2)
    assert calls == ["published", "ours", "ours", "published"]


def test_the_exponent_of_a_power_law():
    assert exponent([1, 2, 4, 8], [3 * size**1.5 for size in (1, 2, 4, 8)]) == pytest.approx(1.5)
