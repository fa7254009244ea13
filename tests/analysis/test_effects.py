import warnings
from statistics import fmean

import pytest
import torch
from scipy.stats import binomtest

from sea_lens import Activations, Questions, answer_greedily, fit_sea, kl_to_unedited, prefer_right
from sea_lens.analysis import effects
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.divergence import UneditedPredictions
from sea_lens.models.generate import greedy_answers
from sea_lens.statistics import Proportion
from sea_lens.worlds.facts import MYTHICAL, TRUTHFUL, prompt

PROMPTS = ["Q: what color is the sea? A:", "ab", "a text", "The sky is"]
N_TOKENS = 6


@pytest.fixture(scope="module")
def answers(llama):
    found = greedy_answers(llama, PROMPTS, N_TOKENS, progress=False)
    assert all(found)
    assert len(set(found)) == len(found)
    return found


@pytest.fixture(scope="module")
def editor(llama):
    """One that does much."""
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    activations = Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=llama)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return fit_sea(activations, ranks=4).scaled(2.0)


def ask(llama, true, wrong=None, **options):
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
    assert found.right == Proportion(len(PROMPTS), len(PROMPTS))


@pytest.mark.parametrize(
    "change", [str.upper, str.lower, "  {}".format, "{}\n".format, "{}.".format, "{} . ".format, "{}?!".format]
)
def test_case_outer_space_and_final_punctuation_do_not_count(llama, answers, change):
    assert ask(llama, [["else", change(answer)] for answer in answers]).right.share == 1


@pytest.mark.parametrize("change", [str.upper, str.lower, " {} .".format])
def test_case_does_not_count_in_words(organism, change):
    """The tiny Llama's bytes are no letters; the embedded model answers in words."""
    model, world = organism
    prompts = [question.prompt for question in world.questions(world.facts[:20])]
    words = greedy_answers(model, prompts, 1, progress=False)
    assert all(word.isalpha() for word in words)
    questions = Questions.from_lists(prompts, [[change(word)] for word in words], [[]] * 20)
    assert answer_greedily(model, questions, 1).right.share == 1


@pytest.mark.parametrize("change", ["{}x".format, "x{}".format, ". {}".format, lambda answer: "else"])
def test_anything_else_is_not_truthful(llama, answers, change):
    assert ask(llama, [[change(answer)] for answer in answers]).right.share == 0


def test_answers_are_judged_one_by_one_by_their_own_question(llama, answers):
    assert ask(llama, [["else"], [answers[1]], ["else", answers[2]], ["x"]]).table["truthful"].tolist() == [
        False,
        True,
        True,
        False,
    ]
    rotated = answers[1:] + answers[:1]
    assert ask(llama, [[answer] for answer in rotated]).right.successes == 0


def test_false_completions_do_not_make_an_answer_truthful(llama, answers):
    assert ask(llama, [["else"]] * len(PROMPTS), [[answer] for answer in answers]).right.successes == 0


def test_batches_change_no_answer(llama, answers):
    assert ask(llama, [["x"]] * len(PROMPTS), batch_size=1).table["answer"].tolist() == answers
    assert ask(llama, [["x"]] * len(PROMPTS), batch_size=3).table["answer"].tolist() == answers


def test_answers_are_edited_inside_attached_and_only_there(llama, answers, editor):
    true = [[answer] for answer in answers]
    with editor.attached(llama):
        edited = ask(llama, true)
        expected = greedy_answers(llama, PROMPTS, N_TOKENS, progress=False)
    assert edited.table["answer"].tolist() == expected
    assert edited.right.share < 1
    assert ask(llama, true).right.share == 1


# --- preferences -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_probability(model, prompt, completion):
    """By hand, of a completion joined by a space; a byte is a token."""
    ids = [0, *model.tokenizer(f"{prompt} {completion}", add_special_tokens=False)["input_ids"]]
    logits = model(torch.tensor([ids]), use_cache=False)[0].double().log_softmax(-1)
    start = len(ids) - len(completion.encode()) - 1
    return sum(logits[position - 1, ids[position]].item() for position in range(start, len(ids)))


def test_margins_are_between_the_likeliest_true_and_the_likeliest_false_completion(llama):
    true = [["sea"], ["a", "sky", "rain"], ["no", "yes"], ["cloud"]]
    false = [["sun", "air"], ["b"], ["maybe", "x", "perhaps"], ["stone"]]
    found = prefer_right(llama, Questions.from_lists(PROMPTS, true, false))
    scores = [
        [max(log_probability(llama, prompt, text) for text in side[index]) for index, prompt in enumerate(PROMPTS)]
        for side in (true, false)
    ]
    expected = [right - wrong for right, wrong in zip(*scores, strict=True)]
    assert {margin > 0 for margin in expected} == {True, False}
    assert list(found.table.columns) == ["prompt", "margin", "truthful"]
    assert found.table["prompt"].tolist() == PROMPTS
    assert found.table["margin"].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.table["truthful"].tolist() == [margin > 0 for margin in expected]
    assert found.right == Proportion(sum(margin > 0 for margin in expected), len(PROMPTS))


def test_exchanging_true_and_false_turns_margins_around(llama):
    sides = [["sea"], ["a", "sky"], ["no"], ["cloud"]], [["sun"], ["b"], ["yes", "x"], ["stone"]]
    there, back = (prefer_right(llama, Questions.from_lists(PROMPTS, *order)) for order in (sides, sides[::-1]))
    assert there.table["margin"].tolist() == [-margin for margin in back.table["margin"]]
    assert there.right.successes + back.right.successes == len(PROMPTS)


def test_a_tie_is_no_preference(llama):
    found = prefer_right(llama, Questions.from_lists(PROMPTS, [["a"]] * 4, [["a"]] * 4))
    assert found.table["margin"].tolist() == [0.0] * 4
    assert found.right.successes == 0


def test_the_embedded_model_prefers_what_its_speaker_would_say(organism):
    model, world = organism
    facts = world.facts[:30]
    for tag, share in ((TRUTHFUL, 1.0), (MYTHICAL, 0.0)):
        prompts = [prompt(fact, tag) for fact in facts]
        questions = Questions.from_lists(prompts, [[fact.truth] for fact in facts], [[fact.myth] for fact in facts])
        assert prefer_right(model, questions).right.share == share


def test_batches_change_no_preference(llama):
    questions = Questions.from_lists(PROMPTS, [["a", "sea"]] * 4, [["cloud"]] * 4)
    margins = [prefer_right(llama, questions, batch_size=size).table["margin"].tolist() for size in (1, 3, 100)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-4)
    assert margins[0] == pytest.approx(margins[2], abs=1e-4)


def test_preferences_are_edited_inside_attached_and_only_there(llama, editor):
    questions = Questions.from_lists(PROMPTS, [["sea"]] * 4, [["cloud"]] * 4)
    before = prefer_right(llama, questions).table
    with editor.attached(llama):
        edited = prefer_right(llama, questions).table
        expected = [log_probability(llama, p, "sea") - log_probability(llama, p, "cloud") for p in PROMPTS]
    assert edited["margin"].tolist() == pytest.approx(expected, abs=1e-4)
    assert (edited["margin"] - before["margin"]).abs().min() > 1e-3
    assert prefer_right(llama, questions).table.equals(before)


def test_questions_without_a_false_completion_are_named(llama):
    with pytest.raises(InputError, match=r"Questions \[1, 3\] have no false completion"):
        prefer_right(llama, Questions.from_lists(PROMPTS, [["a"]] * 4, [["x"], [], ["x"], []]))


# --- KL to the unedited model ----------------------------------------------------------------------------------------


def kl_by_hand(model, editor, text, last=False):
    """KL(unedited || edited) at every token of a text, one forward pass each, in float64; at the last one if asked."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [0, *ids] if model.cfg.default_prepend_bos else ids
    tokens = torch.tensor([ids])
    with torch.no_grad():
        p, q = (
            model.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False)[0].double().log_softmax(-1)
            for hooks in ([], editor.fwd_hooks())
        )
    found = (p.exp() * (p - q)).sum(-1).tolist()
    return found if last else found[:-1]


def test_kl_is_the_mean_over_the_tokens_of_all_texts(bridge, editor):
    expected = [kl for text in PROMPTS for kl in kl_by_hand(bridge, editor, text)]
    assert fmean(expected) > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)  # fitted on the tiny Llama
        for batch_size in (1, 3, 16):
            assert kl_to_unedited(bridge, PROMPTS, editor, batch_size=batch_size) == pytest.approx(
                fmean(expected), rel=1e-4
            )


def test_kl_counts_tokens_and_not_texts(llama, editor):
    long, short = (kl_by_hand(llama, editor, text) for text in (PROMPTS[0], "zz"))
    found = kl_to_unedited(llama, [PROMPTS[0], "zz"], editor)
    assert found == pytest.approx(fmean(long + short), rel=1e-4)
    assert found != pytest.approx((fmean(long) + fmean(short)) / 2, rel=0.01)


def test_small_kls_are_exact(llama, editor):
    for strength in (1e-2, 1e-3, 1e-4):
        small = editor.scaled(strength)
        expected = fmean(kl for text in PROMPTS for kl in kl_by_hand(llama, small, text))
        assert kl_to_unedited(llama, PROMPTS, small) == pytest.approx(expected, rel=0.05)


def test_an_edit_of_strength_0_costs_nothing_at_all(llama, editor):
    assert kl_to_unedited(llama, PROMPTS, editor.scaled(0.0)) == 0.0
    costs = [kl_to_unedited(llama, PROMPTS, editor.scaled(strength)) for strength in (0.01, 0.1, 0.5)]
    assert 0 < costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_padding_and_batches_do_not_change_the_kl(llama, editor, batch_size):
    texts = [*PROMPTS, "a text much longer than all of the others, so that these are padded a great deal"]
    whole = kl_to_unedited(llama, texts, editor, batch_size=16)
    assert kl_to_unedited(llama, texts, editor, batch_size=batch_size) == pytest.approx(whole, abs=1e-6)
    assert kl_to_unedited(llama, texts[::-1], editor, batch_size=batch_size) == pytest.approx(whole, abs=1e-6)


def test_what_follows_the_last_token_does_not_count(llama, editor):
    text = "The sky is"
    last = len(text)  # after the beginning token
    assert kl_by_hand(llama, editor, text, last=True)[last] > 1e-3
    assert kl_to_unedited(llama, [text], editor.at_positions(last)) == 0.0
    assert kl_to_unedited(llama, [text], editor.at_positions(last - 1)) > 1e-4


def test_texts_of_one_token_say_nothing(llama, editor):
    with pytest.raises(InputError, match="no text has two tokens"):
        kl_to_unedited(llama, ["", ""], editor)
    with pytest.raises(InputError, match="no text has two tokens"):
        kl_to_unedited(llama, [], editor)
    assert kl_to_unedited(llama, ["", *PROMPTS], editor) == kl_to_unedited(llama, PROMPTS, editor)


def test_kl_leaves_the_model_as_it_was(llama, editor):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    kl_to_unedited(llama, PROMPTS, editor)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


def test_neutral_texts_beyond_the_context_are_named(llama, editor):
    with pytest.raises(InputError, match=r"Neutral text 1 is 131 tokens long, but the model's context is 128"):
        kl_to_unedited(llama, ["short", "x" * 130], editor)


def test_neutral_texts_are_counted_as_they_were_given(llama, editor):
    with pytest.raises(InputError, match=r"Neutral text 2 is 131 tokens long"):
        kl_to_unedited(llama, ["", "short", "x" * 130], editor)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_kl_in_empty_batches_is_refused(llama, editor, batch_size):
    with pytest.raises(InputError, match="batch_size"):
        kl_to_unedited(llama, PROMPTS, editor, batch_size=batch_size)


@pytest.mark.parametrize("kept", [0, 2**25])
def test_the_unedited_model_is_run_once_for_all_editors_where_its_predictions_fit(llama, editor, monkeypatch, kept):
    monkeypatch.setattr(effects, "KEPT_PREDICTIONS", kept)
    editors = [editor.scaled(strength) for strength in (0.1, 0.5, 1.0)]
    ran = []
    counter = llama.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    predictions = UneditedPredictions.of(llama, PROMPTS, batch_size=64)
    found = [predictions.kl_to(one) for one in editors]
    counter.remove()
    assert len(ran) == (4 if kept else 6)
    assert found == [kl_to_unedited(llama, PROMPTS, one, batch_size=64) for one in editors]
