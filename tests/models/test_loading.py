"""Models by name: nothing is installed, no code of a checkpoint is run, and what cannot be loaded is one sentence."""

import inspect
import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest
import torch
from conftest import build_bridge, byte_tokenizer
from transformer_lens.model_bridge import TransformerBridge
from transformers import BertConfig, BertForMaskedLM, BitsAndBytesConfig, T5Config, T5ForConditionalGeneration

import sea_lens as sl
from sea_lens.cli.app import COMMANDS
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.generate import generate
from sea_lens.models.loading import load_model, register_model
from sea_lens.models.log_probs import score_answers

STARTED = []
"""Processes that were started while a test listens. Python's audit hooks cannot be removed, so this one is turned off."""
LISTENING = threading.Event()


def _hear(event, arguments):
    if LISTENING.is_set() and event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system", "os.fork"):
        STARTED.append((event, arguments))


@pytest.fixture
def started():
    """The processes that the test has started, as Python's own audit events tell."""
    if not getattr(sys, "_sea_lens_hears", False):
        sys._sea_lens_hears = True
        sys.addaudithook(_hear)
    STARTED.clear()
    LISTENING.set()
    yield STARTED
    LISTENING.clear()


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A folder of a model for images whose processor cannot be loaded, and the model."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 300, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**sizes, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    tokens = {"image_token_index": 299, "boi_token_index": 298, "eoi_token_index": 297}
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    )
    path = tmp_path_factory.mktemp("multimodal")
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    config = {"processor_class": "Gemma3Processor", "image_processor_type": "Gemma3ImageProcessor"}
    (path / "preprocessor_config.json").write_text(json.dumps(config))
    return path, model


def test_the_listening_hears_a_process(started):
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert started


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_processor_that_cannot_be_loaded_installs_nothing(multimodal, started, monkeypatch, tmp_path, in_memory):
    path, wrapped = multimodal
    pip = tmp_path / "pip"  # what `python -m pip` and `uv pip` would reach, were they started
    pip.write_text("#!/bin/sh\nexit 1\n")
    os.chmod(pip, 0o755)
    (tmp_path / "uv").symlink_to(pip)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    given = {"hf_model": wrapped, "tokenizer": byte_tokenizer()} if in_memory else {}
    boot = TransformerBridge.boot_transformers
    part = boot.__globals__["load_modality_processor"]
    with pytest.warns(SeaLensWarning, match=r"images or sound .* nothing was installed\. Text works"):
        model = load_model(path, **given)
    assert started == []
    assert isinstance(generate(model, "ab", max_new_tokens=2), str)
    assert TransformerBridge.boot_transformers is boot  # TransformerLens is as it was
    assert boot.__globals__["load_modality_processor"] is part


def test_a_model_in_memory_asks_nobody_for_a_processor(multimodal, started, recwarn):
    load_model("nobody/at-all", hf_model=multimodal[1], tokenizer=byte_tokenizer())
    assert started == []
    assert [str(one.message) for one in recwarn if issubclass(one.category, SeaLensWarning)] == []


def test_code_that_comes_with_a_checkpoint_is_not_run(stories, tmp_path):
    """TransformerLens imports the code of some architectures to mend it, trusted or not."""
    for name in os.listdir(stories):
        if not name.endswith(".json"):
            continue
        (tmp_path / name).write_text((stories / name).read_text())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["OpenELMForCausalLM"]}))
    (tmp_path / "modeling_openelm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="trust_remote_code=True"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_model_is_loaded_by_word_and_from_a_folder(stories):
    assert load_model("organism").cfg.model_name == "sea-lens-organism"
    for dtype, expected in [("bfloat16", torch.bfloat16), (torch.float64, torch.float64), ("auto", torch.float32)]:
        model = load_model(stories, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
    embedded = load_model("organism", dtype="bfloat16")
    assert {parameter.dtype for parameter in embedded.parameters()} == {torch.bfloat16}


def test_what_is_no_model_is_one_sentence(tmp_path, llama, without_type_checks):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not a model's folder"):
        load_model(tmp_path)
    with pytest.raises(InputError, match=r"There is no folder or file .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"takes a name or a folder, and a LlamaForCausalLM .*hf_model=model"):
        load_model(llama.original_model)
    with pytest.raises(InputError, match="already"):
        register_model("organism")(lambda device: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float99"}, r"dtype is float32, .*, and 'float99' was given"),
        ({"dtype": torch.int8}, "dtype is"),
        ({"dtype": None}, "dtype is"),
        ({"device": "gpu"}, "no device 'gpu' here. Give one of auto, cpu"),
        ({"device": "cuda:99"}, "no device 'cuda:99' here"),
        ({"device": "meta"}, "no device 'meta' here"),
        ({"quantization": "5bit"}, r"quantization is '4bit', .*, and '5bit' was given"),
        ({"quantization": 4}, "and 4 was given"),
    ],
)
def test_wrong_options_are_named_before_anything_is_loaded(stories, without_type_checks, options, message):
    for name in (stories, *(["organism"] if "quantization" not in options else [])):
        with pytest.raises(InputError, match=message):
            load_model(name, **options)
    with pytest.raises(InputError, match="Leave quantization out"):
        load_model("organism", quantization="4bit")


# --- quantization ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "package"),
    [("4bit", "bitsandbytes"), ("torchao-int8", "torchao"), ("quanto-int4", "optimum-quanto"), ("hqq-4bit", "hqq")],
)
def test_a_library_that_is_missing_is_named_with_what_to_install(stories, word, package, monkeypatch):
    monkeypatch.setattr("sea_lens.models.quantization._is_installed", lambda module: module == "accelerate")
    with pytest.raises(InputError, match=f"needs {package}. Run `pip install {package}`"):
        load_model(stories, quantization=word)


def test_quantized_weights_are_used(stories):
    pytest.importorskip("torchao", reason="torchao is not installed")
    texts = torch.tensor([[1, 5, 30, 17, 9]])
    plain, quantized = load_model(stories), load_model(stories, quantization="torchao-int8")
    with torch.no_grad():
        difference = (plain(texts) - quantized(texts)).abs().max()
    assert 0 < difference < 1


def test_a_config_of_transformers_is_taken_and_one_with_a_model_refused(stories, llama):
    if find_spec("bitsandbytes") is None:
        with pytest.raises(InputError, match=r"installed: .*bitsandbytes|installed: .*"):
            load_model(stories, quantization=BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(InputError, match="hf_model= is loaded already"):
        load_model("x", hf_model=llama.original_model, tokenizer=byte_tokenizer(), quantization="8bit")


# --- what is no model, given to functions ----------------------------------------------------------------------------


def public_functions():
    """Every public function whose first argument is a model, and some that are not at the top, to call with that alone."""
    found = {"score_answers": score_answers}
    for name in sl.__all__:
        value = getattr(sl, name)
        if inspect.isfunction(value) and next(iter(inspect.signature(value).parameters), "") == "model":
            found[name] = value
    return {name: given_a_model(value) for name, value in found.items()}


def given_a_model(function):
    others = list(inspect.signature(function).parameters.values())[1:]
    required = [one for one in others if one.default is one.empty]
    places = [None for one in required if one.kind is one.POSITIONAL_OR_KEYWORD]
    return lambda model: function(model, *places, **{one.name: None for one in required[len(places) :]})


def test_every_public_function_refuses_what_is_no_model(llama, without_type_checks):
    functions = public_functions()
    assert len(functions) >= 18
    wrong = {
        None: "None was given. Make one with",
        "gpt2": r"a str was given\. Load it first: sea_lens.load_model\('gpt2'\)",
        build_bridge("llama").original_model: r"LlamaForCausalLM was given\. Wrap it first: .*hf_model=model",
    }
    for function in functions.values():
        for model, message in wrong.items():
            with pytest.raises(ModelMismatchError, match="A TransformerBridge is needed, and .*" + message):
                function(model)


def test_models_that_do_not_write_from_left_to_right_are_refused_by_name(without_type_checks):
    sizes = {"vocab_size": 258, "num_layers": 2, "num_heads": 4}
    t5 = T5ForConditionalGeneration(T5Config(d_model=32, d_ff=64, d_kv=8, **sizes))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = BertForMaskedLM(BertConfig(vocab_size=258, **sizes))
    for wrapped, why in [
        (t5, "T5ForConditionalGeneration has an encoder"),
        (bert, "BertForMaskedLM reads text in both"),
    ]:
        wrapped.config.architectures = [type(wrapped).__name__]
        given = {"hf_model": wrapped, "tokenizer": byte_tokenizer()}
        with pytest.raises(ModelMismatchError, match=why):
            load_model("mine", **given)
        model = TransformerBridge.boot_transformers("mine", device="cpu", **given)
        for function in public_functions().values():
            with pytest.raises(ModelMismatchError, match=why):
                function(model)


# --- the command line ------------------------------------------------------------------------------------------------


def test_every_command_that_loads_a_model_says_how():
    def leaves(group, name):
        for key, one in group:
            built = one.build()
            inner = list(getattr(built, "listed", {}).items())
            if key != "evaluate":
                inner = inner[-1:]  # a group has one signature, for every method
            yield from leaves(inner, f"{name} {key}") if inner else [(f"{name} {key}".strip(), built)]

    loading = {"--device", "--dtype", "--quantization", "--revision"}
    found = {}
    for name, built in leaves(COMMANDS.items(), ""):
        options = {option for parameter in built.params for option in parameter.opts}
        if any(parameter.name == "model" for parameter in built.params):
            found[name] = loading - options
    assert len(found) >= 12
    assert {name for name, missing in found.items() if missing} == set()


def test_a_wrong_word_for_loading_is_one_line(sea_lens, editor_folder):
    for option, word, message in [
        ("--dtype", "float99", "'float99' is not one of"),
        ("--quantization", "5bit", "'5bit' was given; expected none or 4bit, 8bit"),
        ("--device", "gpu", "no device 'gpu' here"),
        ("--quantization", "4bit", "takes device and dtype alone"),
    ]:
        code, _, err = sea_lens("generate", "organism", editor_folder, "a", option, word)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
