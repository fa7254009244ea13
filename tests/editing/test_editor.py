import warnings
from dataclasses import replace

import pytest
import torch
from conftest import build_bridge, low_rank

from sea_lens import Demonstrations, Editor, EditorCard, Site, collect_activations, fit_sea
from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.bridge import ModelInfo
from sea_lens.models.generate import greedy_answers
from sea_lens.models.tokens import PaddedTokens, token_ids

THINGS = ["sky", "sea", "grass", "night", "rose", "sun", "snow", "coal", "leaf", "sand", "milk", "rust", "plum", "sea?"]
TRUE = [
    "blue",
    "teal",
    "green",
    "black",
    "pink",
    "gold",
    "white",
    "dark",
    "lime",
    "tan",
    "cream",
    "red",
    "violet",
    "wet",
]
FALSE = [color[::-1] for color in TRUE]
TEXTS = ["Q: what color is the sea? A:", "ab", "a text"]


def fit(model, site="resid_post"):
    rows = Demonstrations.from_lists([f"The {t} is" for t in THINGS], TRUE, FALSE, [t[::-1] for t in THINGS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        activations = collect_activations(model, rows, site=site, progress=False)
    editor = fit_sea(activations, explained_variance=0.99, center=True)
    assert all(editor[layer].rank > 0 for layer in range(3))
    return editor


@pytest.fixture(scope="module")
def editor(bridge):
    """An editor fitted on the architecture at hand."""
    return fit(bridge)


@pytest.fixture(scope="module")
def llama_editor(llama):
    return fit(llama)


@pytest.fixture
def own():
    """A Llama of the test's own, to be hooked and changed."""
    return build_bridge("llama")


def row(model, text=TEXTS[0]):
    return torch.tensor([token_ids(model, text)])


def logits(model, tokens, editor=None, **options):
    hooks = [] if editor is None else editor.fwd_hooks(model)
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False, **options)


def attached_logits(model, tokens, editor):
    with torch.no_grad(), editor.attached(model):
        return model(tokens, use_cache=False)


def generate(model, tokens, editor=None, cached=True):
    options = {"max_new_tokens": 8, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with model.hooks(fwd_hooks=[] if editor is None else editor.fwd_hooks(model)):
        return model.generate(tokens, return_type="tokens", use_past_kv_cache=cached, **options).tolist()


def close(one, other):
    torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


def no_hooks(model):
    return not any(point.fwd_hooks for point in model.hook_dict.values())


def by_hand(edits, editor):
    """Editors' hooks written anew: one edit after another at every layer."""

    def hook(tensor, hook):
        for edit in edits:
            tensor = edit[hook.layer()](tensor)
        return tensor

    return [(site.hook_name, hook) for site in editor.sites]


# --- at work, on six architectures -----------------------------------------------------------------------------------


def test_attached_equals_its_hooks_and_edits_by_hand(bridge, editor):
    tokens = row(bridge)
    edited = logits(bridge, tokens, editor)
    assert (edited - logits(bridge, tokens)).abs().max() > 0.01
    assert torch.equal(attached_logits(bridge, tokens, editor), edited)
    with torch.no_grad():
        assert torch.equal(bridge.run_with_hooks(tokens, fwd_hooks=by_hand([editor], editor), use_cache=False), edited)


def test_mlp_output_editors_act_at_mlp_outputs(bridge):
    editor, tokens = fit(bridge, site="mlp_out"), row(bridge)
    with torch.no_grad(), bridge.hooks(fwd_hooks=by_hand([editor], editor)):
        expected = bridge(tokens, use_cache=False)
    assert (expected - logits(bridge, tokens)).abs().max() > 0.01
    assert torch.equal(attached_logits(bridge, tokens, editor), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_and_padding_change_nothing(bridge, editor, side):
    tokens = PaddedTokens.of(bridge, [token_ids(bridge, text) for text in TEXTS], side=side)
    batched = logits(bridge, tokens.ids, editor, attention_mask=tokens.mask.long(), **position_ids(tokens))
    for text, mask, found in zip(TEXTS, tokens.mask, batched, strict=True):
        close(found[mask], logits(bridge, row(bridge, text), editor)[0])


def position_ids(tokens):
    return {"position_ids": tokens.forward_options()["position_ids"]}


def test_an_edit_does_not_look_ahead(bridge, editor):
    tokens = row(bridge)
    for length in (1, 4, tokens.shape[1] - 1):
        close(logits(bridge, tokens[:, :length], editor), logits(bridge, tokens, editor)[:, :length])


def test_the_kv_cache_changes_nothing(bridge, editor):
    tokens = torch.cat([row(bridge, "one text"), row(bridge, "two text")])
    plain = generate(bridge, tokens)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0, 3:] = True
    mask[1, -1] = True
    strong = editor.scaled(2.0)
    for view in (strong, strong.at_positions(2), strong.at_positions(tokens.shape[1] - 1), strong.at_positions(mask)):
        edited = generate(bridge, tokens, view)
        assert edited != plain
        assert generate(bridge, tokens, view, cached=False) == edited


def test_positions_before_the_first_are_spared(bridge, editor):
    tokens = row(bridge)
    plain, edited = logits(bridge, tokens), logits(bridge, tokens, editor.at_positions(5))
    assert torch.equal(edited[:, :5], plain[:, :5])
    assert (edited[:, 5] - plain[:, 5]).abs().max() > 0.01
    mask = torch.arange(tokens.shape[1])[None] >= 5
    assert torch.equal(logits(bridge, tokens, editor.at_positions(mask)), edited)
    assert torch.equal(logits(bridge, tokens, editor.at_positions(0)), logits(bridge, tokens, editor))


def test_greedy_answers_are_edited_alike_in_batches(bridge, editor):
    options = {"max_new_tokens": 6, "stop": (), "progress": False}
    with editor.scaled(2.0).attached(bridge):
        alone = [greedy_answers(bridge, [text], **options)[0] for text in TEXTS]
        assert greedy_answers(bridge, TEXTS, batch_size=3, **options) == alone
    assert greedy_answers(bridge, TEXTS, **options) != alone


def test_the_model_is_bit_identical_afterwards(bridge, editor):
    tokens, weights = row(bridge), {name: value.clone() for name, value in bridge.state_dict().items()}
    before = logits(bridge, tokens)
    attached_logits(bridge, tokens, editor)
    assert torch.equal(logits(bridge, tokens), before)
    assert all(torch.equal(value, weights[name]) for name, value in bridge.state_dict().items())
    assert no_hooks(bridge)


def test_strength_zero_is_the_identity_bit_for_bit(bridge, editor):
    tokens = row(bridge)
    assert editor.scaled(0.0).is_identity
    assert torch.equal(attached_logits(bridge, tokens, editor.scaled(0.0)), logits(bridge, tokens))
    assert not editor.is_identity


# --- beside other hooks ----------------------------------------------------------------------------------------------


def test_the_users_own_hooks_survive(own, llama_editor):
    tokens, calls = row(own), []

    def shout(name):
        return lambda tensor, hook: calls.append(name)

    own.add_hook("blocks.1.hook_resid_post", shout("before"))
    with torch.no_grad(), own.hooks(fwd_hooks=[("blocks.1.hook_resid_post", shout("around"))]):
        with llama_editor.attached(own):
            own.add_hook("blocks.1.hook_resid_post", shout("inside"))
            with own.hooks(fwd_hooks=[("blocks.1.hook_resid_post", shout("nested"))]):
                own(tokens)
        own.add_hook("blocks.1.hook_resid_post", shout("after"))
    assert calls == ["before", "around", "inside", "nested"]
    calls.clear()
    own(tokens)
    assert calls == ["before", "inside", "after"]


def test_the_users_hook_and_the_editor_both_act(own, llama_editor):
    tokens = row(own)
    own.add_hook("blocks.1.hook_resid_post", lambda tensor, hook: tensor * 2)
    first = [("blocks.1.hook_resid_post", lambda tensor, hook: tensor * 2)]
    edited = attached_logits(own, tokens, llama_editor)
    own.reset_hooks()
    with torch.no_grad():
        assert torch.equal(own.run_with_hooks(tokens, fwd_hooks=first + by_hand([llama_editor], llama_editor)), edited)


def test_nested_editors_compose(bridge, editor):
    tokens, other = row(bridge), editor.scaled(-0.5)
    with torch.no_grad(), editor.attached(bridge), other.attached(bridge):
        nested = bridge(tokens, use_cache=False)
    with torch.no_grad():
        by_hands = bridge.run_with_hooks(tokens, fwd_hooks=by_hand([editor, other], editor), use_cache=False)
    assert torch.equal(nested, by_hands)
    assert not torch.equal(nested, logits(bridge, tokens, editor))


def test_one_editor_can_be_attached_again_and_again(llama, llama_editor):
    tokens = row(llama)
    found = [attached_logits(llama, tokens, llama_editor) for _ in range(3)]
    assert torch.equal(found[0], found[2])


def test_an_exception_inside_is_not_masked_and_leaves_no_hooks(llama, llama_editor):
    with pytest.raises(ZeroDivisionError), llama_editor.attached(llama):
        1 / 0  # noqa: B018
    assert no_hooks(llama)


@pytest.mark.parametrize("stop", [None, 0, 1])
def test_hooks_that_never_fire_are_an_error(llama, llama_editor, stop):
    def run():
        with torch.no_grad(), llama_editor.at_layers([1, 2]).attached(llama):
            if stop is not None:
                llama(row(llama), stop_at_layer=stop)

    with pytest.raises(HookNeverFiredError, match=r"blocks.1.hook_resid_post, blocks.2.hook_resid_post"):
        run()
    assert no_hooks(llama)


def test_hooks_of_which_some_never_fire_are_warned_about(llama, llama_editor):
    with pytest.warns(SeaLensWarning, match=r"blocks.2.hook_resid_post never fired"):  # noqa: SIM117
        with torch.no_grad(), llama_editor.attached(llama):
            llama(row(llama), stop_at_layer=1)


def test_inference_mode_does_not_spoil_an_editor(llama, llama_editor):
    """Tensors made under inference mode cannot take part in a later graph; an editor caches its own."""
    editor, tokens = llama_editor.scaled(0.5), row(llama)
    with torch.inference_mode():
        first = llama.run_with_hooks(tokens, fwd_hooks=editor.fwd_hooks(), use_cache=False).clone()
    second = llama.run_with_hooks(tokens, fwd_hooks=editor.fwd_hooks(), use_cache=False)
    second.sum().backward()
    assert torch.equal(first, second)
    llama.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype(dtype, llama, llama_editor):
    half, seen = build_bridge("llama", dtype=dtype), []
    editor, watch = fit(half), [("blocks.1.hook_resid_post", lambda tensor, hook: seen.append(tensor.dtype))]
    with torch.no_grad(), editor.attached(half), half.hooks(fwd_hooks=watch):
        edited = half(row(half), use_cache=False)
    assert edited.dtype == dtype
    assert seen == [dtype]
    assert editor[0].right.dtype == torch.float32
    exact = attached_logits(llama, row(llama), llama_editor)
    roughly = attached_logits(half, row(half), llama_editor).float()
    assert (roughly - exact).norm() < 0.05 * exact.norm()


# --- models it does not fit ------------------------------------------------------------------------------------------


def hand_made(d_model=32, layers=(0, 1, 2), site="resid_post", **card):
    edit = low_rank(torch.eye(d_model)[:, :2], torch.tensor([1.0, -1.0]))
    return Editor({Site(layer, site): edit for layer in layers}, EditorCard("by hand", {}, **card))


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        (hand_made(16), "for d_model 16, and tiny-llama has d_model 32"),
        (hand_made(layers=(1, 3)), r"Layers \[3\] do not exist: this model has layers 0 to 2"),
        (hand_made(model=ModelInfo("deep", 5, 32, "raw")), r"model of 5 layers \(deep\), and tiny-llama has 3"),
        (hand_made(site="hook_nowhere"), "no site 'nowhere'.*resid_post"),
    ],
)
def test_an_editor_that_does_not_fit_is_refused(llama, editor, message):
    with pytest.raises(ModelMismatchError, match=message), editor.attached(llama):
        pass
    assert no_hooks(llama)


def test_fwd_hooks_check_the_width(llama):
    with pytest.raises(ModelMismatchError, match="made for width 16"):
        llama.run_with_hooks(row(llama), fwd_hooks=hand_made(16).fwd_hooks())


def test_a_site_that_the_architecture_lacks_is_refused(llama):
    editor = hand_made(site="resid_mid")
    attached_logits(llama, row(llama), editor)
    with pytest.raises(ModelMismatchError, match="no site 'resid_mid'"):
        editor.check(build_bridge("gpt-neox"))


def test_folded_and_raw_layernorm_weights_do_not_mix():
    raw, folded = build_bridge("gpt2"), build_bridge("gpt2")
    folded.enable_compatibility_mode(disable_warnings=True)
    of_raw, of_folded = fit(raw), fit(folded)
    of_raw.check(raw)
    of_folded.check(folded)
    with pytest.raises(ModelMismatchError, match=r"fitted with raw weights.*layernorm folded.*enable_compat"):
        of_raw.check(folded)
    with pytest.raises(ModelMismatchError, match="fitted with layernorm folded weights"):
        of_folded.check(raw)


def test_rmsnorm_models_may_be_processed(own, llama, llama_editor):
    own.enable_compatibility_mode(disable_warnings=True)
    edited = attached_logits(own, row(own), llama_editor).log_softmax(-1)
    torch.testing.assert_close(
        edited, attached_logits(llama, row(llama), llama_editor).log_softmax(-1), atol=1e-3, rtol=0
    )


def test_another_models_name_is_warned_about(llama, llama_editor):
    other = replace(llama_editor, card=replace(llama_editor.card, model=ModelInfo("else", 3, 32, "raw")))
    with pytest.warns(SeaLensWarning, match="fitted on else and is used on tiny-llama"):
        other.check(llama)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llama_editor.check(llama)


def test_another_beginning_of_plain_prompts_is_warned_about(own, llama_editor):
    fitted = replace(llama_editor.card.model or ModelInfo.of(own), beginning_token=ModelInfo.of(own).beginning_token)
    editor = replace(llama_editor, card=EditorCard.from_json(replace(llama_editor.card, model=fitted).to_json()))
    own.cfg.default_prepend_bos = not fitted.beginning_token
    assert ModelInfo.of(own) == fitted
    with pytest.warns(SeaLensWarning, match=r"fitted with a beginning token .* used without one\. Set .* = True"):
        editor.check(own)


def test_editors_that_cannot_be(monkeypatch):
    with pytest.raises(InputError, match="at least one layer"):
        Editor({}, EditorCard("by hand", {}))
    with pytest.raises(InputError, match="share one width"):
        Editor({0: hand_made(4)[0], 1: hand_made(8)[0]}, EditorCard("by hand", {}))
    with pytest.raises(AttributeError):
        hand_made().where = 3
    with pytest.raises(TypeError):
        hand_made().edits[0] = None


@pytest.mark.parametrize("first", [1, 5, 6, 9])
def test_positions_within_and_beyond_the_prompt_do_not_depend_on_the_cache(llama, llama_editor, first):
    tokens = torch.tensor([[0, *range(40, 45)]])
    editor = llama_editor.scaled(3.0).at_positions(first)
    assert generate(llama, tokens, editor) == generate(llama, tokens, editor, cached=False)


def test_positions_that_no_pass_reaches_are_reported(llama, llama_editor):
    tokens = torch.tensor([[0, 40, 41]])
    with (
        pytest.raises(HookNeverFiredError, match="at the positions chosen"),
        llama_editor.at_positions(3).attached(llama),
    ):
        llama(tokens)
    with llama_editor.at_positions(2).attached(llama):
        llama(tokens)
