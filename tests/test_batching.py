"""For every runner, kind of edit, choice of tokens and padding side: a batch of k is what one by one gives."""

import warnings

import pytest
import torch
from conftest import build_bridge, low_rank

import sea_lens as sl
import sea_lens.errors
from sea_lens.editing.conditions import WhenAligned
from sea_lens.editing.sparing import NotMassive
from sea_lens.editing.where import At, Both, From, GeneratedOnly, PromptOnly, Slice
from sea_lens.errors import SeaLensWarning
from sea_lens.methods.sea.feature_space import FeatureSpaceEdit, Tanh
from sea_lens.methods.sea.published import PublishedEdit
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import score_answers
from sea_lens.models.passes import telling
from sea_lens.models.tokens import PaddedTokens

D = 32
PROMPTS = ["What do cows drink?", "Q", "Where do fortune cookies come from, I would say:", "", "How many legs has it?"]
RIGHT = ["water", "yes", "San Francisco", "a", "four"]
WRONG = ["milk as they say", "no", "China", "bee", "seven legs"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis(rank, seed=0):
    return torch.linalg.qr(normal(D, rank, seed=seed))[0]


EDITS = {
    "symmetric": low_rank(basis(2), torch.tensor([0.9, -0.9])),
    "oblique": sl.AffineEdit(normal(D, 2) / 4, basis(2, 1), center=normal(D, seed=2), shift=normal(D, seed=3) / 4),
    "feature space": FeatureSpaceEdit(Tanh(2.0), (low_rank(basis(2), torch.tensor([0.9, -0.9]), restore_norm=False),)),
    "published": PublishedEdit(basis(3), basis(3, 1)),
}
WHERES = {
    "all": None,
    "from": From(1),
    "from the prompt's end": From(-2),
    "slice": Slice(1, -1),
    "list": At((0, 2, -1)),
    "prompt": PromptOnly(),
    "generated": GeneratedOnly(),
    "condition": WhenAligned("blocks.0.hook_resid_post", normal(D, seed=9), 0.05, sparing=NotMassive(True)),
    "not massive": NotMassive(True, (("blocks.1.hook_resid_post", 2.03), ("blocks.2.hook_resid_post", 2.7))),
    "prompt on condition": Both(
        PromptOnly(), WhenAligned("blocks.0.hook_resid_post", normal(D, seed=9), 0.05, token="last")
    ),
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return build_bridge(request.param)


def answers(model, editor, size):
    with editor.attached(model):
        prompts = [prompt or "x" for prompt in PROMPTS]
        return greedy_answers(model, prompts, 5, stop=(), batch_size=size, progress=False)


def scores(model, editor, size, preamble=""):
    questions = sl.Questions.from_lists(
        [preamble + prompt for prompt in PROMPTS], [[r] for r in RIGHT], [[w] for w in WRONG]
    )
    return score_answers(model, questions, editor, batch_size=size, progress=False).log_probabilities


def scores_after_a_shared_beginning(model, editor, size):
    return scores(model, editor, size, "Here are some questions, each with its answer. ")


def preferences(model, editor, size):
    questions = sl.Questions.from_lists(PROMPTS, [[r] for r in RIGHT], [[w] for w in WRONG])
    with editor.attached(model):
        return torch.tensor(sl.prefer_right(model, questions, batch_size=size).table["margin"].tolist())


def effects(model, editor, size):
    questions = sl.Questions.from_lists(PROMPTS, [[r] for r in RIGHT], [[w] for w in WRONG])
    found = sl.measure_effects(model, questions, editor, control=0, batch_size=size, damage=False, progress=False)
    return torch.tensor(found.per_question["log_probability_difference edited"].tolist())


def activations(model, editor, size):
    prompts = [f"{number} {prompt}" for number, prompt in enumerate(PROMPTS)]
    rows = sl.Demonstrations.from_lists(prompts, RIGHT, WRONG, WRONG[::-1])
    found = sl.collect_activations(model, rows, editor=editor, batch_size=size, progress=False)
    return torch.stack([side[layer] for side in (found.positive, found.negative) for layer in found.layers])


def divergence(model, editor, size):
    texts = ["a text of some length", "short", "Two of them and one more."]
    return torch.tensor(sl.kl_to_unedited(model, texts, editor, batch_size=size))


RUNNERS = [answers, scores, scores_after_a_shared_beginning, preferences, effects, activations, divergence]


def editor_of(kind, where):
    edits = dict.fromkeys(("blocks.1.hook_resid_post", "blocks.2.hook_resid_post"), EDITS[kind])
    return sl.Editor(edits, where=WHERES[where])


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.__name__)
@pytest.mark.parametrize(
    ("kind", "where"), [("symmetric", where) for where in WHERES] + [(kind, "from") for kind in list(EDITS)[1:]]
)
def test_a_batch_is_what_one_by_one_gives(llama, runner, kind, where):
    model = llama
    editor = editor_of(kind, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        alone, together = runner(model, editor, 1), runner(model, editor, 4)
    if runner is answers:
        assert together == alone
    else:
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(model, where, side):
    editor, rows = editor_of("symmetric", where), [[5, 6, 7, 8, 9], [11], [3, 4, 12]]
    tokens = PaddedTokens.of(model, rows, side=side)
    lengths = torch.tensor([3, 1, 2])  # of the prompts
    with torch.no_grad(), editor.attached(model):
        with telling(model, lengths):
            batched = model(tokens.ids, **tokens.forward_options())
        for row, mask, found, length in zip(rows, tokens.mask, batched, lengths.tolist(), strict=True):
            with telling(model, length):
                alone = model(torch.tensor([row]), use_cache=False)[0]
            torch.testing.assert_close(found[mask], alone, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize("generate", ["transformer_lens", "hugging_face"])
def test_a_kv_cache_changes_nothing(model, where, generate):
    editor = editor_of("symmetric", where).scaled(1.5)
    ids, mask = torch.tensor([[1, 1, 5, 6, 9], [7, 8, 9, 10, 11]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])

    def run(cached):
        with editor.attached(model):
            if generate == "hugging_face":
                options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "use_cache": cached}
                return model.original_model.generate(ids, attention_mask=mask, **options).tolist()
            options = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
            return model.generate(
                ids, attention_mask=mask, use_past_kv_cache=cached, return_type="tokens", **options
            ).tolist()

    assert run(True) == run(False)


@pytest.mark.parametrize("where", WHERES)
def test_a_list_of_hooks_serves_many_passes_as_attached_does(model, where):
    editor = editor_of("symmetric", where)
    exact, plain = editor.fwd_hooks(model), editor.fwd_hooks()
    rows = [torch.tensor([row]) for row in ([5, 6, 7, 8, 9], [11, 12], [3], [3, 4, 12, 20])]
    with torch.no_grad(), editor.attached(model):
        with telling(model, 2):
            model(rows[0])  # so that there are tokens after a prompt, which some editors want
        expected = [model(row, use_cache=False) for row in rows]
    with torch.no_grad():
        for row, edited in zip(rows, expected, strict=True):
            assert torch.equal(model.run_with_hooks(row, fwd_hooks=exact, use_cache=False), edited)
            if row.shape[1] > 1 or where == "all":
                assert torch.equal(model.run_with_hooks(row, fwd_hooks=plain, use_cache=False), edited)
            else:
                with pytest.raises(sl.errors.InputError, match=r"editor\.fwd_hooks\(model\)"):
                    model.run_with_hooks(row, fwd_hooks=plain, use_cache=False)
    del exact, plain
    assert not model.original_model._forward_pre_hooks


@pytest.mark.parametrize("where", WHERES)
def test_several_tokens_over_a_cache_are_what_one_pass_over_all_gives(model, where):
    """A chat with a kept cache. What comes after the first pass is not its prompt, so a runner tells where that ends."""
    editor, ids = editor_of("symmetric", where), torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad(), editor.attached(model), telling(model, 4):
        whole = model(ids, use_cache=False)
        _, cache = model(ids[:, :4], return_type="logits_and_cache", use_cache=True)
        after = model(ids[:, 4:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(after, whole[:, 4:], atol=3e-5, rtol=1e-4)
