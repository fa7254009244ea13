"""Models in GGUF: the values are the file's, kept whole or not at all, and what cannot be read is one sentence."""

import os
import re
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sea_lens.cache import HOUR, whole_folder
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.gguf import dequantized
from sea_lens.models.gguf_files import GGUF, PACKAGED, find_gguf
from sea_lens.models.gguf_tokens import check_tokenizer, share_kept_whole
from sea_lens.models.loading import load_model
from sea_lens.models.tokens import token_ids

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
CONFIG = LlamaConfig(
    vocab_size=260,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.1,
    bos_token_id=0,
    eos_token_id=1,
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
}
HEADS = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEA_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def gguf():
    return pytest.importorskip("gguf", reason="gguf is not installed: pip install 'sea-lens[gguf]'")


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def write(gguf, path, llama, *, quantized=False, architecture="llama", add_bos=None, without=()):
    """A Llama as llama.cpp's converter writes it: heads' rows in the order of its rotary embedding."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(number) for number in [*range(33, 127), *range(161, 173), *range(174, 324)]]
    writer.add_token_list(["<s>", "</s>", *letters, "he", "ll"])
    writer.add_token_types([3, 3, *[1] * 258])
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    for name, weight in llama.state_dict().items():
        values = weight.numpy()
        for part, heads in HEADS.items():
            if part in name:
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if name in without:
            continue
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_model_is_the_files_and_the_second_load_reads_the_folder(gguf, llama, tmp_path, cache):
    (tmp_path / "repository").mkdir()
    file = write(gguf, tmp_path / "repository" / "tiny.F32.gguf", llama, add_bos=False)
    model = load_model(tmp_path / "repository")
    (folder,) = cache.iterdir()
    kept = load_file(folder / "model.safetensors")
    assert kept.keys() == llama.state_dict().keys()
    assert all(torch.equal(value, llama.state_dict()[name]) for name, value in kept.items())
    ids = torch.tensor([token_ids(model, "hello there")])
    with torch.no_grad():
        assert torch.allclose(model(ids), llama(ids).logits, atol=1e-5)
    assert model.tokenizer.convert_ids_to_tokens(ids[0]) == ["he", "ll", "o", "Ġ", "t", "he", "r", "e"]  # no <s>
    assert model.cfg.model_name == str(tmp_path / "repository")
    chat = model.tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "<s>hello"

    made = {one: one.stat().st_mtime_ns for one in folder.iterdir()}
    moved = file.rename(tmp_path / "other-name.gguf")
    again = load_model(moved, dtype="float64")  # a float32 folder holds all that it needs
    assert {one: one.stat().st_mtime_ns for one in folder.iterdir()} == made
    assert list(cache.iterdir()) == [folder]
    assert again.cfg.model_name == str(moved)
    assert {one.dtype for one in again.parameters()} == {torch.float64}


def test_blocks_are_dequantized_as_gguf_says_in_the_dtype_that_was_asked_for(gguf, llama, tmp_path, cache):
    file = find_gguf(str(write(gguf, tmp_path / "tiny.Q8_0.gguf", llama, quantized=True)), None, None)
    kept = load_file(dequantized(file, torch.bfloat16) / "model.safetensors")
    assert len(list(cache.iterdir())) == 1
    for name, value in llama.state_dict().items():
        expected = value.numpy()
        if expected.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
            assert 0 < np.abs(expected - value.numpy()).max() < 0.01
        assert torch.equal(kept[name], torch.tensor(expected).bfloat16())


@pytest.mark.parametrize("wants", [True, None])
def test_plain_prompts_begin_as_the_file_says(gguf, llama, tmp_path, wants):
    model = load_model(write(gguf, tmp_path / "tiny.gguf", llama, add_bos=wants))
    assert token_ids(model, "he")[:-1] == [0]


def test_files_that_cannot_be_read_are_one_sentence_and_leave_nothing(gguf, llama, tmp_path, cache):
    whole = write(gguf, tmp_path / "tiny.gguf", llama)
    (tmp_path / "short.gguf").write_bytes(whole.read_bytes()[:-500])
    (tmp_path / "header.gguf").write_bytes(whole.read_bytes()[:900])
    write(gguf, tmp_path / "holes.gguf", llama, without=("blk.1.ffn_up.weight",))
    write(gguf, tmp_path / "odd.gguf", llama, architecture="wavelet")
    content = whole.read_bytes()
    after = content.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    (tmp_path / "type.gguf").write_bytes(content[:after] + bytes([99]) + content[after + 1 :])
    (tmp_path / "nameless.gguf").write_bytes(content.replace(b"general.architecture", b"general.architecturf"))
    for name, error, message in [
        ("short", InputError, r"short\.gguf is damaged, or was cut short\. Fetch it anew\."),
        ("header", InputError, r"header\.gguf is damaged, or was cut short\. Fetch it anew\."),
        ("nameless", InputError, r"nameless\.gguf is damaged, or was cut short\. Fetch it anew\."),
        (
            "holes",
            InputError,
            r"holes.gguf lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj\.weight\. Fe.*",
        ),
        ("odd", ModelMismatchError, r"transformers \S+ cannot read odd.gguf: .*wavelet .*own repository.*"),
        ("type", ModelMismatchError, r".*: its weights are of type 99, which gguf \S+ does not know\. Load .*"),
    ]:
        with pytest.raises(error) as said:
            load_model(tmp_path / f"{name}.gguf")
        assert re.fullmatch(message, str(said.value)), said.value
    assert list(cache.iterdir()) == []
    with pytest.raises(InputError, match=r"holds 7 GGUF files: header\.gguf, .*gguf_file=\"header\.gguf\""):
        load_model(tmp_path)
    assert find_gguf(str(tmp_path), "tiny.gguf", None).pieces == [whole]


# --- what needs no file ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_gguf_or_is_not_there_is_named(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>404</html>")
    (tmp_path / "big-00001-of-00003.gguf").write_bytes(b"GGUF....")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "first.gguf").write_bytes(b"GGUF\1\0\0\0")
    (tmp_path / "other-end.gguf").write_bytes(b"GGUF\0\0\0\3")
    for name, options, message in [
        (tmp_path / "page.gguf", {}, r"page.gguf is not a GGUF file: it begins with b'<htm'"),
        (tmp_path / "big-00001-of-00003.gguf", {}, "one of 3 parts, .*llama-gguf-split --merge"),
        (tmp_path / "empty.gguf", {}, r"empty.gguf is empty. Fetch it anew"),
        (tmp_path / "first.gguf", {}, r"first.gguf is GGUF of version 1, and transformers reads versions 2 and 3"),
        (tmp_path / "other-end.gguf", {}, r"other-end.gguf is for machines that begin a number with its high byte"),
        (tmp_path, {"gguf_file": 3}, "gguf_file is a file's name, and 3 was given"),
        (tmp_path / "none.gguf", {}, r"There is no file .*none.gguf"),
        (tmp_path, {"gguf_file": "none.gguf"}, r"There is no file .*none.gguf"),
        (tmp_path / "page.gguf", {"gguf_file": "other.gguf"}, "is a file itself. Leave gguf_file out"),
        ("organism", {"gguf_file": "x.gguf"}, "Leave gguf_file out"),
        ("smollm2", {"revision": "main"}, "'smollm2' comes from a Python package"),
    ]:
        with pytest.raises(InputError, match=message):
            load_model(name, **options)


def test_a_file_in_a_repository_is_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, file in [("nobody/nothing:sub/x.gguf", None), ("nobody/nothing", "sub/x.gguf")]:
        with pytest.raises(InputError, match=r"sub/x.gguf could not be had from 'nobody/nothing'"):
            find_gguf(name, file, None)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_named_model_comes_from_its_package_or_says_what_to_install(name):
    if find_spec(PACKAGED[name].module) is None:
        with pytest.raises(InputError, match=r"is not installed\. Run `pip install .*sea-lens\["):
            load_model(name)
    else:
        found = find_gguf(name, None, None)
        assert found.name.endswith(".gguf")
        assert found.pieces[0].read_bytes()[:4] == b"GGUF"


def test_pieces_are_one_content(tmp_path):
    for name, content in [("a", b"GGUF1"), ("b", b"2"), ("c", b"GGUF12")]:
        (tmp_path / name).write_bytes(content)
    pieces = GGUF("x", [tmp_path / "a", tmp_path / "b"], assemble=print)
    assert pieces.sha256() == GGUF("x", [tmp_path / "c"]).sha256()


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "model") as made:
        (made / "half" / "no such folder").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "model") as mine:
        with whole_folder(tmp_path / "model") as theirs:
            (theirs / "whole").write_text("theirs")
        (mine / "whole").write_text("mine")
    assert [one.read_text() for one in tmp_path.rglob("whole")] == ["theirs"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_what_a_kill_leaves_is_taken_by_nobody_and_removed_later(tmp_path):
    child = os.fork()
    if child == 0:
        with whole_folder(tmp_path / "model") as made:
            (made / "half").write_text("x")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.name != "model"
    for age, remain in [(0, [left]), (HOUR + 60, [])]:
        for one in (left / "half", left):
            os.utime(one, (time.time() - age,) * 2)
        with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "model"):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == remain


def test_a_tokenizer_that_cuts_up_the_words_of_its_vocabulary_is_refused():
    """As transformers 5.17 makes it of Gemma's file: the same tokens, read by another algorithm."""
    letters = "abcdefgh"
    words = [f"▁{one}{two}{three}" for one in letters for two in letters for three in letters[:2]]
    pairs = sorted({word[:2] for word in words}), sorted({word[:3] for word in words})
    tokens = ["<unk>", "▁", *letters, *pairs[0], *pairs[1], *words]
    merges = [(whole[:-1], whole[-1]) for whole in (*pairs[0], *pairs[1], *words)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    right = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    wrong = Tokenizer(models.Unigram([(token, -float(len(token) ** 2)) for token in tokens], unk_id=0))
    made = []
    for each in (right, wrong):
        each.normalizer = normalizers.Replace(" ", "▁")
        made.append(PreTrainedTokenizerFast(tokenizer_object=each))
    assert [share_kept_whole(each, tokens) for each in made] == [1.0, 0.0]
    check_tokenizer("tiny.gguf", made[0], tokens)
    with pytest.raises(
        ModelMismatchError, match=r"wrong tokenizer of tiny.gguf: only 0%.*pip install --upgrade transformers"
    ):
        check_tokenizer("tiny.gguf", made[1], tokens)
    assert share_kept_whole(made[1], tokens[:20]) is None  # too few words to tell
