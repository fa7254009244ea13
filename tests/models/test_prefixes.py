"""Beginnings that texts share: who may share them, and what goes on after them."""

import warnings

import pytest
import torch
from conftest import Passes, build_bridge, byte_tokenizer, make_editor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, MambaConfig, OpenAIGPTConfig, RwkvConfig

from sea_lens import Editor, SeaLensWarning
from sea_lens.errors import HookNeverFiredError, ModelMismatchError
from sea_lens.methods.sea.published import PublishedEdit
from sea_lens.models.bridge import check_is_model
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import completion_log_probabilities
from sea_lens.models.prefixes import CachedPrefix, how_to_run, length_to_share
from sea_lens.models.tokens import PaddedTokens, token_ids

ROWS = [[0, *range(20, 20 + n)] for n in (3, 5)]


def published_editor():
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(32, 2, generator=generator)).Q for _ in range(2)]
    return Editor({1: PublishedEdit(*bases)})


@torch.no_grad()
def test_what_goes_on_after_a_beginning_is_what_the_whole_text_gives(bridge):
    beginning, ends = list(range(40, 58)), [[5, 6, 7], [8]]
    whole = [bridge(torch.tensor([[*beginning, *row, *end]]), use_cache=False)[0] for row in ROWS[:1] for end in ends]
    _, prefix = CachedPrefix(bridge).extended(torch.tensor([beginning]), [0])
    after, prompts = prefix.extended(torch.tensor(ROWS[:1] * 2), [0, 0])
    found = torch.cat([*prompts.continued(PaddedTokens.of(bridge, ends), [1, 0])])
    n = len(beginning) + len(ROWS[0])
    torch.testing.assert_close(after[0], whole[0][n - 1], atol=2e-5, rtol=1e-5)
    expected = torch.cat([logits[n:] for logits in whole])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_beginning_worth_a_pass_ends_before_the_last_token_of_the_shortest():
    long = list(range(30))
    assert length_to_share([long, long[:20]]) == 19
    assert length_to_share([long, [*long[:20], 99]]) == 20
    assert length_to_share([long, long[:10]]) == length_to_share([long]) == 0


def test_an_editor_that_mixes_tokens_is_run_row_by_row_and_whole(llama):
    assert how_to_run(llama, None, 8) == how_to_run(llama, make_editor(), 8) == (8, True)
    assert how_to_run(llama, make_editor(), 8, share_prefix=False) == (8, False)
    for editor in (published_editor(), make_editor().at_positions(-1)):
        assert how_to_run(llama, editor, 8) == (1, False)
        with editor.attached(llama), warnings.catch_warnings():
            warnings.simplefilter("ignore", SeaLensWarning)
            assert how_to_run(llama, None, 8) == (1, False)
            llama(torch.tensor([[0, 5, 6]]))
        with llama.hooks(fwd_hooks=editor.fwd_hooks()):
            assert how_to_run(llama, make_editor(), 8) == (1, False)


def test_completions_by_the_published_rule_are_those_of_each_text_alone(llama):
    texts = [("Answer with few words. Q: " + prompt, "yes it is") for prompt in ("one", "other", "a third one")]
    with published_editor().attached(llama):
        alone = [completion_log_probabilities(llama, [text])[0] for text in texts]
        assert completion_log_probabilities(llama, texts, batch_size=8) == pytest.approx(alone, abs=1e-6)
    assert completion_log_probabilities(llama, texts) != pytest.approx(alone, abs=1e-2)


def bridge_of(config):
    torch.manual_seed(0)
    wrapped = AutoModelForCausalLM.from_config(config).eval()
    wrapped.config.architectures = [type(wrapped).__name__]
    return TransformerBridge.boot_transformers("tiny", hf_model=wrapped, tokenizer=byte_tokenizer(), device="cpu")


@torch.no_grad()
def next_tokens_of_whole_passes(model, prompt, n):
    ids = token_ids(model, prompt)
    length = len(ids)
    for _ in range(n):
        ids = [*ids, int(model(torch.tensor([ids]), use_cache=False)[0, -1].argmax())]
        if ids[-1] == 1:  # its end
            break
    return model.tokenizer.decode(ids[length:], skip_special_tokens=True).strip()


def test_a_model_that_cannot_go_on_after_a_cache_is_found_out_said_once_and_run_whole():
    """Recurrent layers take several tokens after a cache for a beginning."""
    model = bridge_of(
        MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    )
    with pytest.warns(SeaLensWarning, match="does not go on after a cached beginning"):
        assert how_to_run(model, None, 8) == (8, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeaLensWarning)
        assert how_to_run(model, make_editor(), 8) == (8, False)
        texts = [("Answer with few words. Q: " + prompt, "yes it is") for prompt in ("one", "two")]
        alone = [completion_log_probabilities(model, [text])[0] for text in texts]
        assert completion_log_probabilities(model, texts) == pytest.approx(alone, abs=1e-4)


def test_a_model_that_reads_padding_answers_prompts_one_by_one():
    config = RwkvConfig(
        vocab_size=258, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, bos_token_id=0, eos_token_id=1
    )
    model, prompts = bridge_of(config), ["Who is it?", "Q", "a longer prompt than these"]
    with pytest.warns(SeaLensWarning, match="reads padding as text"):
        found = greedy_answers(model, prompts, 4, stop=(), batch_size=3, progress=False)
    assert found == [next_tokens_of_whole_passes(model, prompt, 4) for prompt in prompts]
    assert len(set(found)) > 1


def test_a_model_whose_tokens_see_later_ones_is_refused():
    """TransformerLens 4.3's bridge of the first GPT takes an attention mask for all of the causal one."""
    model = bridge_of(
        OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=258, initializer_range=0.1)
    )
    for _ in range(2):
        with pytest.raises(ModelMismatchError, match="depends on later ones"):
            completion_log_probabilities(model, [("Who?", "he")])


def test_texts_of_two_kinds_of_rotary_embeddings_are_run_one_by_one():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [6.0] * 4,
        "original_max_position_embeddings": 40,
    }
    model = build_bridge("llama", rope_parameters=rope)
    beginning = "All begin with these words. "
    texts = [(beginning + prompt, "yes it is") for prompt in ("Q", "Who is that?", "a", "Do they?")]
    with pytest.warns(SeaLensWarning, match="over 40 tokens"):
        found = completion_log_probabilities(model, texts, batch_size=4)
    for (prompt, completion), score in zip(texts, found, strict=True):
        before, ids = token_ids(model, prompt), token_ids(model, f"{prompt} {completion}")
        with torch.no_grad():
            log_p = model(torch.tensor([ids]), use_cache=False)[0, :-1].double().log_softmax(-1)
        said = log_p.gather(1, torch.tensor(ids[1:])[:, None])[len(before) - 1 :].sum()
        assert score == pytest.approx(float(said), abs=1e-4)
    assert how_to_run(model, None, 4, longest=40) == (4, True)


def test_the_trial_does_not_count_as_a_pass_that_an_editor_edits():
    model = build_bridge("llama")
    with pytest.raises(HookNeverFiredError), make_editor().attached(model):
        how_to_run(model, None, 8)
    with make_editor().attached(model):
        before = model(torch.tensor([[0, 5, 6]]))
    other = build_bridge("llama")
    with make_editor().attached(other):  # which acts as before, after it
        how_to_run(other, None, 8)
        assert torch.equal(other(torch.tensor([[0, 5, 6]])), before)
    assert not torch.equal(other(torch.tensor([[0, 5, 6]])), before)


def test_a_model_is_tried_once():
    model = build_bridge("llama")
    with Passes(model) as passes:
        assert how_to_run(model, None, 8) == (8, True)
        tried = passes.n
        assert how_to_run(model, None, 8) == (8, True)
        assert passes.n == tried > 0


def test_dropout_is_warned_about_once_and_leaves_the_trial_alone():
    model = build_bridge("llama", attention_dropout=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_is_model(model)
    model.train()
    with pytest.warns(SeaLensWarning, match="training mode"):
        check_is_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_is_model(model)
        assert how_to_run(model, None, 8) == (8, True)
    assert all(module.training for module in model.original_model.modules())
    model.eval()
    check_is_model(model)
    model.train()
    with pytest.warns(SeaLensWarning, match="training mode"):
        check_is_model(model)
