"""Log-probabilities of completions, against the raw logits of one text at a time."""

import math

import pytest
import torch
from conftest import Passes, build_bridge, byte_tokenizer, make_editor
from tokenizers import models

from sea_lens import Questions
from sea_lens.errors import HookNeverFiredError, InputError
from sea_lens.models.distributions import kl, log_probs_of
from sea_lens.models.log_probs import completion_log_probabilities, score_answers

FEW_SHOT = "Answer with few words. Q: sea? A: blue. "
PROMPTS = ("Q: one", "Q: two", "Q: other", "Q: x")
TEXTS = [
    ("Q: what color is the sea? A:", "blue, mostly"),
    ("ab", "c"),
    ("ab ", "c"),
    ("The sky is\n", "é"),
    ("The sky is", " a much longer completion than prompt."),
    ("ab", "c"),
    ("a text", "another text"),
    *((FEW_SHOT + prompt, text) for prompt, text in zip(PROMPTS, ("yes it is", "no", "a b c", "a"), strict=True)),
]


def questions(prefix=FEW_SHOT):
    return Questions.from_lists(
        [prefix + prompt for prompt in PROMPTS],
        [["yes", "yes it is", "yes it"], ["no"], ["b"], ["a b c", "a b d"]],
        [["no", "n"], [], ["a", "ab"], ["a b", "c", "c d", "e f g h"]],
    )


@torch.no_grad()
def by_hand(model, prompt, completion, editor=None):
    """The text's own forward pass, softmax in float64; a byte is a token."""
    space = "" if prompt[-1:].isspace() or completion[:1].isspace() or not prompt else " "
    ids = model.tokenizer(prompt + space + completion, add_special_tokens=False)["input_ids"]
    if model.cfg.default_prepend_bos:
        ids = [model.tokenizer.bos_token_id, *ids]
    said = len((space + completion).encode())
    with model.hooks(fwd_hooks=[] if editor is None else editor.fwd_hooks(model)):
        logits = model(torch.tensor([ids]), use_cache=False)[0].double()
    log_probabilities = logits - logits.logsumexp(-1, keepdim=True)
    return sum(log_probabilities[position - 1, ids[position]].item() for position in range(len(ids) - said, len(ids)))


def alone(model, asked, editor=None):
    return [by_hand(model, one.prompt, text, editor) for one in asked for text in (*one.right, *one.wrong)]


def flat(scores):
    return scores.log_probabilities[scores.n_tokens > 0].tolist()


# --- the right numbers -----------------------------------------------------------------------------------------------


def test_completions_are_scored_as_the_models_logits_say(bridge):
    expected = [by_hand(bridge, *text) for text in TEXTS]
    assert completion_log_probabilities(bridge, TEXTS, batch_size=3) == pytest.approx(expected, rel=1e-6, abs=1e-5)
    assert completion_log_probabilities(bridge, TEXTS, share_prefix=False) == pytest.approx(
        expected, rel=1e-6, abs=1e-5
    )


def test_answers_together_are_answers_alone(bridge):
    editor = make_editor().at_positions(len(FEW_SHOT) + 4)
    plain = score_answers(bridge, questions(), batch_size=3, progress=False)
    edited = score_answers(bridge, questions(), editor, batch_size=3, progress=False)
    assert flat(plain) == pytest.approx(alone(bridge, questions()), abs=1e-5)
    assert flat(edited) == pytest.approx(alone(bridge, questions(), editor), abs=1e-5)
    assert flat(edited) != pytest.approx(flat(plain), abs=1e-3)
    assert plain.n_tokens.tolist()[2] == [2, 2, 3, 0, 0, 0]  # bytes, with the space before the answer
    assert plain.is_right.sum(1).tolist() == [3, 1, 1, 2]
    assert plain.is_wrong.sum(1).tolist() == [2, 0, 2, 4]


def test_batches_and_sharing_change_no_answer(llama):
    editor = make_editor()
    expected = alone(llama, questions(), editor)
    for options in ({"batch_size": 1}, {"batch_size": 64}, {"batch_size": 3, "share_prompts": False}):
        found = score_answers(llama, questions(), editor, progress=False, **options)
        assert flat(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_prompts_of_one_token_are_edited_alike_in_every_batch(llama, size):
    """CrowS-Pairs' prompts are empty, so a prompt is the beginning token alone, which positions from 1 on spare."""
    asked = Questions.from_lists([""] * 3, [["she is", "she"], ["he was"], ["a"]], [["it is"], ["b c"], ["d"]])
    editor = make_editor().at_positions(1)
    expected = [by_hand(llama, "", text, editor) for one in asked for text in (*one.right, *one.wrong)]
    assert flat(score_answers(llama, asked, editor, batch_size=size, progress=False)) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_prompts_longer_than_a_sliding_window_are_exact(architecture):
    model = build_bridge(architecture, sliding_window=16)
    assert flat(score_answers(model, questions(), progress=False)) == pytest.approx(alone(model, questions()), abs=1e-5)


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
    bos, a, space, c = (tokenizer.convert_tokens_to_ids(token) for token in ("<bos>", "a", "Ġ", "c"))
    with torch.no_grad():
        swallowed, apart = (
            model(torch.tensor([ids]), use_cache=False)[0].double().log_softmax(-1)
            for ids in ([bos, a, 258, c], [bos, a, space, c])
        )
    (found,) = completion_log_probabilities(model, [("a ", "tc")])
    assert found == pytest.approx((swallowed[1, 258] + swallowed[2, c]).item(), abs=1e-5)
    # Beside it, another answer of the question is scored from the same token on.
    scores = score_answers(model, Questions.from_lists(["a "], [["tc"]], [["c"]]), progress=False)
    expected = [swallowed[1, 258] + swallowed[2, c], apart[1, space] + apart[2, c]]
    assert flat(scores) == pytest.approx([value.item() for value in expected], abs=1e-5)


def test_what_is_shared_is_run_once(llama):
    score_answers(llama, questions(), progress=False)  # the model has been tried by now
    with Passes(llama) as passes:
        score_answers(llama, questions(), batch_size=1, progress=False)
    rows = [" yes it i", " n", " n", " ", " a b ", " c ", " e f g "]
    assert passes.tokens <= 1 + len(FEW_SHOT) + sum(map(len, PROMPTS)) + sum(map(len, rows)) + 2 * len(PROMPTS)


def test_only_positions_that_are_scored_become_logits(llama):
    seen = []
    with llama.hooks(fwd_hooks=[("unembed.hook_out", lambda tensor, hook: seen.append(tensor.shape[:2].numel()))]):
        completion_log_probabilities(llama, [("a" * 100, "xyz"), ("b" * 90, "uv")], share_prefix=False)
    assert sum(seen) <= 4 + 3  # a byte is a token, and a space stands before each completion


def test_scoring_leaves_the_model_as_it_was(llama):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    plain = flat(score_answers(llama, questions(), progress=False))
    score_answers(llama, questions(), make_editor(), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())
    assert not any(parameter.grad is not None for parameter in llama.parameters())
    assert flat(score_answers(llama, questions(), progress=False)) == plain


# --- one divergence --------------------------------------------------------------------------------------------------


def test_kl_is_the_sum_of_its_definition_and_what_p_rules_out_adds_nothing():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64).softmax(-1)
    expected = [
        sum(a * math.log(a / b) for a, b in zip(*rows, strict=True))
        for rows in zip(p.tolist(), q.tolist(), strict=True)
    ]
    assert kl(p.log(), q.log()).tolist() == pytest.approx(expected, rel=1e-12)
    ruled_out = torch.tensor([0.0, -torch.inf, -800.0], dtype=torch.float64)  # exp(-800) is 0 in float64
    half = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    assert kl(ruled_out, half).item() == pytest.approx(math.log(2))
    assert kl(half, ruled_out).item() == math.inf
    assert kl(half, half).item() == 0
    assert kl(torch.full((3,), torch.nan), half.float()).isnan()


def test_log_probabilities_of_tokens_are_those_of_the_rows_named():
    logits = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    places, ids = [599, 0, 255, 256, 0], [4, 0, 1, 2, 3]
    expected = [logits.double().log_softmax(-1)[place, token].item() for place, token in zip(places, ids, strict=True)]
    assert log_probs_of(logits, places, ids).tolist() == pytest.approx(expected, rel=1e-12)


# --- kept in a folder ------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_another_does_not_mix_with_it(llama, tmp_path):
    options = {"batch_size": 1, "folder": tmp_path, "progress": False}
    whole = flat(score_answers(llama, questions(), batch_size=1, progress=False))
    with pytest.raises(KeyboardInterrupt), Passes(llama, stop_after=4):
        score_answers(llama, questions(), **options)
    assert 0 < len(list(tmp_path.glob("*/*.safetensors"))) < 4
    with Passes(llama) as passes:
        assert flat(score_answers(llama, questions(), **options)) == whole
        ran = passes.n
        assert flat(score_answers(llama, questions(), **options)) == whole
        assert passes.n == ran
        assert flat(score_answers(llama, questions(), make_editor(), **options)) != whole
    # Under an attached editor the same call is another job; under hooks that nobody knows it is none.
    with make_editor().attached(llama):
        edited = flat(score_answers(llama, questions(), **options))
    assert edited == pytest.approx(flat(score_answers(llama, questions(), make_editor(), **options)), abs=1e-5)
    assert flat(score_answers(llama, questions(), **options)) == whole
    double = [("blocks.0.hook_resid_post", lambda tensor, hook: 2 * tensor)]
    with llama.hooks(fwd_hooks=double), pytest.raises(InputError, match=r"hooks of your own \(blocks\.0"):
        score_answers(llama, questions(), **options)


def test_a_run_that_goes_on_with_short_texts_only_need_not_be_edited(llama, tmp_path):
    asked = Questions.from_lists(["a much longer prompt", "ab"], [["c"], ["d"]], [["e"], ["f"]])
    editor = make_editor().at_positions(10)
    options = {"batch_size": 1, "folder": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt), Passes(llama, stop_after=1):
        score_answers(llama, asked, editor, **options)
    found = score_answers(llama, asked, editor, **options)
    assert flat(found) == pytest.approx(alone(llama, asked, editor), abs=1e-5)
    with pytest.raises(HookNeverFiredError):
        score_answers(llama, asked, editor.at_positions(100), progress=False)


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_impossible_texts_are_named(llama):
    with pytest.raises(InputError, match=r"comes out as no tokens: 'ab' with ''"):
        completion_log_probabilities(llama, [("ab", "c"), ("ab", ""), ("", "")])
    fits = ("x" * 100, "y" * 26)  # with the space and the beginning token, 128
    assert len(completion_log_probabilities(llama, [fits])) == 1
    with pytest.raises(InputError, match=r"Text 1 is 129 tokens long, but the model's context is 128"):
        completion_log_probabilities(llama, [fits, ("x" * 100, "y" * 27), ("a", "b")])
    with pytest.raises(InputError, match=r"Question 1 .* context is 128"):
        score_answers(llama, Questions.from_lists(["a", "b " * 70], [["c"], ["d"]], [["e"], ["f"]]))


def test_no_texts_and_empty_batches_are_refused(llama):
    with pytest.raises(InputError, match="At least one text"):
        completion_log_probabilities(llama, [])
    with pytest.raises(InputError, match="batch_size must be at least 1, and -1"):
        completion_log_probabilities(llama, [("a", "b")], batch_size=-1)


def test_nan_is_refused_by_the_questions_it_is_in(llama):
    with (
        llama.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda tensor, hook: tensor * torch.nan)]),
        pytest.raises(InputError, match="predicts NaN on Question 0, Question 1"),
    ):
        score_answers(llama, questions()[:2], progress=False)


def test_the_vocabulary_decides_the_parts_of_the_logits_and_not_the_passes(llama, monkeypatch):
    passes, parts = [], []
    look = [
        ("blocks.0.hook_resid_post", lambda tensor, hook: passes.append(tensor.shape[:2].numel())),
        ("unembed.hook_out", lambda tensor, hook: parts.append(tensor.shape[:2].numel())),
    ]

    def scored(at_once):
        passes.clear()
        parts.clear()
        monkeypatch.setattr("sea_lens.models.distributions.LOGITS_AT_ONCE", at_once * llama.cfg.d_vocab)
        with llama.hooks(fwd_hooks=look):
            return flat(score_answers(llama, questions(), progress=False)), sum(n > 1 for n in passes), list(parts)

    whole, n_passes, together = scored(10_000)
    found, n_as_many, apart = scored(5)
    assert n_as_many == n_passes
    assert max(apart) == 5 < max(together)
    assert sum(apart) == sum(together) + 1  # the pass itself makes one
    assert found == pytest.approx(whole, abs=1e-5)
