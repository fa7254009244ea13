"""Answers, against one token after another by hand."""

import random

import numpy
import pytest
import torch
from conftest import Passes, build_bridge, make_editor
from transformer_lens.model_bridge import TransformerBridge

from sea_lens import Demonstrations, Editor, Site
from sea_lens.data.chat import Conversation
from sea_lens.errors import InputError
from sea_lens.models.answering import Asking, answer_as_it_comes, answer_prompts
from sea_lens.models.generate import generate, greedy_answers
from sea_lens.models.sampling import Choice, Sampling
from sea_lens.models.tokens import token_ids
from sea_lens.worlds.facts import prompt

EOS = 1
FEW_SHOT = "Answer with few words. Q: sea? A: blue. "
ASKED = [FEW_SHOT + text for text in ("Q: one", "Q: other", "Q: two", "Q: x", "Q: and the", "Q: red")]
PROMPTS = ["Q: where were fortune cookies invented? A:", "a", "one two three", "The sky is", "xyz, and then some more"]
OPTIONS = {"max_new_tokens": 6, "stop": (), "progress": False}


@pytest.fixture(scope="module")
def nameless():
    """A Llama of its own, to be changed by tests."""
    return build_bridge("llama")


@torch.no_grad()
def by_hand(model, text, n, ends=(EOS,)):
    ids = token_ids(model, text)
    start = len(ids)
    while len(ids) < start + n:
        ids.append(int(model(torch.tensor([ids]), use_cache=False)[0, -1].argmax()))
        if ids[-1] in ends:
            ids.pop()
            break
    return model.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_answers_are_the_most_likely_tokens_in_any_batch(bridge):
    expected = [by_hand(bridge, text, 6) for text in PROMPTS]
    assert len(set(expected)) > 1
    assert greedy_answers(bridge, PROMPTS, batch_size=3, **OPTIONS) == expected
    first = [by_hand(bridge, text, 1) for text in PROMPTS]
    assert greedy_answers(bridge, PROMPTS, 1, stop=(), progress=False) == first


def test_answers_after_a_shared_beginning_are_those_of_each_prompt_alone(bridge):
    plain = [greedy_answers(bridge, [text], **OPTIONS)[0] for text in ASKED]
    assert greedy_answers(bridge, ASKED, share_prefix=True, batch_size=4, **OPTIONS) == plain


@pytest.mark.parametrize("site", ["resid_post", "unembed.hook_in"])
@pytest.mark.parametrize("where", [None, 5, len(FEW_SHOT) + 8, "generated"])
def test_edited_answers_are_those_of_each_prompt_alone(llama, site, where):
    editor = make_editor(strength=2.0)
    if site == "unembed.hook_in":  # of which generation makes the last token's alone
        editor = Editor({Site(None, site): editor[0]})
    editor = editor if where is None else editor.at_positions(where)
    edited = [greedy_answers(llama, [text], editor=editor, **OPTIONS)[0] for text in ASKED]
    assert edited != greedy_answers(llama, ASKED, **OPTIONS)
    for share_prefix in (True, False):
        assert greedy_answers(llama, ASKED, editor=editor, share_prefix=share_prefix, **OPTIONS) == edited
    with editor.attached(llama):
        assert greedy_answers(llama, ASKED, share_prefix=True, **OPTIONS) == edited


def test_a_shared_beginning_is_run_once(llama):
    greedy_answers(llama, ASKED, share_prefix=True, **OPTIONS)  # the model has been tried by now
    longest = max(map(len, ASKED)) - len(FEW_SHOT) + 1
    with Passes(llama) as passes:
        greedy_answers(llama, ASKED, share_prefix=True, **OPTIONS)
    assert passes.tokens <= 1 + len(FEW_SHOT) + len(ASKED) * (longest + 5)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_answers_beyond_a_sliding_window_are_exact(architecture):
    model = build_bridge(architecture, sliding_window=16)
    alone = [by_hand(model, text, 6) for text in ASKED]
    assert greedy_answers(model, ASKED, share_prefix=True, **OPTIONS) == alone
    assert greedy_answers(model, ASKED, **OPTIONS) == alone


def test_an_answer_ends_at_every_end_token_that_the_model_names(nameless, monkeypatch):
    said = [token_ids(nameless, answer)[1:] for answer in greedy_answers(nameless, ASKED, **OPTIONS)]
    end = next(row[2] for row in said if any(row[2] not in other for other in said))
    expected = [by_hand(nameless, text, 6, (EOS, end)) for text in ASKED]
    assert len({len(text) for text in expected}) > 1
    # Turn ends of chat models often stand in the generation configuration alone.
    for holder in (nameless.cfg, nameless.original_model.generation_config):
        with monkeypatch.context() as patch:
            patch.setattr(holder, "eos_token_id", [EOS, end], raising=False)
            assert greedy_answers(nameless, ASKED, share_prefix=True, **OPTIONS) == expected
            assert greedy_answers(nameless, ASKED, batch_size=4, **OPTIONS) == expected


def test_what_a_configuration_says_of_sampling_does_not_count(nameless, monkeypatch):
    expected = greedy_answers(nameless, PROMPTS, **OPTIONS)
    settings = {"do_sample": True, "temperature": 0.1, "repetition_penalty": 5.0, "top_k": 2, "no_repeat_ngram_size": 1}
    for name, value in settings.items():
        monkeypatch.setattr(nameless.original_model.generation_config, name, value)
    assert greedy_answers(nameless, PROMPTS, **OPTIONS) == expected


def test_an_answer_ends_at_a_stop_string_and_so_does_the_run(llama):
    (whole,) = greedy_answers(llama, ["The sky is"], 12, stop=(), progress=False)
    with Passes(llama) as passes:
        (cut,) = greedy_answers(llama, ["The sky is"], 12, stop=(whole[3],), progress=False)
    assert len(whole) > 4
    assert cut == whole.split(whole[3], 1)[0].rstrip()
    assert passes.n < 12
    (first,) = greedy_answers(llama, ["ab"], 1, stop=(), progress=False)
    assert greedy_answers(llama, ["ab"], 1, stop=(first,), progress=False) == [""]


def test_an_answer_of_one_word_is_the_first_of_several(organism):
    """The embedded model answers in words, and its prompts differ in length with the facts told before."""
    model, world = organism
    facts = world.facts
    prompts = [prompt(fact, context=[(facts[i + j], False) for j in range(i % 4)]) for i, fact in enumerate(facts[:24])]
    assert len({len(token_ids(model, text)) for text in prompts}) == 4
    longer = greedy_answers(model, prompts, 3, progress=False)
    found = greedy_answers(model, prompts, 1, batch_size=5, progress=False)
    assert found == [answer.split()[0] for answer in longer]
    assert len(set(found)) > 10


def test_a_trained_model_answers_as_transformer_lens_has_it(stories):
    model = TransformerBridge.boot_transformers(str(stories), device="cpu")
    texts = ["Once upon a time", "The dog"]
    expected = [
        model.generate(text, max_new_tokens=12, do_sample=False, return_type="str", verbose=False, prepend_bos=True)
        for text in texts
    ]
    found = greedy_answers(model, texts, 12, stop=(), progress=False)
    assert all(whole.endswith(answer) for whole, answer in zip(expected, found, strict=True))


def test_generation_leaves_no_hooks_and_no_graph(llama):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    greedy_answers(llama, ["ab", "cde"], 3, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


# --- kept in a folder ------------------------------------------------------------------------------------------------


def test_a_killed_run_answers_only_what_is_left(llama, tmp_path):
    options = {**OPTIONS, "batch_size": 2, "folder": tmp_path}
    expected = greedy_answers(llama, PROMPTS, **OPTIONS)
    with pytest.raises(KeyboardInterrupt), Passes(llama, stop_after=8):
        greedy_answers(llama, PROMPTS, **options)
    with Passes(llama) as passes:
        assert greedy_answers(llama, PROMPTS, **options) == expected
        left = passes.n
        assert 0 < left < 18
        assert greedy_answers(llama, PROMPTS, **options) == expected
        assert passes.n == left
    edited = greedy_answers(llama, PROMPTS, editor=make_editor(), **options)
    assert edited == greedy_answers(llama, PROMPTS, editor=make_editor(), **OPTIONS) != expected


def test_neutral_answers_are_kept(organism, tmp_path):
    model, world = organism
    data = world.demonstrations()[:10]
    expected = data.with_neutral_answers(model, 1, progress=False)
    for _ in range(2):
        with Passes(model) as passes:
            assert data.with_neutral_answers(model, 1, folder=tmp_path, progress=False) == expected
    assert passes.n == 0
    assert isinstance(expected, Demonstrations)


# --- texts and conversations -----------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": "The sky"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }} {% endfor %}"
    "{% if add_generation_prompt %}ai{% if loud %}!{% endif %}:{% endif %}"
)


@pytest.fixture
def chatty(nameless, monkeypatch):
    """A model with a chat template that writes the beginning token and has a switch."""
    monkeypatch.setattr(nameless.tokenizer, "chat_template", TEMPLATE)
    return nameless


def test_a_text_is_continued_and_a_conversation_answered(chatty):
    model = chatty
    assert generate(model, "The sky is", max_new_tokens=6) == greedy_answers(model, ["The sky is"], **OPTIONS)[0]
    expected = by_hand(model, "user: The sky ai:", 6)  # the beginning token once
    assert generate(model, TALK, max_new_tokens=6) == expected
    loud = generate(model, TALK, max_new_tokens=6, chat_options={"loud": True}, system="Shout.")
    assert loud == by_hand(model, "system: Shout. user: The sky ai!:", 6)
    begun = [*TALK, {"role": "assistant", "content": "is"}]
    assert generate(model, begun, max_new_tokens=6) == by_hand(model, "user: The sky assistant: is", 6)
    editor = make_editor(strength=2.0)
    with editor.attached(model):
        edited = by_hand(model, "user: The sky ai:", 6)
        assert generate(model, TALK, max_new_tokens=6) == edited
    assert generate(model, TALK, editor, max_new_tokens=6) == edited != expected


@pytest.mark.parametrize(
    ("edit", "drawn"), [(make_editor(strength=0.5), {}), (None, {"temperature": 1.5, "top_p": 0.9, "top_k": 40})]
)
def test_several_are_answered_as_each_alone(chatty, edit, drawn):
    prompts = [*PROMPTS, TALK, [{"role": "user", "content": "x" * 40}], TALK]
    alone = [generate(chatty, one, edit, max_new_tokens=6, seed=5 + i, **drawn) for i, one in enumerate(prompts)]
    assert generate(chatty, prompts, edit, max_new_tokens=6, seed=5, batch_size=3, **drawn) == alone
    assert generate(chatty, [TALK], edit, max_new_tokens=6, seed=10, **drawn) == [alone[5]]
    assert len(set(alone)) > 2
    assert (alone[5] == alone[7]) is (not drawn)


def test_drawn_tokens_depend_on_the_seed_alone(llama, without_type_checks):
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate(), repr(numpy.random.get_state())
    options = {"max_new_tokens": 12, "temperature": 2.0}
    first = [generate(llama, "The sky", seed=seed, **options) for seed in (0, 1)]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(numpy.random.get_state())) == states[1:]
    assert [generate(llama, "The sky", seed=seed, **options) for seed in (0, 1)] == first
    assert first[0] != first[1]


@pytest.mark.parametrize(
    "drawn", [{"temperature": 1.3}, {"temperature": 0.7, "top_k": 3}, {"temperature": 2.0, "top_p": 0.5}]
)
def test_draws_have_the_probabilities_of_the_model(llama, drawn):
    n = 1500
    with torch.no_grad():
        logits = llama(torch.tensor([token_ids(llama, "The sky")]), use_cache=False)[0, -1]
    expected = (logits / drawn["temperature"]).softmax(-1)
    order = expected.argsort(descending=True)
    before = expected[order].cumsum(0) - expected[order]
    kept = torch.arange(len(order)) < (drawn.get("top_k") or len(order))
    expected[order[~(kept & (before < drawn.get("top_p", 1)))]] = 0
    expected /= expected.sum()
    chosen = Choice(Sampling(**drawn)).of(logits.expand(n, -1), range(n))
    counts = torch.bincount(torch.tensor(chosen), minlength=len(expected))
    assert not counts[expected == 0].any()
    deviation = (counts - n * expected).abs() / (n * expected * (1 - expected)).sqrt().clamp(min=0.5)
    assert deviation.max() < 5
    assert (counts > 0).sum() > 2


def test_end_tokens_of_the_generation_configuration_end_what_is_said(nameless, monkeypatch):
    whole = token_ids(nameless, generate(nameless, "The sky is", max_new_tokens=8))[1:]
    end = whole[3]
    monkeypatch.setattr(nameless.original_model.generation_config, "eos_token_id", [EOS, end])
    said = generate(nameless, "The sky is", max_new_tokens=8)
    assert token_ids(nameless, said)[1:] == whole[: whole.index(end)]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_impossible_prompts_are_named(llama):
    with pytest.raises(InputError, match=r"Prompt 1 is 121 tokens long and 10 new tokens .* context is 128"):
        greedy_answers(llama, ["short", "x" * 120, "y" * 30], 10, progress=False)
    with pytest.raises(InputError, match="No prompts were given"):
        greedy_answers(llama, [], 4, progress=False)
    for options in ({"max_new_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="must be at least 1"):
            greedy_answers(llama, ["a"], progress=False, **options)


def test_what_cannot_be_said_is_refused(llama, chatty, without_type_checks):
    for asked, options, message in [
        ("a", {"temperature": -1.0}, "temperature must be"),
        ("a", {"top_p": 0.0, "temperature": 1.0}, "top_p must be"),
        ("a", {"top_k": 5}, "Give a temperature"),
        ("a", {"stop": "x"}, "stop (is|must be) a list"),
        ("a", {"stop": [""]}, "stop (is|must be) a list"),
        ("a", {"editor": 6}, r"order is \(model, prompt, editor\), and a int"),
        ("a", {"system": "Be brief."}, "are for conversations"),
        ([], {}, "not empty"),
        (None, {}, "A prompt is a text, a conversation"),
        ([{"role": "user"}], {}, "Message 0 of a conversation must have a text as role and as content"),
        ([["a"]], {}, "Message 0 of a conversation must be a mapping"),
        (TALK, {"chat_options": {"enable_thinking": False}}, "no switch 'enable_thinking'"),
        (TALK, {"chat_options": {"tokenize": True}}, "no switch 'tokenize'"),
    ]:
        with pytest.raises(InputError, match=message):
            generate(chatty, asked, **{"max_new_tokens": 2, **options})
    with pytest.raises(InputError, match="no chat template"):
        generate(llama, TALK)
    with pytest.raises(InputError, match=r"Prompt 1 is a conversation.*with_chat_template"):
        greedy_answers(llama, ["a", Conversation(TALK)], progress=False)


@pytest.mark.parametrize("edits", [False, True])
def test_an_answer_as_it_comes_ends_as_the_whole_one(llama, edits):
    editor = make_editor() if edits else None
    asking = Asking(6)
    *begun, last = [answer.text for answer in answer_as_it_comes(llama, "The sea", asking, editor=editor)]
    assert last == answer_prompts(llama, ["The sea"], asking, editor=editor, progress=False)[0].text
    assert len(begun) == 5
    assert all(last.startswith(text.rstrip("\ufffd")) for text in begun)
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())
