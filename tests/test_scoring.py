"""Log-probabilities of completions, against raw logits of one text at a time."""

import pytest
import torch
from conftest import D_MODEL, build_bridge, byte_tokenizer
from tokenizers import models

from sea_lens import Editor, EditorCard
from sea_lens.edits import LowRankEdit
from sea_lens.errors import InputError
from sea_lens.scoring import completion_log_probabilities

TEXTS = [
    ("Q: what colour is the sea? A:", "blue, mostly"),
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
        edits[layer] = LowRankEdit(directions, torch.tensor([1.0, 0.5, -1.0]), strength=strength)
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
