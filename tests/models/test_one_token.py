"""Answers of one token under many editors are those under each editor by itself."""

from conftest import Passes, make_editor

import sea_lens as sl
from sea_lens.methods.measures import AnsweringShortly
from sea_lens.models.generate import greedy_answers
from sea_lens.models.one_token import one_token_answers

PROMPTS = ["Where is it?", "Who", "and this is a longer one than the others are", "Q", "Why not? Because"]


def editors():
    whole = make_editor(strength=8.0)
    other = make_editor(layers=(1, 2), seed=1, strength=8.0)
    return [whole, whole.at_layers([2]), 0.5 * whole, other, other.at_layers([2])]


def test_answers_are_those_of_each_editor_alone(bridge):
    tried = editors()
    alone = [greedy_answers(bridge, PROMPTS, 1, editor=editor, batch_size=2, progress=False) for editor in tried]
    found = one_token_answers(bridge, PROMPTS, tried, batch_size=2)
    assert found is not None
    assert dict(found) == dict(enumerate(alone))
    assert len(set(map(tuple, alone))) > 1


def test_blocks_below_the_first_difference_are_run_once(llama):
    last = [make_editor(layers=(2,), seed=seed, strength=8.0) for seed in range(6)]
    list(one_token_answers(llama, PROMPTS, last, batch_size=8))  # what is tried once per model
    ran = []
    handle = llama.original_model.model.layers[0].mlp.register_forward_hook(lambda *given: ran.append(given[0]))
    try:
        list(one_token_answers(llama, PROMPTS, last, batch_size=8))
        with Passes(llama) as passes:
            list(one_token_answers(llama, PROMPTS, last, batch_size=8))
    finally:
        handle.remove()
    assert len(ran) < passes.n


def test_what_needs_passes_of_its_own_is_left_to_the_caller(llama):
    begins = [f"{'The same beginning of all of them. ' * 2}{prompt}" for prompt in PROMPTS]
    assert one_token_answers(llama, begins, editors(), batch_size=8) is None
    assert one_token_answers(llama, PROMPTS, [*editors(), make_editor().at_positions([-1])], batch_size=8) is None


def test_shares_are_those_of_answer_greedily(llama):
    answers = greedy_answers(llama, PROMPTS, 1, batch_size=2, progress=False)
    questions = sl.Questions.from_lists(PROMPTS, [[answer or "x"] for answer in answers], [["no"]] * len(PROMPTS))
    measure, tried = AnsweringShortly("exact", 2), editors()
    for index, found in measure.of_each(llama, questions, tried):
        with tried[index].attached(llama):
            assert measure(llama, questions) == found


def test_editors_of_some_tokens_are_told_which_they_are(llama):
    last = make_editor(layers=(1, 2), strength=8.0)
    tried = [last, last.at_positions(slice(1, 3)), last.at_positions([0]), last.at_positions("generated")]
    alone = [greedy_answers(llama, PROMPTS, 1, editor=each, batch_size=5, progress=False) for each in tried[:-1]]
    alone.append(greedy_answers(llama, PROMPTS, 1, batch_size=5, progress=False))
    assert dict(one_token_answers(llama, PROMPTS, tried, batch_size=5)) == dict(enumerate(alone))
