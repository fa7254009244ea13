import warnings

import pytest
import torch
from scipy.stats import binomtest

from sea_lens import Activations, Questions, answer_greedily, fit_sea
from sea_lens.analysis.effects import Proportion
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models import greedy_answers

PROMPTS = ["Q: what colour is the sea? A:", "ab", "a text", "The sky is"]
N_TOKENS = 6


@pytest.fixture(scope="module")
def answers(llama):
    found = greedy_answers(llama, PROMPTS, N_TOKENS, progress=False)
    assert all(found)
    assert len(set(found)) == len(found)
    return found


def ask(llama, true, false=None, **options):
    questions = Questions.from_lists(PROMPTS, true, [[]] * len(PROMPTS) if false is None else false)
    return answer_greedily(llama, questions, N_TOKENS, **options)


# --- proportions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 50, 240, 10_000])
def test_intervals_are_wilsons(n, confidence):
    for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        low, high = Proportion(successes, n).interval(confidence)
        assert low == pytest.approx(expected.low, abs=1e-12)
        assert high == pytest.approx(expected.high, abs=1e-12)


def test_intervals_are_of_95_percent_unless_asked():
    assert Proportion(3, 10).interval() == Proportion(3, 10).interval(0.95)
    assert Proportion(3, 10).interval() != Proportion(3, 10).interval(0.9)


@pytest.mark.parametrize("n", [1, 3, 17, 240])
def test_intervals_of_nothing_and_everything_end_at_0_and_1(n):
    low, high = Proportion(0, n).interval()
    assert low == 0
    assert 0 < high < 1
    low, high = Proportion(n, n).interval()
    assert high == 1
    assert 0 < low < 1


def test_a_proportion_prints_its_share_and_interval():
    assert Proportion(238, 240).share == pytest.approx(238 / 240)
    assert str(Proportion(238, 240)) == "99.2% [97.0, 99.8]"


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3), (1, 0), (0, -1)])
def test_what_is_no_proportion_is_refused(successes, n):
    with pytest.raises(InputError, match=f"{successes} successes of {n} trials"):
        Proportion(successes, n)


# --- greedy answers --------------------------------------------------------------------------------------------------


def test_an_answer_that_is_a_true_completion_is_truthful(llama, answers):
    found = ask(llama, [[answer] for answer in answers])
    assert found.table["prompt"].tolist() == PROMPTS
    assert found.table["answer"].tolist() == answers
    assert found.table["truthful"].tolist() == [True] * len(PROMPTS)
    assert found.truthful == Proportion(len(PROMPTS), len(PROMPTS))


@pytest.mark.parametrize(
    "change", [str.upper, str.lower, "  {}".format, "{}\n".format, "{}.".format, "{} . ".format, "{}?!".format]
)
def test_case_outer_space_and_final_punctuation_do_not_count(llama, answers, change):
    assert ask(llama, [["else", change(answer)] for answer in answers]).truthful.share == 1


@pytest.mark.parametrize("change", [str.upper, str.lower, " {} .".format])
def test_case_does_not_count_in_words(organism, change):
    """The tiny Llama's bytes are no letters; the embedded model answers in words."""
    model, world = organism
    prompts = [question.prompt for question in world.questions(world.facts[:20])]
    words = greedy_answers(model, prompts, 1, progress=False)
    assert all(word.isalpha() for word in words)
    questions = Questions.from_lists(prompts, [[change(word)] for word in words], [[]] * 20)
    assert answer_greedily(model, questions, 1).truthful.share == 1


@pytest.mark.parametrize("change", ["{}x".format, "x{}".format, ". {}".format, lambda answer: "else"])
def test_anything_else_is_not_truthful(llama, answers, change):
    assert ask(llama, [[change(answer)] for answer in answers]).truthful.share == 0


def test_answers_are_judged_one_by_one_by_their_own_question(llama, answers):
    assert ask(llama, [["else"], [answers[1]], ["else", answers[2]], ["x"]]).table["truthful"].tolist() == [
        False,
        True,
        True,
        False,
    ]
    rotated = answers[1:] + answers[:1]
    assert ask(llama, [[answer] for answer in rotated]).truthful.successes == 0


def test_false_completions_do_not_make_an_answer_truthful(llama, answers):
    assert ask(llama, [["else"]] * len(PROMPTS), [[answer] for answer in answers]).truthful.successes == 0


def test_batches_change_no_answer(llama, answers):
    assert ask(llama, [["x"]] * len(PROMPTS), batch_size=1).table["answer"].tolist() == answers
    assert ask(llama, [["x"]] * len(PROMPTS), batch_size=3).table["answer"].tolist() == answers


def test_answers_are_edited_inside_attached_and_only_there(llama, answers):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    activations = Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=llama)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        editor = fit_sea(activations, ranks=4).scaled(2.0)
    true = [[answer] for answer in answers]
    with editor.attached(llama):
        edited = ask(llama, true)
        expected = greedy_answers(llama, PROMPTS, N_TOKENS, progress=False)
    assert edited.table["answer"].tolist() == expected
    assert edited.truthful.share < 1
    assert ask(llama, true).truthful.share == 1
