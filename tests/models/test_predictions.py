"""Predictions about questions, against the logits of one text at a time."""

import pytest
import torch
from conftest import build_bridge, byte_tokenizer, make_editor
from tokenizers import models

import sea_lens.models.batches
from sea_lens import Questions
from sea_lens.errors import InputError
from sea_lens.models import predictions
from sea_lens.models.branching import Unembedding
from sea_lens.models.hooks import states_at
from sea_lens.models.log_probs import completion_log_probabilities
from sea_lens.models.predictions import question_batches

QUESTIONS = Questions.from_lists(
    ["Q: what color is the sea? A:", "ab", "The sky is\n", "x", "ab "],
    [["blue", "blue-green", "b"], ["c"], ["é", "up"], ["a much longer answer than the others"], ["c"]],
    [["red"], ["d", "dd", "cd"], [], ["y", "z"], ["d"]],
)


def completions_of(question):
    return [*question.right, *question.wrong]


@torch.no_grad()
def predict(model, batch):
    return batch.predictions(states_at(model, batch.tokens, batch.where), Unembedding(model))


def by_question(model, questions, batch_size):
    """By question in order: the next-token distribution, first tokens, scores, and what is right and wrong."""
    found = {}
    for batch in question_batches(model, questions, batch_size):
        predictions = predict(model, batch)
        for row, index in enumerate(batch.indices):
            n = len(completions_of(questions[index]))
            fields = (
                predictions.first_tokens,
                predictions.log_probabilities,
                predictions.is_right,
                predictions.is_wrong,
            )
            assert index not in found
            assert not torch.stack([predictions.is_right, predictions.is_wrong])[:, row, n:].any()
            assert (predictions.log_probabilities[row, n:] == -torch.inf).all()
            found[index] = (predictions.next_token[row], *(field[row, :n] for field in fields))
    assert sorted(found) == list(range(len(questions)))
    return [found[index] for index in range(len(questions))]


@torch.no_grad()
def next_token_by_hand(model, prompt):
    """Of the prompt by itself."""
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = [0, *ids] if model.cfg.default_prepend_bos else ids
    logits = model(torch.tensor([ids]), use_cache=False)[0, -1].double()
    return logits - logits.logsumexp(-1)


@pytest.mark.parametrize("edited", [False, True])
def test_predictions_are_those_of_one_text_at_a_time(bridge, edited):
    editor = make_editor()
    with bridge.hooks(fwd_hooks=editor.fwd_hooks() if edited else []):
        found = by_question(bridge, QUESTIONS, 4)
        scores = [
            completion_log_probabilities(
                bridge, [(q.prompt, text) for text in completions_of(q)], batch_size=1, share_prefix=False
            )
            for q in QUESTIONS
        ]
        next_tokens = [next_token_by_hand(bridge, question.prompt) for question in QUESTIONS]
    for place, question in enumerate(QUESTIONS):
        next_token, first, said, right, wrong = found[place]
        assert said.tolist() == pytest.approx(scores[place], rel=1e-6, abs=1e-5)
        torch.testing.assert_close(next_token, next_tokens[place], atol=1e-5, rtol=1e-6)
        assert next_token.exp().sum().item() == pytest.approx(1, abs=1e-12)
        n_right, n_wrong = len(question.right), len(question.wrong)
        assert right.tolist() == [True] * n_right + [False] * n_wrong
        assert wrong.tolist() == [False] * n_right + [True] * n_wrong
        space = "" if question.prompt[-1].isspace() else " "
        texts = [space + text for text in completions_of(question)]
        assert first.tolist() == [bridge.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_predictions_do_not_depend_on_the_batch_or_the_order(llama, batch_size):
    whole = by_question(llama, QUESTIONS, 3)
    backwards = Questions(QUESTIONS.rows[::-1], "backwards")
    for found in (by_question(llama, QUESTIONS, batch_size), by_question(llama, backwards, batch_size)[::-1]):
        for one, other in zip(found, whole, strict=True):
            for values, expected in zip(one, other, strict=True):
                torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("right", "wrong", "rows"),
    [
        (["c"], ["d", "e", "f"], 1),  # the last token of none is run
        (["c", "cd"], ["cde", "cdx"], 1),
        (["cd", "cde"], ["ef", "e", "efgh", "x"], 2),
        (["c"], ["c"], 1),
    ],
)
def test_a_question_costs_as_many_rows_as_it_has_beginnings(llama, right, wrong, rows):
    asked = Questions.from_lists(["ab "], [right], [wrong])
    (batch,) = question_batches(llama, asked, 1, share_prompts=False)
    assert len(batch.tokens.ids) == rows
    expected = completion_log_probabilities(llama, [("ab ", text) for text in [*right, *wrong]])
    assert predict(llama, batch).log_probabilities[0].tolist() == pytest.approx(expected, abs=1e-5)
    (batch,) = question_batches(llama, asked, 1)
    assert len(batch.tokens.ids) == 1  # a tree of them
    assert predict(llama, batch).log_probabilities[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("most", [12, 16, 512])
def test_answers_that_do_not_fit_into_one_row_get_several(llama, monkeypatch, most):
    monkeypatch.setattr(predictions, "TOKENS_IN_A_ROW", most)
    found = by_question(llama, QUESTIONS, 4)
    scores = [
        completion_log_probabilities(llama, [(q.prompt, text) for text in completions_of(q)], share_prefix=False)
        for q in QUESTIONS
    ]
    assert [each[2].tolist() for each in found] == [pytest.approx(own, abs=1e-5) for own in scores]


def test_a_batch_has_so_many_rows_of_like_length_the_longest_first(llama):
    asked = Questions.from_lists(["a" * n for n in (3, 50, 4, 60, 5)], [["x"]] * 4 + [["xy", "za"]], [["y"]] * 5)
    batches = question_batches(llama, asked, 2, share_prompts=False)
    assert [batch.indices for batch in batches] == [[3, 1], [4], [2, 0]]
    assert [len(batch.tokens.ids) for batch in batches] == [2, 2, 2]
    assert batches[2].tokens.ids.shape[1] < 10


@pytest.mark.parametrize("limit", ["NEXT_TOKEN_VALUES", "STREAM_VALUES", "ATTENTION_VALUES"])
def test_a_batch_is_bounded_whatever_the_vocabulary_and_the_texts(llama, monkeypatch, limit):
    asked = Questions.from_lists(["a" * 6] * 6, [["abcde"]] * 6, [["fgh"]] * 6)
    (batch,) = question_batches(llama, asked, 100)
    length, cfg = batch.tokens.ids.shape[1], llama.cfg
    one = {
        "NEXT_TOKEN_VALUES": cfg.d_vocab,
        "STREAM_VALUES": length * 2 * cfg.n_layers * cfg.d_model,
        "ATTENTION_VALUES": length**2 * cfg.n_heads,
    }
    module = predictions if limit == "NEXT_TOKEN_VALUES" else sea_lens.models.batches
    monkeypatch.setattr(module, limit, 2 * one[limit])
    batches = question_batches(llama, asked, 100)
    assert [batch.indices for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    assert torch.cat([predict(llama, batch).n_tokens for batch in batches]).tolist() == [[6, 4]] * 6
    monkeypatch.setattr(module, limit, 1)
    assert [batch.indices for batch in question_batches(llama, asked, 100)] == [[index] for index in range(6)]


def test_questions_without_a_prompt_start_from_the_beginning_token(bridge):
    (found,) = by_question(bridge, Questions.from_lists([""], [["abc"]], [["xy"]]), 1)
    with torch.no_grad():
        logits = bridge(torch.tensor([[bridge.tokenizer.bos_token_id]]), use_cache=False)[0, -1].double()
    torch.testing.assert_close(found[0], logits.log_softmax(-1), atol=1e-5, rtol=1e-6)


def test_a_completion_that_swallows_the_prompts_end_moves_where_all_are_scored_from(monkeypatch):
    model, tokenizer = build_bridge("llama", vocab_size=259), byte_tokenizer()
    tokenizer.backend_tokenizer.model = models.BPE({**tokenizer.get_vocab(), "Ġt": 258}, [("Ġ", "t")])
    monkeypatch.setattr(model, "tokenizer", tokenizer)
    bos, a, space = (tokenizer.convert_tokens_to_ids(token) for token in ("<bos>", "a", "Ġ"))
    (found,) = by_question(model, Questions.from_lists(["a "], [["tc"]], [["c"]]), 1)
    with torch.no_grad():
        logits = model(torch.tensor([[bos, a]]), use_cache=False)[0, -1].double()
    torch.testing.assert_close(found[0], logits.log_softmax(-1), atol=1e-5, rtol=1e-6)
    assert found[1].tolist() == [258, space]


def test_impossible_questions_are_named(llama):
    with pytest.raises(InputError, match=r"comes out as no tokens: 'ab' with ''"):
        question_batches(llama, Questions.from_lists(["ab"], [["c"]], [[""]]), 1)
    with pytest.raises(InputError, match=r"Question 1 is 132 tokens long, but the model's context is 128"):
        question_batches(llama, Questions.from_lists(["a", "b"], [["c"], ["x" * 129]], [[], []]), 1)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        question_batches(llama, QUESTIONS, 0)
