"""Whose hooks are on a model, and which of its logits are made."""

import warnings

import pytest
import torch
from conftest import build_bridge, make_editor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, OPTConfig

from sea_lens import SeaLensWarning
from sea_lens.errors import HookNeverFiredError, InputError
from sea_lens.models.hooks import attached_editors, editing, foreign_hooks, logits_at, model_facts
from sea_lens.models.tokens import PaddedTokens

DOUBLE = [("blocks.1.hook_resid_post", lambda tensor, hook: 2 * tensor)]


def test_hooks_are_told_apart_by_their_owners(llama):
    one, other = make_editor(), make_editor(seed=1).at_positions(1)
    assert (attached_editors(llama), foreign_hooks(llama)) == ([], [])
    with llama.hooks(fwd_hooks=one.fwd_hooks()), other.attached(llama), warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        assert {id(editor) for editor in attached_editors(llama)} == {id(one), id(other)}
        assert foreign_hooks(llama) == []
        facts = model_facts(llama, one)
        with llama.hooks(fwd_hooks=DOUBLE):
            assert {"blocks.1.hook_resid_post"} <= set(foreign_hooks(llama))
            with pytest.raises(InputError, match=r"hooks of your own \(blocks\.1.*leave `folder` out"):
                model_facts(llama)
        llama(torch.tensor([[0, 5, 6]]))
    assert facts["attached"] != model_facts(llama)["attached"] == []
    assert facts["editor"] == one.fingerprint


def test_transformer_lens_own_hooks_are_not_the_users():
    config = OPTConfig(
        vocab_size=258, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    )
    wrapped = AutoModelForCausalLM.from_config(config).eval()
    wrapped.config.architectures = [type(wrapped).__name__]
    model = TransformerBridge.boot_transformers(
        "tiny-opt", hf_model=wrapped, tokenizer=build_bridge("llama").tokenizer, device="cpu"
    )
    assert any(point.fwd_hooks for point in model.hook_dict.values())
    assert foreign_hooks(model) == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_the_whole_pass(bridge, side):
    tokens = PaddedTokens.of(bridge, [[0, 5, 6, 7], [0, 8], [9, 10, 11]], side)
    where = tokens.mask & (torch.arange(4) != 2)
    with torch.no_grad(), make_editor().attached(bridge):
        whole = bridge(tokens.ids, **tokens.forward_options())
        torch.testing.assert_close(logits_at(bridge, tokens, where), whole[where], atol=1e-5, rtol=1e-5)
        everywhere = torch.ones_like(where)
        torch.testing.assert_close(logits_at(bridge, tokens, everywhere), whole.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_an_edit_that_never_acts_is_an_error_where_all_texts_were_run(llama):
    editor = make_editor().at_positions(50)
    with editing(llama, editor, lambda: False):
        llama(torch.tensor([[0, 5, 6]]))
    with pytest.raises(HookNeverFiredError), editing(llama, editor, lambda: True):
        llama(torch.tensor([[0, 5, 6]]))
    with editing(llama, None, lambda: True):
        assert attached_editors(llama) == []
