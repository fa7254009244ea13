"""Log-probabilities of completions, against raw logits of one text at a time."""

import pytest
import torch
from conftest import D_MODEL, build_bridge, byte_tokenizer, low_rank
from tokenizers import models

from sea_lens import Editor, EditorCard, Questions
from sea_lens.errors import InputError
from sea_lens.models.log_probs import completion_log_probabilities
from sea_lens.models.predictions import question_batches

TEXTS = [
    ("Q: what color is the sea? A:", "blue, mostly"),
    ("ab", "c"),
    ("ab ", "c"),
    ("The sky is\n", "é"),
    ("The sky is", " a much longer completion than prompt."),
    ("ab", "c"),
    ("a text", "another text"),
]
ONE_TOKEN = 2


def make_editor(layers=(0, 2), strength=3.0):
    generator = torch.Generator().manual_seed(0)
    edits = {}
    for layer in layers:
        directions, _ = torch.linalg.qr(torch.randn(D_MODEL, 3, generator=generator))
        edits[layer] = low_rank(directions, torch.tensor([1.0, 0.5, -1.0]), strength=strength)
    return Editor(edits, EditorCard("by hand", {}))


@torch.no_grad()
def by_hand(model, prompt, completion, hooks=()):
    """The text's own forward pass, softmax in float64; a byte is a token."""
    space = "" if prompt[-1:].isspace() or completion[:1].isspace() or not prompt else " "
    ids = model.tokenizer(prompt + space + completion, add_special_tokens=False)["input_ids"]
    if model.cfg.default_prepend_bos:
        ids = [model.tokenizer.bos_token_id, *ids]
    said = len((space + completion).encode())
    logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=list(hooks), use_cache=False)[0].double()
    log_probabilities = logits - logits.logsumexp(-1, keepdim=True)
    return sum(log_probabilities[position - 1, ids[position]].item() for position in range(len(ids) - said, len(ids)))


def test_completions_are_scored_as_the_models_logits_say(bridge):
    expected = [by_hand(bridge, *text) for text in TEXTS]
    assert len(set(expected)) == len(TEXTS) - 1  # one text is there twice
    for batch_size in (1, 2, 3, 100):
        assert completion_log_probabilities(bridge, TEXTS, batch_size=batch_size) == pytest.approx(
            expected, rel=1e-6, abs=1e-5
        )


def test_under_an_editor_completions_are_scored_as_edited(bridge):
    editor = make_editor()
    plain = completion_log_probabilities(bridge, TEXTS)
    expected = [by_hand(bridge, *text, editor.fwd_hooks()) for text in TEXTS]
    for batch_size in (1, 3, 100):
        with editor.attached(bridge):
            found = completion_log_probabilities(bridge, TEXTS, batch_size=batch_size)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-5)
    assert min(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 1e-3
    assert completion_log_probabilities(bridge, TEXTS) == plain


def test_the_score_of_one_token_is_one_of_a_distribution(llama):
    prompt, _ = TEXTS[ONE_TOKEN]
    completions = [chr(code) for code in range(32, 127)]
    completions.remove(" ")
    scores = completion_log_probabilities(llama, [(prompt, completion) for completion in completions])
    total = torch.tensor(scores).exp().sum().item()
    assert all(score < 0 for score in scores)
    assert 0 < total < 1


def test_the_score_of_a_long_completion_is_the_sum_over_its_parts(llama):
    whole, first, second = completion_log_probabilities(
        llama, [("The sky is", "blue today"), ("The sky is", "blue"), ("The sky is blue", "today")]
    )
    assert whole == pytest.approx(first + second, abs=1e-5)


def test_an_empty_prompt_will_do_where_texts_have_a_beginning_token(bridge):
    """Where the model is not given one by default, as qwen2 and gpt-neox, an empty prompt is given one all the same."""
    ids = [bridge.tokenizer.bos_token_id, *bridge.tokenizer("abc", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logits = bridge(torch.tensor([ids]), use_cache=False)[0].double().log_softmax(-1)
    expected = sum(logits[position, token].item() for position, token in enumerate(ids[1:]))
    found = completion_log_probabilities(bridge, [("a", "b"), ("", "abc")])[1]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_token_that_spans_prompt_and_completion_belongs_to_the_completion(monkeypatch):
    model, tokenizer = build_bridge("llama", vocab_size=259), byte_tokenizer()
    tokenizer.backend_tokenizer.model = models.BPE({**tokenizer.get_vocab(), "Ġt": 258}, [("Ġ", "t")])
    monkeypatch.setattr(model, "tokenizer", tokenizer)
    bos, a, c = (tokenizer.convert_tokens_to_ids(token) for token in ("<bos>", "a", "c"))
    with torch.no_grad():
        logits = model(torch.tensor([[bos, a, 258, c]]), use_cache=False)[0].double().log_softmax(-1)
    (found,) = completion_log_probabilities(model, [("a ", "tc")])
    assert found == pytest.approx((logits[1, 258] + logits[2, c]).item(), abs=1e-5)


def test_scoring_leaves_the_model_as_it_was(llama):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    completion_log_probabilities(llama, TEXTS)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())
    assert not any(parameter.grad is not None for parameter in llama.parameters())


# --- all answers to questions at once --------------------------------------------------------------------------------

QUESTIONS = Questions.from_lists(
    ["Q: what color is the sea? A:", "ab", "The sky is\n", "x", "ab "],
    [["blue", "blue-green", "b"], ["c"], ["é", "up"], ["a much longer answer than the others"], ["c"]],
    [["red"], ["d", "dd", "cd"], [], ["y", "z"], ["d"]],
)


def completions_of(question):
    return [*question.right, *question.wrong]


@torch.no_grad()
def predict(model, batch):
    return batch.predictions(model(batch.tokens.ids, **batch.tokens.forward_options()))


def by_question(model, questions, batch_size):
    """For each question in order: the next-token distribution, first tokens, scores, and what is true and false."""
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
def next_token_by_hand(model, prompt, hooks=()):
    """Of the prompt by itself."""
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = [0, *ids] if model.cfg.default_prepend_bos else ids
    logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=list(hooks), use_cache=False)[0, -1].double()
    return logits - logits.logsumexp(-1)


@pytest.mark.parametrize("edited", [False, True])
def test_predictions_are_those_of_one_text_at_a_time(bridge, edited):
    hooks = make_editor().fwd_hooks() if edited else []
    with bridge.hooks(fwd_hooks=hooks):
        found = by_question(bridge, QUESTIONS, 3)
        scores = [
            completion_log_probabilities(bridge, [(q.prompt, text) for text in completions_of(q)]) for q in QUESTIONS
        ]
    for question, expected, (next_token, first, said, true, false) in zip(QUESTIONS, scores, found, strict=True):
        by_one = [by_hand(bridge, question.prompt, text, hooks) for text in completions_of(question)]
        assert said.tolist() == pytest.approx(expected, abs=1e-5)
        assert said.tolist() == pytest.approx(by_one, rel=1e-6, abs=1e-5)
        torch.testing.assert_close(next_token, next_token_by_hand(bridge, question.prompt, hooks), atol=1e-5, rtol=1e-6)
        assert next_token.exp().sum().item() == pytest.approx(1, abs=1e-12)
        n_right, n_false = len(question.right), len(question.wrong)
        assert true.tolist() == [True] * n_right + [False] * n_false
        assert false.tolist() == [False] * n_right + [True] * n_false
        space = "" if question.prompt[-1].isspace() else " "
        firsts = [
            bridge.tokenizer(space + text, add_special_tokens=False)["input_ids"][0]
            for text in completions_of(question)
        ]
        assert first.tolist() == firsts


def test_a_completion_of_one_token_has_its_probability_among_next_tokens(llama):
    (found,) = by_question(llama, Questions.from_lists(["ab "], [["c", "d"]], [["e"]]), 1)
    next_token, first, said, *_ = found
    assert torch.equal(next_token[first], said)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_predictions_do_not_depend_on_the_batch_or_the_order(bridge, batch_size):
    whole = by_question(bridge, QUESTIONS, 3)
    backwards = Questions(QUESTIONS.rows[::-1], "backwards")
    for found in (by_question(bridge, QUESTIONS, batch_size), by_question(bridge, backwards, batch_size)[::-1]):
        for one, other in zip(found, whole, strict=True):
            for values, expected in zip(one, other, strict=True):
                torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("true", "false", "rows"),
    [
        (["c"], ["d", "e", "f"], 1),  # the last token of none is run
        (["cd"], ["c"], 1),
        (["c", "cd"], ["cde", "cdx"], 1),
        (["cd"], ["ef"], 2),
        (["cd", "cde"], ["ef", "e", "efgh", "x"], 2),
        (["c"], ["c"], 1),
    ],
)
def test_a_question_costs_as_many_rows_as_it_has_beginnings(llama, true, false, rows):
    questions = Questions.from_lists(["ab "], [true], [false])
    (batch,) = question_batches(llama, questions, 1)
    assert len(batch.tokens.ids) == rows
    expected = completion_log_probabilities(llama, [("ab ", text) for text in [*true, *false]])
    assert predict(llama, batch).log_probabilities[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_questions_of_like_length_are_run_together_the_longest_first(llama):
    questions = Questions.from_lists(["a" * n for n in (3, 50, 4, 60)], [["x"]] * 4, [["y"]] * 4)
    batches = question_batches(llama, questions, 2)
    assert [batch.indices for batch in batches] == [[3, 1], [2, 0]]
    assert batches[1].tokens.ids.shape[1] < 10


def test_questions_without_a_prompt_start_from_the_beginning_token(bridge):
    (found,) = by_question(bridge, Questions.from_lists([""], [["abc"]], [["xy"]]), 1)
    with torch.no_grad():
        logits = bridge(torch.tensor([[bridge.tokenizer.bos_token_id]]), use_cache=False)[0, -1].double()
    torch.testing.assert_close(found[0], logits.log_softmax(-1), atol=1e-5, rtol=1e-6)
    expected = completion_log_probabilities(bridge, [("", "abc"), ("", "xy")])
    assert found[2].tolist() == pytest.approx(expected, abs=1e-5)


def test_all_completions_are_scored_from_where_the_first_of_them_departs_from_the_prompt(monkeypatch):
    """One completion swallows the prompt's last token. Scored from there on, the other one counts that token too."""
    model, tokenizer = build_bridge("llama", vocab_size=259), byte_tokenizer()
    tokenizer.backend_tokenizer.model = models.BPE({**tokenizer.get_vocab(), "Ġt": 258}, [("Ġ", "t")])
    monkeypatch.setattr(model, "tokenizer", tokenizer)
    bos, a, space, c = (tokenizer.convert_tokens_to_ids(token) for token in ("<bos>", "a", "Ġ", "c"))
    (found,) = by_question(model, Questions.from_lists(["a "], [["tc"]], [["c"]]), 1)
    with torch.no_grad():
        swallowed, apart = (
            model(torch.tensor([ids]), use_cache=False)[0].double().log_softmax(-1)
            for ids in ([bos, a, 258, c], [bos, a, space, c])
        )
    torch.testing.assert_close(found[0], apart[1], atol=1e-5, rtol=1e-6)
    assert found[1].tolist() == [258, space]
    expected = [swallowed[1, 258] + swallowed[2, c], apart[1, space] + apart[2, c]]
    assert found[2].tolist() == pytest.approx([value.item() for value in expected], abs=1e-5)


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_empty_completions_are_refused(llama):
    with pytest.raises(InputError, match=r"comes out as no tokens: 'ab' with ''"):
        completion_log_probabilities(llama, [("ab", "c"), ("ab", ""), ("", "")])


def test_texts_beyond_the_context_are_named(llama):
    fits = ("x" * 100, "y" * 26)  # with the space and the beginning token, 128
    assert len(completion_log_probabilities(llama, [fits])) == 1
    with pytest.raises(InputError, match=r"Text 1 is 129 tokens long, but the model's context is 128"):
        completion_log_probabilities(llama, [fits, ("x" * 100, "y" * 27), ("a", "b")])


@pytest.mark.parametrize(("texts", "batch_size"), [([], 1), ([("a", "b")], 0), ([("a", "b")], -1)])
def test_no_texts_and_empty_batches_are_refused(llama, texts, batch_size):
    with pytest.raises(InputError, match=f"{len(texts)} and {batch_size} were given"):
        completion_log_probabilities(llama, texts, batch_size=batch_size)


def test_impossible_questions_are_named(llama):
    with pytest.raises(InputError, match=r"comes out as no tokens: 'ab' with ''"):
        question_batches(llama, Questions.from_lists(["ab"], [["c"]], [[""]]), 1)
    with pytest.raises(InputError, match=r"Question 1 is 132 tokens long, but the model's context is 128"):
        question_batches(llama, Questions.from_lists(["a", "b"], [["c"], ["x" * 129]], [[], []]), 1)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        question_batches(llama, QUESTIONS, 0)
