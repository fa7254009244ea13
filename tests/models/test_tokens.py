"""Prompts and completions as tokens: the beginning token once, where an answer starts, padding."""

import pytest
import torch
from conftest import build_bridge, byte_tokenizer
from tokenizers import models
from transformer_lens.model_bridge import TransformerBridge

import sea_lens as sl
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models import tokens as module
from sea_lens.models.tokens import (
    PaddedTokens,
    TokenizedAnswer,
    all_token_ids,
    check_context_length,
    join,
    stems_of,
    token_ids,
)

BOS, EOS = 0, 1


@pytest.fixture
def nameless():
    """A Llama of its own, to be changed."""
    return build_bridge("llama")


def test_the_beginning_token_comes_once_where_the_model_wants_one(bridge):
    plain = list(bridge.tokenizer("ab", add_special_tokens=False)["input_ids"])
    assert len(plain) == 2
    wanted = bridge.cfg.model_name not in ("tiny-qwen2", "tiny-gpt-neox")
    assert bridge.cfg.default_prepend_bos is wanted
    assert token_ids(bridge, "ab") == ([BOS, *plain] if wanted else plain)
    assert token_ids(bridge, "<bos>ab") == [BOS, *plain]
    answer = TokenizedAnswer.of(bridge, "<bos>ab", "cd")
    assert answer.ids.count(BOS) == 1
    assert answer.ids[answer.answer_start :] == token_ids(bridge, " cd")[-3:]


def test_a_model_without_a_tokenizer(nameless, monkeypatch):
    monkeypatch.setattr(nameless, "tokenizer", None)
    with pytest.raises(ModelMismatchError, match="no tokenizer"):
        token_ids(nameless, "ab")
    assert PaddedTokens.of(nameless, [[5, 6], [7]]).ids.tolist() == [[5, 6], [7, 0]]


def test_texts_tokenized_together_are_texts_tokenized_alone(bridge, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    texts = ["ab", "<bos>ab", "", "a longer text, of ünïcödé", " b"]
    assert all_token_ids(bridge, texts) == [token_ids(bridge, text) for text in texts]
    asked = [("A prompt:", ["an answer.", "a", "\nnext"]), ("", ["abc"]), ("No answer", [])]
    assert TokenizedAnswer.all_of(bridge, asked) == [
        [TokenizedAnswer.of(bridge, prompt, own) for own in completions] for prompt, completions in asked
    ]


@pytest.mark.parametrize("completion", ["an answer.", "a", "\nnext"])
def test_the_answer_starts_after_the_prompt(llama, completion):
    answer = TokenizedAnswer.of(llama, "A prompt:", completion)
    assert answer.ids == token_ids(llama, join("A prompt:", completion))
    assert answer.answer_start == len(token_ids(llama, "A prompt:"))
    assert llama.tokenizer.decode(answer.ids[answer.answer_start :]).strip() == completion.strip()
    nothing = TokenizedAnswer.of(llama, "A prompt:", "")
    assert nothing.answer_start == len(nothing.ids) == 10
    assert TokenizedAnswer.of(llama, "", "abc").answer_start == 1  # after the beginning token


def test_the_answer_starts_at_a_token_that_spans_prompt_and_answer(nameless, monkeypatch):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.model = models.BPE({**tokenizer.get_vocab(), "Ġt": 258}, [("Ġ", "t")])
    monkeypatch.setattr(nameless, "tokenizer", tokenizer)
    a, space, c = (tokenizer.convert_tokens_to_ids(token) for token in ("a", "Ġ", "c"))
    assert token_ids(nameless, "a ") == [BOS, a, space]
    assert TokenizedAnswer.of(nameless, "a ", "tc") == TokenizedAnswer([BOS, a, 258, c], answer_start=2)


def test_a_trained_models_tokenizer(stories):
    model = TransformerBridge.boot_transformers(str(stories), device="cpu")
    answer = TokenizedAnswer.of(model, "<s>Once upon a ", "time")
    assert model.tokenizer.convert_ids_to_tokens(answer.ids) == ["<s>", "▁Once", "▁upon", "▁a", "▁time"]
    assert answer.answer_start == 4
    texts = ["Once upon a time", "", "the<s> end", "  two  spaces"]
    alone = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert all_token_ids(model, texts) == [[model.tokenizer.bos_token_id, *ids] for ids in alone]


# --- padding ---------------------------------------------------------------------------------------------------------


def test_padding_right_and_left(llama):
    rows = [[5, 6, 7], [8], [9, EOS]]  # the last row ends in the end token, which is also the padding
    right, left = PaddedTokens.of(llama, rows, prompt_lengths=[1, 1, 2]), PaddedTokens.of(llama, rows, side="left")
    assert right.ids.tolist() == [[5, 6, 7], [8, EOS, EOS], [9, EOS, EOS]]
    assert right.mask.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert left.ids.tolist() == [[5, 6, 7], [EOS, EOS, 8], [EOS, 9, EOS]]
    assert left.mask.int().tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert left.forward_options()["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    for padded in (right, left):
        assert [padded.row(number).ids.tolist() for number in range(3)] == [[row] for row in rows]
    assert [right.row(number).prompt_lengths.tolist() for number in range(3)] == [[1], [1], [2]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_forward_pass_is_exact(bridge, side):
    rows = [token_ids(bridge, text) for text in ["a longer text.", "ab", "mid text"]] + [[5, 6, EOS]]
    tokens = PaddedTokens.of(bridge, rows, side=side)
    with torch.no_grad():
        logits = bridge(tokens.ids, **tokens.forward_options())
        for row, mask, ids in zip(logits, tokens.mask, rows, strict=True):
            alone = bridge(torch.tensor([ids]), use_cache=False)[0]
            torch.testing.assert_close(row[mask], alone, atol=2e-5, rtol=1e-5)


def test_impossible_rows_are_refused(llama):
    for rows in ([], [[1, 2], []]):
        with pytest.raises(InputError, match="no tokens at all"):
            PaddedTokens.of(llama, rows)
    check_context_length(llama, [128], ["Text"])
    with pytest.raises(InputError, match="Text is 129 tokens long, but the model's context is 128"):
        check_context_length(llama, [129], ["Text"])


def test_questions_that_are_asked_again_are_the_tokens_of_the_model_as_it_is(nameless, monkeypatch):
    questions = sl.Questions.from_lists(["ab", "cd"], ["yes", ["no", "none"]], ["no", []])
    first = stems_of(nameless, questions)
    again = stems_of(nameless, sl.Questions.from_lists(["ab", "cd"], ["yes", ["no", "none"]], ["no", []]))
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert stems_of(nameless, questions[:1]) == first[:1]
    nameless.tokenizer.add_tokens(["es"])
    longer = stems_of(nameless, questions)
    assert [len(stem.completions[0]) for stem in longer] == [len(first[0].completions[0]) - 1, 3]
    monkeypatch.setattr(nameless.cfg, "default_prepend_bos", False)
    assert [stem.prompt for stem in stems_of(nameless, questions)] == [stem.prompt[1:] for stem in longer]
    monkeypatch.setattr(nameless.cfg, "n_ctx", 2)
    with pytest.raises(InputError, match="context is 2"):
        stems_of(nameless, questions)
