import pytest
import torch
from conftest import build_bridge, byte_tokenizer
from tokenizers import models
from transformer_lens.model_bridge import TransformerBridge

from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.bridge import Model, ModelDescription, tokenizer_of
from sea_lens.models.generate import greedy_answers
from sea_lens.models.sites import check_layers, hook_name, named_layers
from sea_lens.models.tokens import PaddedTokens, TokenizedAnswer, all_token_ids, check_context_length, join, token_ids
from sea_lens.worlds.facts import prompt

BOS, EOS = 0, 1
PROMPTS = ["Q: where were fortune cookies invented? A:", "a", "one two three", "The sky is", "xyz, and then some more"]


@pytest.fixture(scope="module")
def nameless():
    """A Llama of its own, to be changed by tests."""
    return build_bridge("llama")


def test_a_bridge_is_our_model(bridge):
    assert isinstance(bridge, Model)


def test_description_reads_name_depth_width_and_weights(llama, nameless, tmp_path, monkeypatch):
    assert ModelDescription.of(llama) == ModelDescription("tiny-llama", 3, 32, "raw")
    monkeypatch.setattr(nameless.cfg, "model_name", str(tmp_path))
    assert ModelDescription.of(nameless).name == tmp_path.name


@pytest.mark.parametrize(("architecture", "weights"), [("gpt2", "layernorm folded"), ("llama", "raw")])
def test_description_after_compatibility_mode(architecture, weights):
    model = build_bridge(architecture)
    assert ModelDescription.of(model).weights == "raw"
    model.enable_compatibility_mode(disable_warnings=True)
    assert ModelDescription.of(model).weights == weights


# --- hook names and layers -------------------------------------------------------------------------------------------


def test_hook_names_are_the_models_own(bridge):
    assert hook_name(bridge, "resid_post", 2) == "blocks.2.hook_resid_post"
    assert hook_name(bridge, "mlp_out", 0) == "blocks.0.hook_mlp_out"
    assert {hook_name(bridge, "resid_post", i) for i in range(3)} <= set(bridge.hook_dict)


@pytest.mark.parametrize("layer", [3, -1, 100])
def test_an_unknown_layer_error_says_which_exist(llama, layer):
    with pytest.raises(ModelMismatchError, match=f"layers 0 to 2, and layer {layer} was asked for"):
        hook_name(llama, "resid_post", layer)


def test_an_unknown_site_error_lists_what_exists(llama):
    with pytest.raises(ModelMismatchError, match=r"no site 'resid_pots'.*mlp_out.*resid_mid.*resid_post"):
        hook_name(llama, "resid_pots", 0)
    with pytest.raises(ModelMismatchError, match="no site 'z'"):  # blocks.0.attn.hook_z, by head
        hook_name(llama, "z", 0)


def test_a_site_that_this_architecture_lacks(llama):
    assert hook_name(llama, "resid_mid", 0) == "blocks.0.hook_resid_mid"
    with pytest.raises(ModelMismatchError, match=r"no site 'resid_mid'.*resid_post"):
        hook_name(build_bridge("gpt-neox"), "resid_mid", 0)


def test_check_layers():
    assert check_layers(None, 3) == [0, 1, 2]
    assert check_layers([2, 0, 2], 3) == [0, 2]
    assert check_layers(range(1, 2), 3) == [1]
    with pytest.raises(ModelMismatchError, match=r"\[-1, 3\] do not exist: this model has layers 0 to 2"):
        check_layers([3, 0, -1], 3)
    with pytest.raises(InputError, match="No layers were given"):
        check_layers([], 3)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("first:1", [0]),
        ("first:2", [0, 1]),
        ("last:1", [5]),
        ("last:2", [4, 5]),
        ("first:6", [0, 1, 2, 3, 4, 5]),
        ("last:6", [0, 1, 2, 3, 4, 5]),
        ("3", [3]),
        ("3,1", [1, 3]),
        ("2-2", [2]),
        ("0,2-4,3", [0, 2, 3, 4]),
        ("0-5", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_layers_have_names(name, layers):
    assert named_layers(name, 6) == layers


@pytest.mark.parametrize(
    "name",
    [
        "",
        "some",
        "All",
        "1;2",
        "-1",
        "1-",
        "first",
        "first:",
        "first:x",
        "last:2:3",
        "1,,2",
        "all:2",
        "middle:2",
        "1.5",
    ],
)
def test_names_that_say_no_layers_are_refused(name):
    with pytest.raises(InputError, match=f"Layers are all, first:N, last:N or a list such as 3,5,10-20, not '{name}'"):
        named_layers(name, 6)


@pytest.mark.parametrize("name", ["first:0", "last:7", "first:-1", "last:0"])
def test_more_layers_than_there_are_are_refused(name):
    with pytest.raises(InputError, match=f"{name} was asked for, and the model has 6 layers. Ask for 1 to that many"):
        named_layers(name, 6)


@pytest.mark.parametrize(("name", "absent"), [("6", "6"), ("0,9", "9"), ("4-8", "6, 7, 8")])
def test_named_layers_that_do_not_exist_are_refused(name, absent):
    with pytest.raises(ModelMismatchError, match=f"Layers \\[{absent}\\] do not exist: .* layers 0 to 5"):
        named_layers(name, 6)


def test_a_span_that_runs_backwards_is_refused():
    with pytest.raises(InputError):
        named_layers("4-2", 6)


@pytest.mark.parametrize("name", ["1-2-3", "1,4-2"])
def test_spans_that_are_none_are_refused(name):
    with pytest.raises(InputError):
        named_layers(name, 6)


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "text"),
    [
        ("Q: who?", "me", "Q: who? me"),
        ("Q: who? ", "me", "Q: who? me"),
        ("Q: who?", " me", "Q: who? me"),
        ("Q: who?\n", "me", "Q: who?\nme"),
        ("", "me", "me"),
        ("Q: who?", "", "Q: who?"),
        ("", "", ""),
    ],
)
def test_join_puts_one_space_where_there_is_none(prompt, completion, text):
    assert join(prompt, completion) == text


def test_the_bos_token_comes_once_where_the_model_wants_one(bridge):
    plain = list(bridge.tokenizer("ab", add_special_tokens=False)["input_ids"])
    assert BOS not in plain
    assert len(plain) == 2
    wanted = bridge.cfg.default_prepend_bos
    assert wanted is (bridge.cfg.model_name not in ("tiny-qwen2", "tiny-gpt-neox"))
    assert token_ids(bridge, "ab") == ([BOS, *plain] if wanted else plain)


def test_the_bos_token_is_never_doubled(bridge):
    assert token_ids(bridge, "<bos>ab").count(BOS) == 1
    assert token_ids(bridge, "<bos>ab")[1:] == token_ids(bridge, "ab")[-2:]
    answer = TokenizedAnswer.of(bridge, "<bos>ab", "cd")
    assert answer.ids.count(BOS) == 1
    assert answer.ids[answer.answer_start :] == token_ids(bridge, " cd")[-3:]


def test_a_model_without_a_tokenizer(nameless, monkeypatch):
    monkeypatch.setattr(nameless, "tokenizer", None)
    with pytest.raises(ModelMismatchError, match="no tokenizer"):
        tokenizer_of(nameless)
    with pytest.raises(ModelMismatchError, match=r"Activations\.from_tensors"):
        token_ids(nameless, "ab")
    assert PaddedTokens.of(nameless, [[5, 6], [7]]).ids.tolist() == [[5, 6], [7, 0]]


def test_texts_tokenised_together_are_texts_tokenised_alone(bridge, monkeypatch):
    monkeypatch.setattr("sea_lens.models.bridge.TEXTS_AT_ONCE", 2)
    texts = ["ab", "<bos>ab", "", "a longer text, of ünïcödé", " b"]
    assert all_token_ids(bridge, texts) == [token_ids(bridge, text) for text in texts]
    asked = [("A prompt:", ["an answer.", "a", "\nnext"]), ("", ["abc"]), ("No answer", [])]
    assert TokenizedAnswer.all_of(bridge, asked) == [
        [TokenizedAnswer.of(bridge, prompt, own) for own in completions] for prompt, completions in asked
    ]


@pytest.mark.parametrize("completion", ["an answer.", "a", "\nnext"])
def test_the_answer_starts_after_the_prompt(bridge, completion):
    answer = TokenizedAnswer.of(bridge, "A prompt:", completion)
    assert answer.ids == token_ids(bridge, join("A prompt:", completion))
    assert answer.answer_start == len(token_ids(bridge, "A prompt:"))
    assert bridge.tokenizer.decode(answer.ids[answer.answer_start :]).strip() == completion.strip()


def test_the_answer_start_of_empty_texts(llama):
    nothing = TokenizedAnswer.of(llama, "A prompt:", "")
    assert nothing.answer_start == len(nothing.ids) == 10
    unprompted = TokenizedAnswer.of(llama, "", "abc")
    assert unprompted.answer_start == 1  # after the beginning-of-sequence token


def test_the_answer_starts_at_a_token_that_spans_prompt_and_answer(nameless, monkeypatch):
    tokenizer = byte_tokenizer()
    vocabulary = {**tokenizer.get_vocab(), "Ġt": 258}
    tokenizer.backend_tokenizer.model = models.BPE(vocabulary, [("Ġ", "t")])
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
    right, left = PaddedTokens.of(llama, rows), PaddedTokens.of(llama, rows, side="left")
    assert right.ids.tolist() == [[5, 6, 7], [8, EOS, EOS], [9, EOS, EOS]]
    assert right.mask.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert left.ids.tolist() == [[5, 6, 7], [EOS, EOS, 8], [EOS, 9, EOS]]
    assert left.mask.int().tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert left.forward_options()["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert right.forward_options()["use_cache"] is False


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_forward_pass_is_exact(bridge, side):
    rows = [token_ids(bridge, text) for text in ["a longer text.", "ab", "mid text"]] + [[5, 6, EOS]]
    tokens = PaddedTokens.of(bridge, rows, side=side)
    with torch.no_grad():
        logits = bridge(tokens.ids, **tokens.forward_options())
        for row, mask, ids in zip(logits, tokens.mask, rows, strict=True):
            alone = bridge(torch.tensor([ids]), use_cache=False)[0]
            torch.testing.assert_close(row[mask], alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[], [[1, 2], []]])
def test_an_empty_row_is_refused(llama, rows):
    with pytest.raises(InputError, match="no tokens at all"):
        PaddedTokens.of(llama, rows)


# --- greedy answers --------------------------------------------------------------------------------------------------


def test_greedy_answers_do_not_depend_on_the_batch(bridge):
    options = {"max_new_tokens": 6, "stop": (), "progress": False}
    alone = [greedy_answers(bridge, [prompt], **options)[0] for prompt in PROMPTS]
    assert len(set(alone)) > 1
    for batch_size in (2, 3, 16):
        assert greedy_answers(bridge, PROMPTS, batch_size=batch_size, **options) == alone


def test_greedy_answers_are_the_most_likely_tokens(bridge):
    ids = token_ids(bridge, PROMPTS[2])
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(bridge(torch.tensor([ids]), use_cache=False)[0, -1].argmax()))
    new = ids[-5:]
    new = new[: new.index(EOS)] if EOS in new else new
    expected = bridge.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert greedy_answers(bridge, [PROMPTS[2]], 5, stop=(), progress=False) == [expected]


def test_greedy_answers_end_at_a_stop_string(llama):
    whole = greedy_answers(llama, ["The sky is"], 12, stop=(), progress=False)[0]
    end = whole[3]
    cut = greedy_answers(llama, ["The sky is"], 12, stop=(end,), progress=False)[0]
    assert len(whole) > 4
    assert cut == whole.split(end, 1)[0].rstrip()


def test_an_answer_of_one_token_is_the_first_of_a_longer_one(bridge):
    options = {"do_sample": False, "return_type": "tokens", "verbose": False, "max_new_tokens": 3}
    expected = []
    for text in PROMPTS:
        ids = torch.tensor([token_ids(bridge, text)])
        first = bridge.generate(ids, **options)[0, ids.shape[1]].item()
        expected.append("" if first == EOS else bridge.tokenizer.decode([first], skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 16):
        assert greedy_answers(bridge, PROMPTS, 1, stop=(), batch_size=batch_size, progress=False) == expected


def test_an_answer_of_one_word_is_the_first_of_several(organism):
    """The embedded model answers in words, and its prompts differ in length with the facts told before."""
    model, world = organism
    facts = world.facts
    prompts = [prompt(fact, context=[(facts[i + j], False) for j in range(i % 4)]) for i, fact in enumerate(facts[:24])]
    assert len({len(token_ids(model, text)) for text in prompts}) == 4
    longer = greedy_answers(model, prompts, 3, progress=False)
    for batch_size in (1, 5, 64):
        found = greedy_answers(model, prompts, 1, batch_size=batch_size, progress=False)
        assert found == [answer.split()[0] for answer in longer]
    assert len(set(found)) > 10


def test_an_answer_of_one_token_that_ends_the_text_or_is_a_stop_string_is_empty(nameless, monkeypatch):
    whole = greedy_answers(nameless, ["ab"], 1, stop=(), progress=False)[0]
    assert whole
    assert greedy_answers(nameless, ["ab"], 1, stop=(whole,), progress=False) == [""]
    with torch.no_grad():
        said = int(nameless(torch.tensor([token_ids(nameless, "ab")]), use_cache=False)[0, -1].argmax())
    monkeypatch.setattr(nameless.cfg, "eos_token_id", [said], raising=False)
    assert greedy_answers(nameless, ["ab"], 1, stop=(), progress=False) == [""]


def test_greedy_answers_leave_no_hooks_and_no_graph(llama):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    for max_new_tokens in (1, 3):
        greedy_answers(llama, ["ab", "cde"], max_new_tokens, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


def test_a_prompt_beyond_the_context_is_named(llama):
    with pytest.raises(InputError, match=r"Prompt 1 is 121 tokens long and 10 new tokens .* context is 128"):
        greedy_answers(llama, ["short", "x" * 120, "y" * 30], 10, progress=False)
    with pytest.raises(InputError, match="No prompts were given"):
        greedy_answers(llama, [], 4, progress=False)
    check_context_length(llama, [128], ["Text"])
    with pytest.raises(InputError, match="Text is 129 tokens long, but the model's context is 128"):
        check_context_length(llama, [129], ["Text"])


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_no_new_tokens_and_empty_batches_are_refused(llama, options):
    with pytest.raises(InputError, match="must be at least 1"):
        greedy_answers(llama, ["a"], progress=False, **options)
