"""Editors on plain models with PEFT's adapters, and with quantized weights: the edits are the bridge's all the same."""

import copy
import importlib

import pytest
import torch
from tiny import GIVEN, IDS, MASK, byte_tokenizer, edit, make_editor
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import sea_lens as sl
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.plain import SITES
from sea_lens.models.sites import Site, widths_of

REAL = MASK.bool()
GENERATED = {"attention_mask": MASK, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="peft is not installed: pip install peft")


def plain_model(llama) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(llama.original_model.config).eval()


def bridge_around(model: nn.Module):
    model.config.architectures = ["LlamaForCausalLM"]
    return sl.load_model("tiny", hf_model=model, tokenizer=byte_tokenizer())


def adapted(peft, model: nn.Module, *names: str):
    """With adapters that change its logits by about their spread. No name that a user chooses may be taken for a module's."""
    settings = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(copy.deepcopy(model), settings, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def sites_of(bridge) -> dict[Site, int]:
    sites = [Site(None, name) if name.startswith("unembed") else Site(1, name) for name in SITES]
    return dict(zip(sites, widths_of(bridge, sites), strict=True))


@torch.no_grad()
def test_with_lora_edits_are_those_of_the_bridge_around_the_merged_weights(peft, llama):
    base = plain_model(llama)
    model = adapted(peft, base, "down_proj", "expert")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    merged = bridge_around(copy.deepcopy(model).merge_and_unload(adapter_names=["expert"]).eval())
    unedited = merged(IDS, attention_mask=MASK)
    for name, width in {"attn.hook_z": 32, "mlp.hook_post": 64, "resid_post": 32}.items():  # by modules with adapters
        site = Site(1, name)
        editor = sl.Editor({site: edit(width)}).at_positions([2, -2])
        with editor.attached(merged):
            wanted = merged(IDS, attention_mask=MASK)
        assert (wanted - unedited)[REAL].abs().max() > 0.1, site
        with editor.attached(model):  # adapters come and go inside
            found = {}
            for name in ("down_proj", "expert"):
                model.set_adapter(name)
                found[name] = model(input_ids=IDS, **GIVEN).logits
            with model.disable_adapter():
                without = model(input_ids=IDS, **GIVEN).logits
        torch.testing.assert_close(found["expert"][REAL], wanted[REAL], atol=1e-4, rtol=1e-4)
        assert (found["down_proj"] - wanted)[REAL].abs().max() > 0.1
        with editor.attached(base):
            assert torch.equal(base(IDS, **GIVEN).logits, without)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    editor = make_editor(strength=2.0).at_positions("generated")
    with editor.attached(merged):
        wanted = merged.original_model.generate(IDS, **GENERATED)
    with editor.attached(model):
        assert torch.equal(model.generate(input_ids=IDS, **GENERATED), wanted)

    # A bridge around a model with adapters; its weights are not edited.
    bridge = bridge_around(copy.deepcopy(model))
    with editor.attached(bridge):
        assert torch.equal(bridge.original_model.generate(IDS, **GENERATED), wanted)
    keyed = sl.Editor({Site(1, "mlp_out"): sl.KeyedEdit(keys=torch.eye(64, 1), outs=torch.ones(32, 1))})
    with pytest.raises(ModelMismatchError, match=r"layer 1 has an adapter .*merge_and_unload"):
        sl.WeightEdit(keyed).check(bridge)
    with keyed.attached(bridge), sl.WeightEdit(keyed).attached(merged):
        found, wanted = bridge(IDS, attention_mask=MASK), merged(IDS, attention_mask=MASK)
    torch.testing.assert_close(found[REAL], wanted[REAL], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_positions_are_refused_where_virtual_tokens_come_first(kind, peft, llama):
    settings = getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(plain_model(llama), settings).eval()
    with pytest.raises(ModelMismatchError, match="puts 3 virtual tokens before every text"):
        make_editor().at_positions("generated").check(model)
    with pytest.raises(ModelMismatchError, match="puts 3 virtual tokens before every text"):
        bridge_around(model)
    with torch.no_grad(), make_editor().attached(model):
        edited = model(input_ids=IDS).logits
    assert not torch.equal(edited, model(input_ids=IDS).logits)


def bitsandbytes(bits: int):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else BitsAndBytesConfig(load_in_4bit=True)


def torchao():
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")
    from transformers import TorchAoConfig  # which imports it

    return TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())


KINDS = {"bitsandbytes-8": lambda: bitsandbytes(8), "bitsandbytes-4": lambda: bitsandbytes(4), "torchao": torchao}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_with_quantized_weights_edits_are_those_of_the_bridge_around_the_same_model(kind, llama, tmp_path):
    settings = KINDS[kind]()
    config = copy.deepcopy(llama.original_model.config)
    config.hidden_size = config.intermediate_size = 64  # bitsandbytes packs blocks of 64
    config.head_dim, config.num_key_value_heads = 16, config.num_attention_heads
    torch.manual_seed(0)
    exact = AutoModelForCausalLM.from_config(config).eval()
    exact.save_pretrained(tmp_path)
    models = [
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=settings, device_map="cpu", dtype=torch.float32
        ).eval()
        for _ in range(2)
    ]
    model, bridge = models[0], bridge_around(models[1])
    before = model(IDS, **GIVEN).logits
    assert not torch.equal(before, exact(IDS, **GIVEN).logits)
    for site, width in sites_of(bridge).items():
        editor = sl.Editor({site: edit(width)}).at_positions([2, -2])
        with editor.attached(bridge):
            wanted = bridge(IDS, attention_mask=MASK)
        with editor.attached(model):
            found = model(IDS, **GIVEN).logits
        torch.testing.assert_close(found[REAL], wanted[REAL], atol=1e-2, rtol=1e-2)
        assert (found - before)[REAL].abs().max() > 0.1, site
    assert torch.equal(model(IDS, **GIVEN).logits, before)


@pytest.mark.parametrize("given", [3, "gpt2", nn.Linear(2, 2)])
def test_what_is_no_model_is_not_wrapped(given):
    with pytest.raises(InputError, match=r"hf_model= takes a Hugging Face language model, and an? \w+ was given"):
        sl.load_model("tiny", hf_model=given)
