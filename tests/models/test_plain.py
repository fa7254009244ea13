"""Editors on plain Hugging Face models: the same edits at the same places as on a bridge around the same model."""

import copy

import pytest
import torch
from conftest import ARCHITECTURES, build_bridge
from tiny import GIVEN, IDS, MASK, edit, make_editor
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Trainer,
    TrainingArguments,
    pipeline,
)

import sea_lens as sl
from sea_lens.errors import HookNeverFiredError, ModelMismatchError
from sea_lens.models.plain import SITES, plain_info
from sea_lens.models.sites import Site, widths_of


def plain_of(bridge) -> nn.Module:
    """The model that the bridge was made around, before it was."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(bridge.original_model.config).eval()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edits_are_those_of_the_bridge_at_every_site_under_padding(architecture):
    bridge = build_bridge(architecture)
    plain = plain_of(bridge)
    sites = [Site(None, name) if name.startswith("unembed") else Site(1, name) for name in SITES]
    before = plain(IDS, **GIVEN).logits
    unedited = bridge(IDS, attention_mask=MASK)
    for site, width in zip(sites, widths_of(bridge, sites), strict=True):
        editor = sl.Editor({site: edit(width)}).at_positions([2, -2])
        with editor.attached(bridge):
            wanted = bridge(IDS, attention_mask=MASK)
        with editor.attached(plain):
            found = plain(IDS, **GIVEN).logits
        real = MASK.bool()
        assert (wanted - unedited)[real].abs().max() > 0.1, site
        torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)
    assert torch.equal(plain(IDS, **GIVEN).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


@torch.no_grad()
@pytest.mark.parametrize("where", ["all", "generated", "prompt", [-1]])
def test_its_generate_writes_what_the_bridge_writes(where, llama):
    plain, editor = plain_of(llama), make_editor(strength=2.0).at_positions(where)
    options = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    with editor.attached(llama):
        wanted = llama.original_model.generate(IDS, **options)
    with editor.attached(plain):
        found = plain.generate(IDS, **options)
        uncached = plain.generate(IDS, use_cache=False, **options)
    assert torch.equal(found, wanted)
    assert torch.equal(uncached, wanted)
    assert not torch.equal(found, plain.generate(IDS, **options))


@torch.no_grad()
@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 1.5}, {"num_beams": 3, "do_sample": False}])
def test_sampling_and_beams_are_those_of_the_bridge(options, llama):
    plain, editor = plain_of(llama), make_editor(strength=2.0).at_positions("generated")
    options = options | {"attention_mask": MASK, "max_new_tokens": 5, "pad_token_id": 1}
    answers = []
    for model, runs in ((llama, llama.original_model), (plain, plain)):
        with editor.attached(model):
            torch.manual_seed(0)
            answers.append(runs.generate(IDS, **options))
    torch.manual_seed(0)
    assert torch.equal(*answers)
    assert not torch.equal(answers[1], plain.generate(IDS, **options))


def test_a_pipeline_and_a_trainer_run_it_edited(tmp_path, llama):
    """Tools that are given a model, and know nothing of editors."""
    plain, editor = plain_of(llama), make_editor(strength=2.0)
    tokenizer = copy.copy(llama.tokenizer)
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    write = pipeline("text-generation", model=plain, tokenizer=tokenizer, device="cpu")
    given = tokenizer("Some text", return_tensors="pt")
    with editor.attached(llama), torch.no_grad():
        new = llama.original_model.generate(**given, max_new_tokens=6, do_sample=False, pad_token_id=1)
        logits = llama(IDS)
    with editor.attached(plain):
        assert write("Some text", **options)[0]["generated_text"] == tokenizer.decode(
            new[0, given["input_ids"].shape[1] :], skip_special_tokens=True
        )
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    settings = TrainingArguments(
        tmp_path, max_steps=1, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    before = plain.model.layers[0].mlp.down_proj.weight.clone()
    with editor.attached(plain):
        trainer = Trainer(plain, settings, train_dataset=rows)
        trainer.train()
    wanted = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(wanted), abs=1e-3)
    assert not torch.equal(plain.model.layers[0].mlp.down_proj.weight, before)  # gradients pass through the edit


def test_a_model_with_a_device_map(tmp_path, llama):
    plain, editor = plain_of(llama), make_editor()
    plain.save_pretrained(tmp_path)
    mapped = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    with torch.no_grad(), editor.attached(mapped):
        found = mapped(IDS).logits
    with torch.no_grad(), editor.attached(plain):
        torch.testing.assert_close(found, plain(IDS).logits)


def test_editors_nest_and_edit_what_a_model_around_it_runs(llama):
    plain, one, other = plain_of(llama), make_editor(), make_editor(seed=1)

    class Around(nn.Module):
        """As PEFT's models are: a base model that is run by its `forward`, and not called."""

        def __init__(self) -> None:
            super().__init__()
            self.base, self.config = plain, plain.config

        def get_output_embeddings(self) -> nn.Module:
            return self.base.get_output_embeddings()

        def forward(self, **given: object) -> object:
            return self.base.forward(**given)

    around = Around()
    with torch.no_grad():
        with one.attached(llama), other.attached(llama):
            wanted = llama(IDS)
        with one.attached(around), other.at_positions("prompt").attached(around):
            found = around(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_edited_is_refused(llama):
    plain = plain_of(llama)
    cases = [
        (plain, sl.Editor({Site(0, "ln2.hook_out"): edit(32)}), "no module stands for"),
        (plain, sl.Editor({7: edit(32)}), "7"),
        (plain, sl.Editor({0: edit(8)}), "d_model 8"),
        (nn.Linear(2, 2), sl.Editor({0: edit(32)}), r"TransformerBridge or .* language model, and a Linear was given"),
        ("gpt2", sl.Editor({0: edit(32)}), r"a str was given\. Load it first: sea_lens.load_model\('gpt2'\)"),
        (type(plain), sl.Editor({0: edit(32)}), "the class LlamaForCausalLM was given. Make a model first"),
        (nn.DataParallel(plain), sl.Editor({0: edit(32)}), r"Give the model in it, its \.module"),
        (plain.model, sl.Editor({Site(None, "unembed.hook_in"): edit(32)}), "no module stands for unembed"),
    ]
    for model, editor, words in cases:
        with pytest.raises(ModelMismatchError, match=words):
            editor.check(model)
    with pytest.raises(HookNeverFiredError, match="no forward pass reached"), make_editor().attached(plain):
        pass


SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = SMALL | {"model_type": "bert", "architectures": ["BertModel"]}
KINDS = [
    BERT,
    BERT | {"is_decoder": True},
    SMALL | {"model_type": "deberta-v2"},
    SMALL | {"model_type": "gemma3_text", "head_dim": 8, "num_key_value_heads": 2},
    SMALL | {"model_type": "gemma3_text", "head_dim": 8, "num_key_value_heads": 2, "use_bidirectional_attention": True},
    {"model_type": "xlnet", "vocab_size": 64, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16},
    {"model_type": "bloom", "vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
]


@torch.no_grad()
@pytest.mark.parametrize("facts", KINDS, ids=lambda facts: f"{facts['model_type']}-{list(facts)[-1]}")
def test_models_are_refused_whose_tokens_see_those_after_them(facts):
    torch.manual_seed(0)
    kind = facts["model_type"]
    model = AutoModel.from_config(AutoConfig.for_model(**facts)).eval()
    text = torch.arange(2, 10)[None]
    other = text.clone()
    other[0, -1] = 30
    first, second = (model(ids)[0][:, :-1] for ids in (text, other))
    if torch.allclose(first, second, atol=1e-5):
        assert plain_info(model).n_layers == 2, kind
    else:
        with pytest.raises(ModelMismatchError, match="reads text in both directions"):
            plain_info(model)


@torch.no_grad()
def test_the_blocks_are_those_that_read_text_in_a_model_that_sees():
    """Once the first list of as many blocks as the text has layers was taken, and that was the images'."""
    sees = SMALL | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    facts = {"model_type": "llava", "vision_config": sees, "text_config": SMALL | {"model_type": "llama"}}
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**facts, image_token_index=5)).eval()
    text, ones = torch.arange(6, 12)[None], sl.Editor({1: edit(16)})
    plain = model(text).logits
    with ones.attached(model):
        found = model(text).logits
    with ones.attached(model.get_decoder()):
        assert torch.equal(found, model(text).logits)
    assert not torch.equal(found, plain)


@pytest.mark.usefixtures("without_type_checks")
def test_a_list_of_hooks_is_refused_with_what_to_do_instead(llama):
    with pytest.raises(ModelMismatchError, match=r"with editor.attached\(model\)"):
        make_editor().fwd_hooks(plain_of(llama))
